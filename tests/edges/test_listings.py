"""What is said of a folder of pictures: metadata.jsonl, metadata.csv, text files."""

import json
from pathlib import Path

import pytest

from dovetail.edges import listings
from dovetail.errors import BadInputError

SUFFIXES = frozenset({".png", ".jpg"})


def _put(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        place = folder / name.replace("__", "/").replace("_dot_", ".")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    return folder


def test_pictures_are_found_in_all_folders_by_suffix_in_any_case_but_not_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.PNG", "sub/a.jpg", ".hidden.png", ".git/c.png", "notes.md", "train station.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [p.relative_to(tmp_path).as_posix() for p in listings.picture_files(tmp_path, SUFFIXES)]
    assert found == ["b.PNG", "sub/a.jpg", "train station.jpg"]


def test_a_missing_folder_and_a_file_instead_of_one_are_said(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="there is no folder"):
        listings.picture_files(tmp_path / "no", SUFFIXES)
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="is not a folder"):
        listings.picture_files(tmp_path / "file", SUFFIXES)


@pytest.mark.parametrize("name_key", listings.NAME_KEYS)
@pytest.mark.parametrize("caption_key", listings.CAPTION_KEYS)
def test_the_usual_column_names_are_understood(tmp_path: Path, name_key: str, caption_key: str) -> None:
    _put(tmp_path, metadata_dot_jsonl=json.dumps({name_key: "a.png", caption_key: "a cat", "author": "me"}))
    said = listings.read_metadata(tmp_path)["a.png"]
    assert (said.caption, said.said_by, said.fields["author"]) == ("a cat", "metadata.jsonl", "me")


def test_metadata_of_a_sub_folder_names_files_below_it(tmp_path: Path) -> None:
    _put(tmp_path, sub__metadata_dot_jsonl='{"file_name": "a.png", "text": "x"}')
    assert list(listings.read_metadata(tmp_path)) == ["sub/a.png"]


def test_csv_is_read_with_a_byte_order_mark_quotes_and_commas(tmp_path: Path) -> None:
    _put(tmp_path, metadata_dot_csv='\ufefffile_name,text,group\na.png,"a cat, red",g1\nb.png,"say ""hi""",\n')
    said = listings.read_metadata(tmp_path)
    assert said["a.png"].caption == "a cat, red" and said["a.png"].fields["group"] == "g1"
    assert said["b.png"].caption == 'say "hi"' and "group" not in said["b.png"].fields


def test_a_caption_of_two_lines_in_csv_keeps_its_words_apart(tmp_path: Path) -> None:
    _put(tmp_path, metadata_dot_csv='file_name,text\na.png,"a red\ncat"\nb.png,plain\n')
    said = listings.read_metadata(tmp_path)
    assert said["a.png"].caption.split() == ["a", "red", "cat"] and said["b.png"].caption == "plain"


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_separators_that_json_allows_inside_a_text_do_not_end_the_line(tmp_path: Path, separator: str) -> None:
    row = json.dumps({"file_name": "a.png", "text": f"a{separator}cat"}, ensure_ascii=False)
    _put(tmp_path, metadata_dot_jsonl=row + "\n")
    assert listings.read_metadata(tmp_path)["a.png"].caption == f"a{separator}cat"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"file_name": "a.png"}\n\n{oops', r"line 3: not JSON"),
        ('["a.png"]', r"line 1: not an object"),
        ('{"text": "x"}', r"line 1: no file_name"),
        ('{"file_name": 7, "text": "x"}', r"line 1: no file_name"),
        ('{"file_name": "../out.png", "text": "x"}', r"lies outside the folder"),
        ('{"file_name": "/etc/passwd", "text": "x"}', r"lies outside the folder"),
    ],
)
def test_a_faulty_line_is_named_by_file_and_number(tmp_path: Path, text: str, said: str) -> None:
    _put(tmp_path, metadata_dot_jsonl=text)
    with pytest.raises(BadInputError, match=said):
        listings.read_metadata(tmp_path)


def test_a_file_name_that_no_system_takes_is_said_and_not_a_crash(tmp_path: Path) -> None:
    _put(tmp_path, metadata_dot_jsonl=json.dumps({"file_name": "a\x00.png", "text": "x"}))
    with pytest.raises(BadInputError, match="line 1"):
        listings.read_metadata(tmp_path)


def test_a_picture_that_is_a_symbolic_link_keeps_its_own_name_and_caption(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "folder"
    _put(store, original_dot_png="")
    folder.mkdir()
    (folder / "a.png").symlink_to(store / "original.png")
    _put(folder, metadata_dot_jsonl='{"file_name": "a.png", "text": "a cat"}')
    assert listings.read_metadata(folder)["a.png"].caption == "a cat"


def test_the_text_beside_a_picture_is_its_caption(tmp_path: Path) -> None:
    _put(tmp_path, a_dot_txt="\ufeffein Fuchs\n")
    assert (listings.caption_beside(tmp_path / "a.png") or "").strip() == "ein Fuchs"
    assert listings.caption_beside(tmp_path / "b.png") is None


def test_bytes_that_are_no_utf8_do_not_stop_the_reading(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 au lait")
    assert "au lait" in (listings.caption_beside(tmp_path / "a.png") or "")


def test_a_very_long_field_in_csv_is_read_so_that_it_can_be_rejected_later(tmp_path: Path) -> None:
    _put(tmp_path, metadata_dot_csv=f"file_name,text\na.png,{'x' * 200_000}\n")
    assert len(listings.read_metadata(tmp_path)["a.png"].caption) == 200_000
