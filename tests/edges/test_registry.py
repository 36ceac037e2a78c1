"""Published versions and the release record that endpoints follow."""

import json
import threading
from pathlib import Path

import pytest

from dovetail.edges.registry import Registry, default_root, safe_name
from dovetail.errors import BadInputError, StoreError


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    place = Registry(tmp_path / "registry")
    for number in ("v1", "v2", "v3"):
        folder = tmp_path / number
        (folder / "unet").mkdir(parents=True)
        (folder / "unet" / "weights").write_text(number)
        place.add("cats", number, folder)
    return place


def test_a_published_folder_is_there_whole_and_listed(registry: Registry) -> None:
    assert sorted(registry.versions("cats")) == ["v1", "v2", "v3"] and registry.names() == ["cats"]
    assert (registry.version_folder("cats", "v2") / "unet" / "weights").read_text() == "v2"
    assert registry.current("cats") is None and registry.versions("dogs") == []


def test_publishing_the_same_version_again_changes_nothing(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "v9" / "unet").mkdir(parents=True)
    registry.add("cats", "v1", tmp_path / "v9")
    assert (registry.version_folder("cats", "v1") / "unet" / "weights").read_text() == "v1"


def test_publishing_a_folder_that_is_not_there_leaves_nothing_behind(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot publish"):
        registry.add("cats", "v4", tmp_path / "nowhere")
    assert sorted(p.name for p in (registry.root / "cats" / "versions").iterdir()) == ["v1", "v2", "v3"]


def test_the_last_promotion_is_in_force(registry: Registry) -> None:
    made = [registry.promote("cats", v, f"because {v}") for v in ("v1", "v2")]
    assert [m.number for m in made] == [1, 2] and registry.current("cats") == "v2"
    assert registry.find("cats") == (registry.version_folder("cats", "v2"), "v2")
    assert [r.reason for r in registry.releases("cats")] == ["because v1", "because v2"]


def test_rolling_back_twice_goes_back_two_and_a_third_time_is_refused(registry: Registry) -> None:
    for version in ("v1", "v2", "v3"):
        registry.promote("cats", version, "")
    assert registry.rollback("cats", "").version == "v2"
    assert registry.rollback("cats", "").version == "v1"
    with pytest.raises(BadInputError, match="no release of cats before"):
        registry.rollback("cats", "")
    assert registry.current("cats") == "v1"


def test_after_a_rollback_a_promotion_can_be_rolled_back_again(registry: Registry) -> None:
    for version in ("v1", "v2"):
        registry.promote("cats", version, "")
    registry.rollback("cats", "")
    registry.promote("cats", "v3", "")
    assert registry.rollback("cats", "").version == "v1"


def test_promoting_twice_the_same_counts_once_for_a_rollback(registry: Registry) -> None:
    for version in ("v1", "v2", "v2"):
        registry.promote("cats", version, "")
    assert registry.rollback("cats", "").version == "v1"


def test_an_unknown_version_or_name_is_refused_with_what_there_is(registry: Registry) -> None:
    with pytest.raises(BadInputError, match=r"no version v9.*v1, v2, v3"):
        registry.promote("cats", "v9", "")
    with pytest.raises(BadInputError, match="published: none"):
        registry.promote("dogs", "v1", "")
    with pytest.raises(BadInputError, match="published: cats"):
        registry.find("dogs")
    with pytest.raises(BadInputError):
        registry.find("cats@v9")
    assert not (registry.root / "dogs").exists()


def test_a_version_may_be_named_and_without_a_release_the_newest_is_taken(registry: Registry) -> None:
    assert registry.find("cats@v1")[1] == "v1" and registry.find("cats")[1] == "v3"


def test_a_line_cut_short_by_a_crash_is_passed_over_and_the_next_one_is_whole(registry: Registry) -> None:
    registry.promote("cats", "v1", "")
    record = registry.root / "cats" / "releases.jsonl"
    with record.open("a") as file:
        file.write('{"number": 2, "action": "pro')
    assert registry.current("cats") == "v1"
    registry.promote("cats", "v2", "")
    assert registry.current("cats") == "v2" and [r.version for r in registry.releases("cats")] == ["v1", "v2"]
    assert json.loads(record.read_text().splitlines()[-1])["version"] == "v2"


@pytest.mark.parametrize("reason", ["a\u2028b", "a\nb", "a\x85b", "🦊"])
def test_whatever_the_reason_holds_a_promotion_is_in_force(registry: Registry, reason: str) -> None:
    registry.promote("cats", "v1", "")
    registry.promote("cats", "v2", reason)
    assert registry.current("cats") == "v2" and registry.releases("cats")[-1].reason == reason


def test_promotions_of_many_threads_are_all_recorded_with_numbers_of_their_own(registry: Registry) -> None:
    def work(version: str) -> None:
        for _ in range(15):
            registry.promote("cats", version, "")

    threads = [threading.Thread(target=work, args=(v,)) for v in ("v1", "v2", "v3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [r.number for r in registry.releases("cats")] == list(range(1, 46))


def test_two_threads_may_publish_the_same_version_at_once(registry: Registry, tmp_path: Path) -> None:
    faults: list[BaseException] = []

    def work() -> None:
        try:
            registry.add("dogs", "v1", tmp_path / "v1")
        except BaseException as error:
            faults.append(error)

    for _ in range(10):
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not faults and (registry.version_folder("dogs", "v1") / "unet" / "weights").read_text() == "v1"
        (registry.root / "dogs").rename(tmp_path / f"gone-{len(list(tmp_path.iterdir()))}")


@pytest.mark.parametrize(
    ("raw", "safe"), [("Train Station", "train-station"), ("../..", "model"), ("a/b", "a-b"), ("训练", "model"), (".x", "x")]
)
def test_names_become_plain_folder_names(raw: str, safe: str) -> None:
    assert safe_name(raw) == safe


def test_the_registry_lies_in_dovetail_home(home: Path) -> None:
    assert default_root() == home / "registry"
