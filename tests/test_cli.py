"""The command line: one line for each error, quick help, results on standard output."""

import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import tiny
from conftest import Finished
from PIL import Image
from tiny import SIDE, flags, short
from waiting import CEILING

from dovetail import cli as command_line
from dovetail.config import Config
from dovetail.edges import app as web
from dovetail.edges import settings
from dovetail.edges.registry import Registry


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Call]:
    """`dovetail WORDS` in this process, in an empty folder: exit code and what was printed."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def go(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["dovetail", *map(str, words)])
        code = 0
        try:
            command_line.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capfd.readouterr()
        return Said(code, printed.out, printed.err)

    yield go
    for number, handler in handlers.items():
        signal.signal(number, handler)


def one_line(said: Said, *words: str) -> None:
    """The habits of every error: one line at the end of standard error, a code, no traceback."""
    lines = said.err.splitlines()
    assert said.code != 0 and said.out == "", said
    assert lines and lines[-1].startswith("dovetail: ") and sum(line.startswith("dovetail:") for line in lines) == 1, said.err
    assert "Traceback" not in said.err and "unexpected" not in said.err
    assert all(word in lines[-1] for word in words), lines[-1]


@pytest.fixture
def folders(tmp_path: Path, pictures: Path, tiny_base: Path) -> dict[str, Path]:
    """Folders that are wrong in one way each."""
    places = {name: tmp_path / name for name in ("empty", "silent", "broken toml", "unknown key", "bad line")}
    for place in places.values():
        place.mkdir()
    tiny.drawing("round", "red").save(places["silent"] / "a.png")
    tiny.write_pictures(places["bad line"], 2)
    (places["bad line"] / "metadata.jsonl").open("a").close()
    (places["bad line"] / "metadata.jsonl").write_text('{"file_name"\n')
    (places["broken toml"] / "dovetail.toml").write_text("[training\n")
    (places["unknown key"] / "dovetail.toml").write_text("[training]\nstep = 4\n")
    return places | {"pictures": pictures, "base": tiny_base, "nowhere": tmp_path / "nowhere"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "{nowhere}"], ["there is no folder", "nowhere"]),
        (["run", "{empty}"], ["no picture in", "put pictures there"]),
        (["run", "{silent}"], ["no caption for any of the 1 pictures", "metadata.jsonl"]),
        (["run", "{bad line}"], ["metadata.jsonl, line 1", "not JSON"]),
        (["run"], ["no folder of pictures", "--run DIR"]),
        (["run", "{pictures}", "--until", "painting"], ["there is no stage painting", "sourcing, gathering"]),
        (["run", "{pictures}", "--config", "{unknown key}/dovetail.toml"], ["unknown key training.step", "steps"]),
        (["run", "{pictures}", "--config", "{broken toml}/dovetail.toml"], ["dovetail.toml", "line 1"]),
        (["run", "{pictures}", "--config", "none.toml"], ["there is no file none.toml", "dovetail init"]),
        (["run", "{pictures}", "--set", "training.steps"], ["--set training.steps", "table.key=value"]),
        (["run", "{pictures}", "--set", "training.stepz=4"], ["unknown key training.stepz"]),
        (["run", "{pictures}", "--steps", "0"], ["training.steps", "greater than 0"]),
        (["run", "{pictures}", "--steps", "many"], ["--steps", "integer"]),
        (["run", "{pictures}", "--base", "{empty}"], ["has no model_index.json"]),
        (["run", "{pictures}", "--base", "weights.ckpt"], ["pickle"]),
        (["run", "{pictures}", "--base", "{base}", "--run", "{silent}/a.png"], ["a.png"]),
        (["run", "{pictures}", "--colour", "red"], ["--colour", "dovetail --help"]),
        (["paint"], ["model"]),
        (["dance"], ["dance"]),
        (["train", "--run", "new", "--base", "{base}"], ["dovetail"]),
        (
            ["evaluate", "--run", "new", "--base", "{base}", "--set", "sourcing.folder={pictures}"],
            ["sourcing is not done yet", "dovetail source"],
        ),
        (["paint", "no-such-model", "a cat"], ["no model 'no-such-model'", "published: none"]),
        (["paint", "{empty}", "a cat"], ["has no model_index.json"]),
        (["paint", "{base}", "a cat", "--out", "{silent}/a.png/x.png"], ["x.png"]),
        (["paint", "{base}", "a cat", "--steps", "0"], ["--steps"]),
        (["serve", "no-such-model"], ["no model 'no-such-model'"]),
        (["release", "promote", "things", "v1"], ["things has no version v1"]),
        (["release", "rollback", "things"], ["no release of things"]),
        (["status"], ["no folder of pictures"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_every_error_is_one_line_that_names_what_and_what_next(
    call: Call, folders: dict[str, Path], words: list[str], said: list[str]
) -> None:
    one_line(call(*(w.format(**folders) for w in words)), *said)


def test_a_taken_port_is_said(call: Call, tiny_base: Path) -> None:
    with web.bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        one_line(call("serve", tiny_base, "--port", port), f"cannot listen on 127.0.0.1:{port}", "--port")


def test_errors_reach_the_shell_as_one_line_and_a_code(tmp_path: Path) -> None:
    done = tiny.cli("run", tmp_path / "no such folder")
    one_line(Said(done.returncode, done.stdout, done.stderr), "there is no folder")
    assert len(done.stderr.splitlines()) == 1
    wrong = tiny.cli("run", tmp_path, "--set", "training.stepz=1")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1


def test_without_words_the_help_is_shown_as_it_is(call: Call) -> None:
    said = call()
    assert "Usage:" in said.out + said.err and not (said.out + said.err).lstrip().startswith("dovetail:")


def test_help_answers_in_under_a_third_of_a_second() -> None:
    def seconds() -> float:
        """Processor time of one process: what it takes on a machine that does nothing else."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = tiny.cli("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0 and "Usage:" in done.stdout and done.stderr == ""
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(seconds() < 0.3 for _ in range(5))


