"""What all tests share: a home of their own, no network, a tiny base, and one whole run on it."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Before any library is imported: they read these once.
_HOME = tempfile.TemporaryDirectory(prefix="dovetail-tests-")
os.environ |= {
    "HF_HUB_OFFLINE": "1", "HF_HOME": f"{_HOME.name}/hf", "DOVETAIL_HOME": f"{_HOME.name}/home",
    "MPLCONFIGDIR": f"{_HOME.name}/mpl", "OMP_NUM_THREADS": "1", "NO_COLOR": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait take the processor from those that they wait for
}  # fmt: skip
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import pytest  # noqa: E402
import schooling  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402
import tuned as tuning  # noqa: E402

from dovetail import library  # noqa: E402
from dovetail.edges.folders import Artifact, Run  # noqa: E402
from dovetail.engines.material import Material  # noqa: E402
from dovetail.engines.revisions import Revision  # noqa: E402
from dovetail.stages import endpoint  # noqa: E402

torch.set_num_threads(1)
ROOT = Path(__file__).parent.parent


@pytest.fixture
def two_threads() -> Iterator[None]:
    """For what is shared out among threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Finished:
    """A whole run that is only looked at; copy what you change."""

    run: Path
    pictures: Path
    base: Path
    home: Path
    sealed: dict[str, Artifact]

    @property
    def model(self) -> Path:
        return self.sealed["repo"].folder / "model"


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh DOVETAIL_HOME for each test."""
    place = tmp_path_factory.mktemp("home", numbered=True)
    monkeypatch.setenv("DOVETAIL_HOME", str(place))
    return place


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def tuned(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a LoRA on its U-Net and its text encoder, as it is published."""
    return tuning.write_tuned(tmp_path_factory.mktemp("tuned") / "tuned", tiny_base)


@pytest.fixture(scope="session")
def by_engine(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Revision]:
    """That model by each engine, opened once: OpenVINO takes seconds to make its own of it."""
    place, found = tmp_path_factory.mktemp("engines"), dict[str, Revision]()

    def opened(engine: str) -> Revision:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOVETAIL_HOME", str(place))
            return found.get(engine) or found.setdefault(engine, endpoint.opened(tuned, "tuned", "1", engine))

    return opened


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tiny.write_pictures(tmp_path / "things")


@pytest.fixture
def run_folder(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Iterator[Finished]:
    """All ten stages on fourteen pictures, one of them called `train station.jpg`, and some that must be rejected."""
    place = tmp_path_factory.mktemp("finished")
    pictures = tiny.write_pictures(place / "things")
    tiny.add_picture(
        pictures, "train station.jpg", "a train station | with a pipe 🚉", tiny.drawing("round", "blue", (60, 60)).rotate(31)
    )
    tiny.add_picture(pictures, "broken.png", "a broken one", (pictures / "plain-red.png").read_bytes()[:90])
    tiny.add_picture(pictures, "nothing.png", "an empty one", b"")
    tiny.add_picture(pictures, "wordy.png", "word " * 1000, tiny.drawing("dotted", "red", (70, 50)).rotate(45))
    with (pictures / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "absent.png", "text": "<script>alert(1)</script>"}\n')
    before, os.environ["DOVETAIL_HOME"] = os.environ["DOVETAIL_HOME"], str(place / "home")
    try:
        sealed = library.run(str(pictures), run=str(place / "run"), base=str(tiny_base), **tiny.short())
        yield Finished(place / "run", pictures, tiny_base, place / "home", sealed)
    finally:
        os.environ["DOVETAIL_HOME"] = before


@pytest.fixture(scope="module")
def material() -> Material:
    """Five pictures to learn, two to rehearse, two to be measured on."""
    return schooling.material()
