"""The whole system on one screen: ten stages, each takes sealed artifacts and gives one.

An artifact is named by what was asked (stage, version, own table of the configuration, content of what came before),
so running again does only what is not sealed yet; see `edges/folders.py` for how it lies on disk.
"""

import dataclasses
import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from dovetail import __version__, bases, stages
from dovetail.config import Config
from dovetail.core import digests
from dovetail.edges.folders import Artifact, Desk, Run, Showing, write_bytes
from dovetail.errors import MissingStageError
from dovetail.records import Example

if TYPE_CHECKING:
    from dovetail.edges.models import Models


@dataclasses.dataclass(frozen=True)
class Work:
    """One stage at work: its desk, the whole configuration, what came before."""

    config: Config
    desk: Desk
    inputs: dict[str, Artifact]

    def __getitem__(self, stage: str) -> Artifact:
        return self.inputs[stage]

    @cached_property
    def models(self) -> "Models":
        """The base, loaded afresh for this stage."""
        return bases.load(self["base"].folder)

    @cached_property
    def tuned(self) -> "Models":
        """The base with the trained weights in its U-Net."""
        return bases.load_tuned(self["base"].folder, self["training"], self.config.training)

    @cached_property
    def production(self) -> "Models | None":
        """The model that this one would replace."""
        version = bases.version_in_production(self.config.repo, self["training"])
        return bases.load(bases.published(self.config.repo, version)) if version else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A row of the pipeline. `version` changes when the stage would give another result for the same request."""

    name: str
    verb: str
    takes: tuple[str, ...]
    does: Callable[[Work], None]
    version: int = 1


STAGES = (
    Stage(name="sourcing", verb="source", takes=(),
          does=lambda w: stages.sourcing.source(w.config.sourcing, w.desk)),
    Stage(name="gathering", verb="gather", takes=("sourcing",),
          does=lambda w: stages.gathering.gather(w["sourcing"], w.config.gathering, w.desk)),
    Stage(name="wrangling", verb="wrangle", takes=("gathering",),
          does=lambda w: stages.wrangling.wrangle(w["gathering"], w.config.wrangling, w.desk)),
    Stage(name="buildout", verb="build", version=2, takes=("wrangling",),
          does=lambda w: stages.buildout.build(w["wrangling"], w.config.buildout, w.desk)),
    Stage(name="processing", verb="process", version=3, takes=("buildout", "base"),
          does=lambda w: stages.processing.process(
              w["buildout"], w["base"], w.models, w.config.processing, bases.hints(w["base"].folder), w.desk)),
    Stage(name="training", verb="train", version=3, takes=("processing", "base"),
          does=lambda w: stages.training.train(
              w["processing"], w.models, bases.hints(w["base"].folder), w.config.training, w.desk)),
    Stage(name="evaluation", verb="evaluate", version=2, takes=("buildout", "processing", "training", "base"),
          does=lambda w: stages.evaluation.evaluate(
              w["buildout"], w["processing"], w.models, w.tuned, w.production, bases.judge_folder(w["base"].folder),
              bases.hints(w["base"].folder), w.config.evaluation, w.desk)),
    Stage(name="repo", verb="publish", takes=("base", "wrangling", "buildout", "training", "evaluation"),
          does=lambda w: stages.repo.publish(
              w.config.base, w["base"], w["wrangling"], w["buildout"], w["training"], w["evaluation"], w.tuned,
              w.config.training.method, w.config.repo, w.desk)),
    Stage(name="endpoint", verb="serve", takes=("repo", "buildout"),
          does=lambda w: stages.endpoint.check(
              w["repo"], w["buildout"], bases.hints(w["repo"].folder / "model"), w.config.endpoint, w.desk)),
    Stage(name="production", verb="release", takes=("repo", "evaluation", "endpoint"),
          does=lambda w: stages.production.release(w["repo"], w["evaluation"], w["endpoint"], w.config.production, w.desk)),
)  # fmt: skip

State = Literal["sealed", "stale", "missing"]
APART = {"training": {"time_limit_minutes", "checkpoint_every", "checkpoints_kept"}}  # keys that no result depends on


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where one stage of a run stands."""

    stage: str
    state: State
    why: tuple[str, ...]
    artifact: Artifact | None


