"""What is sent to a hub, against one on the loopback that speaks as the real one does, and what is said where it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import loopback_hub as loopback
import pytest
import tiny
from loopback_hub import BREAKS, READS, WRITES
from waiting import CEILING

NOWHERE = "http://127.0.0.1:9"  # the port of discard, where nobody listens

# Asks for things and prints one line of JSON for each. The address of the hub is read when huggingface_hub is imported, so
# that this is a process of its own; its waits between two tries are left out.
SCRIPT = """
import json, sys, time
from pathlib import Path
time.sleep = lambda seconds: None
from dovetail.edges import hub
from dovetail.errors import DovetailError
for what, *words in json.loads(sys.argv[1]):
    try:
        if what == "train":
            from dovetail import flags, launch
            said = str(launch.run(*flags.parse(words)))
        else:
            said = getattr(hub, what)(*(Path(w) if w and w.startswith("/") else w for w in words))
        print("OUT " + json.dumps([True, said]))
    except DovetailError as error:
        print("OUT " + json.dumps([False, str(error)]))
"""


def ask(url: str, *asked: list[Any], xet: bool = False) -> list[tuple[bool, str]]:
    """Whether each went well, and what was said."""
    told = os.environ | {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "" if xet else "1"}
    told.pop("HF_TOKEN", None)
    command = [sys.executable, "-c", SCRIPT, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CEILING, env=told, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(json.loads(line[4:])) for line in done.stdout.splitlines() if line.startswith("OUT ")]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as a training leaves it: weights, texts, and what stays at home."""
    folder = tmp_path / "my model"
    for name in (
        "unet/a.safetensors",
        "checkpoint-2/unet/a.safetensors",
        "left-checkpoint-4/b.bin",
        ".checkpoint-3.1.tmp/c.bin",
    ):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(os.urandom(70_000))
    (folder / "model_index.json").write_text('{"_class_name": "Ünet"}\n')
    (folder / "empty.txt").touch()
    (folder / "tb [1]").mkdir()
    (folder / "tb [1]" / "events").write_text("what a tracker wrote")
    return folder


def _sent(folder: Path) -> dict[str, bytes]:
    names = ("unet/a.safetensors", "model_index.json", "empty.txt")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("lfs", [True, False], ids=["by Git LFS", "within the commit"])
def test_what_arrives_is_what_was_written_and_is_sent_once(model: Path, lfs: bool) -> None:
    before = tiny.tree(model)
    with loopback.running() as hub:
        hub.lfs = lfs
        upload = ["upload", str(model), "me/it", WRITES, "tb [1]/"]
        made, first, again, other = ask(
            hub.url, ["prepare", "it", WRITES], upload, upload, ["prepare", "club/that", WRITES], xet=not lfs
        )
        assert made == (True, "me/it") and other == (True, "club/that")
        assert first[0] and again[0] and first[1].startswith(hub.url) and again[1].startswith(hub.url), (first, again)
        assert hub.files["me/it"] == _sent(model)
        assert [{k: a.get(k) for k in ("name", "organization", "visibility", "private")} for a in hub.created] == [
            {"name": "it", "organization": None, "visibility": None, "private": None},
            {"name": "that", "organization": "club", "visibility": None, "private": None},
        ], "who may see it is the hub's own default, as in the example"
        count = {what: sum(what in line for line in hub.asked) for what in ("PUT /storage", "/commit/", "/preupload/")}
        assert count == {"PUT /storage": int(lfs), "/commit/": 1, "/preupload/": 2}
        (model / "model_index.json").write_text("{}")
        (changed,) = ask(hub.url, upload, xet=not lfs)
        assert changed[0] and hub.files["me/it"] == _sent(model)
    assert before.keys() == tiny.tree(model).keys()


def test_a_hub_that_refuses_breaks_or_is_gone_is_one_line_and_costs_nothing(model: Path) -> None:
    before = tiny.tree(model)
    with loopback.running() as hub:
        hub.lfs, hub.files["me/it"] = False, {"model_index.json": b"older"}
        answers = ask(
            hub.url, *(["prepare", "me/it", token] for token in ("hf_wrong", READS)), ["prepare", "me/no such name", WRITES],
            *(["upload", str(model), "me/it", token] for token in ("hf_wrong", READS, BREAKS)),
            ["upload", str(model), "me/other", WRITES], xet=True,
        )  # fmt: skip
        assert hub.files == {"me/it": {"model_index.json": b"older"}}, "what is there stays whole"
    answers += ask(NOWHERE, ["prepare", "me/it", WRITES], ["upload", str(model), "me/it", WRITES])
    for (well, said), why in zip(
        answers,
        ["401", "the token may only read; give one that", "me/no such name", "401", "403", "500", "404", "refused", "refused"],
        strict=True,
    ):
        assert not well and why in said and "\n" not in said and "hf_" not in said, said
        by_hand = f"the model is whole in {model}; upload it with `hf upload me/"
        assert said.startswith("cannot upload to") == (by_hand in said)
        assert "--exclude 'checkpoint-*/**'" in said or not said.startswith("cannot upload to")
    assert tiny.tree(model) == before


def test_the_launch_command_uploads_its_result_and_says_first_where_it_could_not(
    tiny_base: Path, pictures: Path, tmp_path: Path
) -> None:
    def flags(out: str, token: str) -> list[str]:
        told = {
            "pretrained_model_name_or_path": tiny_base, "train_data_dir": pictures, "output_dir": tmp_path / out,
            "resolution": tiny.SIDE, "train_batch_size": 2, "max_train_steps": 1, "checkpointing_steps": 1, "seed": 1,
            "mixed_precision": "no", "logging_dir": "told", "hub_model_id": "me/tuned", "hub_token": token,
        }  # fmt: skip
        return ["train", "--push_to_hub", *(f"--{name}={value}" for name, value in told.items())]

    with loopback.running() as hub:
        wrong, reads, good = ask(hub.url, flags("wrong", "hf_wrong"), flags("reads", READS), flags("good", WRITES))
        assert not wrong[0] and wrong[1].startswith("cannot make me/tuned on the hub: ") and "401" in wrong[1]
        assert not reads[0] and "403" in reads[1]
        assert not (tmp_path / "wrong").exists() and not (tmp_path / "reads").exists(), "nothing was begun"
        assert good == (True, str(tmp_path / "good"))
        whole = tiny.tree(tmp_path / "good")
        assert {n for n in whole if n not in hub.files["me/tuned"]} == {
            n for n in whole if n.startswith(("checkpoint-1/", "told/"))
        }
        assert all(whole[n] == data for n, data in hub.files["me/tuned"].items())