def test_help_of_every_command_loads_no_heavy_library() -> None:
    program = (
        "import sys\nfrom dovetail.cli import app, main\nimport typer.main\n"
        "names = [c for c in typer.main.get_command(app).commands]\n"
        "for words in [[], *([n] for n in names), ['release', 'promote']]:\n"
        "    sys.argv = ['dovetail', *words, '--help']\n"
        "    try:\n        main()\n    except SystemExit as stop:\n        assert not stop.code, (words, stop.code)\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'pyvips', 'fastapi', 'matplotlib', 'datasets'}\n"
        "heavy &= set(sys.modules)\n"
        "assert len(names) >= 13 and not heavy, (names, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_stage_has_a_verb_with_help(call: Call) -> None:
    from dovetail.pipeline import STAGES

    for stage in STAGES:
        said = call(stage.verb, "--help")
        assert said.code == 0 and "--run" in said.out


def test_the_version_is_told(call: Call) -> None:
    import dovetail

    assert call("--version") == Said(0, dovetail.__version__ + "\n", "")


def test_dry_run_prints_the_resolved_configuration_and_writes_nothing(call: Call, pictures: Path, tiny_base: Path) -> None:
    said = call("run", pictures, "--base", tiny_base, "--method", "lora", "--set", "training.learning_rate=1e-3", "--dry-run")
    config = settings.validated(tomllib.loads(said.out), "out")
    assert (config.training.method, config.training.learning_rate, config.base) == ("lora", 1e-3, str(tiny_base))
    assert config.sourcing.folder == str(pictures) and config.repo.name == "things" and said.code == 0
    assert list(Path.cwd().iterdir()) == []


def test_flags_win_over_set_over_file_over_defaults(call: Call, pictures: Path) -> None:
    Path("dovetail.toml").write_text("[training]\nsteps = 11\nbatch_size = 3\n[evaluation]\nsteps = 5\n")
    said = call("run", pictures, "--set", "training.batch_size=7", "--steps", 12, "--dry-run")
    config = settings.validated(tomllib.loads(said.out), "out")
    assert (config.training.steps, config.training.batch_size, config.evaluation.steps) == (12, 7, 5)


def test_init_writes_the_defaults_with_comments_and_refuses_to_overwrite(call: Call) -> None:
    assert call("init") == Said(0, "dovetail.toml\n", "")
    text = Path("dovetail.toml").read_text()
    assert settings.validated(tomllib.loads(text), "file") == Config() and text.count("#") > 40
    Path("dovetail.toml").write_text("# mine\n")
    one_line(call("init"), "dovetail.toml exists already", "--force")
    assert Path("dovetail.toml").read_text() == "# mine\n"
    assert call("init", "--force").code == 0 and Path("dovetail.toml").read_text() == text


@pytest.fixture
def here(finished: Finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Words that run the finished run again, on a copy of it."""
    monkeypatch.setenv("DOVETAIL_HOME", str(finished.home))
    run = shutil.copytree(finished.run, tmp_path / "copy")
    return ["run", str(finished.pictures), "--run", str(run), "--base", str(finished.base), *flags(short())]


def _words_after(out: str, mark: str) -> list[str]:
    line = next(line for line in out.splitlines() if line.startswith(mark)).removeprefix(mark)
    words = shlex.split(line.split("    then")[0])
    return [w for w in words if not w.startswith("DOVETAIL_HOME=")][1:]


def test_the_closing_words_are_commands_that_work_as_they_stand(call: Call, here: list[str]) -> None:
    prompt = 'a child\'s "red" ball; $HOME `x`'
    said = call(*here, "--set", f"endpoint.prompt={prompt}")
    assert said.code == 0 and "held-out prompts" in said.out and "report.html" in said.out
    words = _words_after(said.out, "picture:")
    assert words[:3] == ["paint", "things", prompt]
    assert call(*words, "--steps", 1).code == 0
    with Image.open("picture.png") as picture:
        assert picture.size == (SIDE, SIDE)
    import json

    curl = shlex.split(next(line for line in said.out.splitlines() if "curl" in line))
    assert json.loads(curl[-1])["prompt"] == prompt


def test_the_closing_words_work_where_the_pictures_folder_lies(
    call: Call, here: list[str], finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.pictures.parent)
    words = _words_after(call(*here).out, "picture:")
    said = call(*words[:-2], "--steps", 1, "--out", Path(here[3]) / "picture.png")
    assert said.code == 0, said.err


def test_the_closing_words_work_with_a_registry_of_the_users_own(call: Call, here: list[str], tmp_path: Path) -> None:
    words = _words_after(call(*here, "--set", f"repo.registry={tmp_path / 'mine'}", "--set", "repo.name=own").out, "picture:")
    said = call(*words, "--steps", 1)
    assert said.code == 0, said.err


def test_status_tells_each_stage_and_as_json_the_paths(call: Call, here: list[str]) -> None:
    import json

    run = here[3]
    said = call("status", "--run", run)
    assert said.code == 0 and [line.split()[:2] for line in said.out.splitlines()] == [[n, "sealed"] for n in command_names()]
    told = json.loads(call("status", "--run", run, "--json").out)
    assert Path(told["report"]).is_file() and (Path(told["model"]["path"]) / "model_index.json").is_file()
    assert all(Path(s["path"]).is_dir() for s in told["stages"].values())
    changed = (Path(run) / "dovetail.toml").read_text().replace("max_prompts = 2", "max_prompts = 3")
    Path("changed.toml").write_text(changed)
    lines = call("status", "--run", run, "--config", "changed.toml").out.splitlines()
    assert [line.split()[1] for line in lines] == ["sealed"] * 6 + ["stale"] * 4
    assert "config.max_prompts: 2 -> 3" in lines[6]


def command_names() -> list[str]:
    from dovetail.records import STAGE_NAMES

    return list(STAGE_NAMES)


def test_release_lists_promotes_and_rolls_back(call: Call, tiny_base: Path, home: Path) -> None:
    registry = Registry(home / "registry")
    for version in ("v1", "v2"):
        registry.add("cats", version, tiny_base)
        said = call("release", "promote", "cats", version, "--reason", f"try {version}")
        assert said.code == 0 and f"{version} is in force" in said.out
    assert "v1 is in force again" in call("release", "rollback", "cats").out
    listed = call("release", "list", "cats").out
    assert listed.count("promote") == 2 and "rollback" in listed and "in force: v1" in listed and "try v2" in listed


def test_serve_says_where_it_answers_and_ends_on_sigterm(tiny_base: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dovetail.cli", "serve", str(tiny_base), "--port", "0", "--set", "endpoint.engine=torch"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        assert process.stderr
        line = process.stderr.readline()
        while "answers at" not in line:
            assert line, "it ended before it answered"
            line = process.stderr.readline()
        url = next(word for word in line.split() if word.startswith("http"))
        wish = {"prompt": "a cat", "steps": 1}
        answer = httpx.post(f"{url}/v1/images/generations", json=wish, timeout=CEILING, trust_env=False)
        assert answer.status_code == 200 and answer.json()["model"] == "tiny"
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=CEILING)[1]
        assert process.returncode in (0, 130) and "Traceback" not in rest
        assert "graceful shutdown exceeded" not in rest, "it waited for what would not come"
    finally:
        process.kill()
        process.communicate()