def run(
    config: Config, folder: Run, show: Showing, until: str = "production", only: bool = False, text: str = ""
) -> dict[str, Artifact]:
    """Bring a run up to a stage; what is sealed is not done again. Returns the artifacts by stage.

    `only`: do that one stage, and raise MissingStageError where one before it is not sealed.
    """
    sealed = {"base": bases.artifact(config.base, folder)}
    with folder.locked():
        write_bytes(folder.root / "dovetail.toml", text.encode())
        for stage in STAGES:
            asked = _asked(stage, config, sealed)
            digest = digests.of_data(asked)
            artifact = folder.find(stage.name, digest)
            if artifact is None and only and stage.name != until:
                raise MissingStageError(
                    f"{stage.name} is not done yet",
                    do=f"run `dovetail {stage.verb}` first, or `dovetail run --until {until}`",
                )
            sealed[stage.name] = artifact or _do(stage, config, folder, show, sealed, asked, digest)
            if stage.name == until:
                break
    return sealed


def _do(
    stage: Stage,
    config: Config,
    folder: Run,
    show: Showing,
    sealed: dict[str, Artifact],
    asked: dict[str, Any],
    digest: str,
) -> Artifact:
    started = time.perf_counter()
    before = [a for a in folder.all_sealed(stage.name) if a.manifest.asked["version"] == stage.version]
    desk = Desk(run=folder, folder=folder.partial(stage.name, digest), show=show, before=before)
    stage.does(Work(_settled(config, sealed), desk, {name: sealed[name] for name in stage.takes}))
    made = folder.seal(stage.name, asked, digest, time.perf_counter() - started, __version__)
    show.say(f"{stage.name:<11} sealed in {made.manifest.seconds:.1f} s")
    return made


def _asked(stage: Stage, config: Config, sealed: dict[str, Artifact]) -> dict[str, Any]:
    """What the stage is asked for: the whole of what its result depends on."""
    asked = {
        "stage": stage.name,
        "version": stage.version,
        "config": getattr(_settled(config, sealed), stage.name).model_dump(mode="json", exclude=APART.get(stage.name)),
        "inputs": {name: sealed[name].content for name in stage.takes},
    }
    if stage.name == "sourcing":
        asked["folder"] = stages.sourcing.stamp(config.sourcing)
    if stage.name == "evaluation":
        asked["production"] = bases.version_in_production(config.repo, sealed["training"])
    return asked


def _settled(config: Config, sealed: dict[str, Artifact]) -> Config:
    """With the rehearsal pictures as a number, as soon as it is known how many pictures are learned from."""
    if "buildout" not in sealed:
        return config
    learned = len({e.file for e in sealed["buildout"].records(Example) if e.split == "train"})
    few_steps = bases.FEW_STEP_FILE in sealed["base"].manifest.files
    return config.model_copy(update={"processing": config.processing.planned(learned, config.training, few_steps)})


def status(config: Config, folder: Run) -> list[Standing]:
    """Each stage: sealed, stale (what is there answers another request, and in which fields), or missing."""
    sealed: dict[str, Artifact] = {"base": bases.artifact(config.base, folder)}
    found = []
    for stage in STAGES:
        latest = next(reversed(folder.all_sealed(stage.name)), None)
        unready = [name for name in stage.takes if name not in sealed]
        if unready:
            why: tuple[str, ...] = (f"{unready[0]} is not sealed",)
            found.append(Standing(stage=stage.name, state="stale" if latest else "missing", why=why, artifact=None))
            continue
        asked = _asked(stage, config, sealed)
        artifact = folder.find(stage.name, digests.of_data(asked))
        if artifact:
            sealed[stage.name] = artifact
            found.append(Standing(stage=stage.name, state="sealed", why=(), artifact=artifact))
        elif latest:
            differing = tuple(digests.differing_fields(latest.manifest.asked, asked))
            found.append(Standing(stage=stage.name, state="stale", why=differing, artifact=None))
        else:
            found.append(Standing(stage=stage.name, state="missing", why=("never made",), artifact=None))
    return found
