"""dovetail.toml: what is unknown is refused by name, what is written can be read."""

import tomllib
from pathlib import Path

import pytest

from dovetail.config import Config
from dovetail.edges import settings
from dovetail.errors import BadConfigError


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"training": {"step": 4}}, r"here: unknown key training\.step; known keys there: .*\bsteps\b"),
        ({"trainin": {}}, r"unknown key trainin; known keys there: .*\btraining\b"),
        ({"training": {"steps": 0}}, r"training\.steps: .*greater than 0; it is 0 now"),
        ({"training": {"text_encoder": True}}, r"training: .*adapters only: take method lora, dora or lokr"),
        ({"training": {"method": "dreambooth"}}, r"training\.method: .*'full', 'lora', 'dora', 'lokr' or 'textual_inversion'"),
        ({"training": {"steps": "many"}}, r"training\.steps: .*integer"),
        ({"training": 4}, r"training: "),
        ({"wrangling": {"background": "white"}}, r"wrangling\.background"),
        ({"endpoint": {"port": 70000}}, r"endpoint\.port"),
    ],
)
def test_an_unknown_or_impossible_key_is_named(data: dict[str, object], said: str) -> None:
    with pytest.raises(BadConfigError, match=said):
        settings.validated(data, "here")


@pytest.mark.parametrize("comments", [True, False])
def test_the_written_defaults_read_back_as_the_defaults(comments: bool) -> None:
    text = settings.text(Config(), comments)
    assert settings.validated(tomllib.loads(text), "text") == Config()
    assert ("#" in text.replace("#ffffff", "")) == comments


def test_every_table_and_key_is_in_the_commented_file() -> None:
    text = settings.text(Config(), comments=True)
    for name, field in Config.model_fields.items():
        if name != "base":
            assert f"[{name}]" in text
            assert all(f"{key} =" in text for key in field.annotation.model_fields)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "data",
    [
        {"sourcing": {"author": 'Ann "the pen" O\'Brien \\ 🦊\n\t'}},
        {"sourcing": {"author": "deleted \x7f and \x01 control"}},
        {"processing": {"rehearsal_prompts": ["a, b", "c ] d", 'e "f"'], "resolution": 64}},
        {"training": {"learning_rate": 1e-05, "lora_rank": 3}},
        {"training": {"max_grad_norm": float("inf")}},
        {"processing": {"centre_crop": False}, "base": "C:\\models\\sd"},
    ],
)
def test_any_configuration_written_reads_back_the_same(data: dict[str, object]) -> None:
    config = settings.validated(data, "here")
    assert settings.validated(tomllib.loads(settings.text(config, comments=False)), "text") == config
    assert settings.validated(tomllib.loads(settings.text(config, comments=True)), "text") == config


def test_set_flags_become_nested_tables_with_toml_values() -> None:
    given = [
        "training.steps=400",
        "training.method=lora",
        "base=/a b",
        'repo.name="x=y"',
        "processing.random_flip=false",
        "processing.rehearsal_prompts=['a', 'b']",
    ]
    assert settings.pairs(given) == {
        "training": {"steps": 400, "method": "lora"}, "base": "/a b", "repo": {"name": "x=y"},
        "processing": {"random_flip": False, "rehearsal_prompts": ["a", "b"]},
    }  # fmt: skip


@pytest.mark.parametrize("flag", ["training.steps", "=4", "training.steps:4"])
def test_a_set_flag_of_another_form_is_refused(flag: str) -> None:
    with pytest.raises(BadConfigError, match=r"--set"):
        settings.pairs([flag])


def test_a_set_flag_below_a_value_is_refused_and_not_a_crash() -> None:
    with pytest.raises(BadConfigError, match=r"training\.steps"):
        settings.validated(settings.pairs(["training.steps=4", "training.steps.more=5"]), "the flags")


def test_a_value_cannot_smuggle_in_another_key() -> None:
    assert settings.pairs(['repo.name="a"\nbase = "evil"']).keys() == {"repo"}


def test_what_is_laid_over_wins_key_by_key() -> None:
    assert settings.merged({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"y": 5}, "c": 4}) == {"a": {"x": 1, "y": 5}, "b": 3, "c": 4}


def test_a_missing_file_and_one_that_is_no_toml_are_said_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(BadConfigError, match=r"there is no file .*none\.toml"):
        settings.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[training\nsteps = 4")
    with pytest.raises(BadConfigError, match=r"bad\.toml.*line 1"):
        settings.read(tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(BadConfigError, match=r"bytes\.toml"):
        settings.read(tmp_path / "bytes.toml")
