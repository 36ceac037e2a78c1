"""The verbs, as functions: what `import dovetail` offers and what the CLI calls."""

import contextlib
import gc
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dovetail import bases, pipeline, report
from dovetail.config import Config, Endpoint
from dovetail.edges import compiler, settings
from dovetail.edges.console import Show
from dovetail.edges.folders import Artifact, Run, write_bytes
from dovetail.edges.registry import Registry, default_root, safe_name
from dovetail.engines.fused import SOURCES
from dovetail.errors import BadConfigError, ModelError
from dovetail.pipeline import Standing
from dovetail.records import Release

CONFIG_FILE = "dovetail.toml"


def configure(run: str | None, config_file: str | None, keys: dict[str, Any]) -> tuple[Config, Run]:
    """The resolved configuration and the run folder.

    `keys` are nested tables laid over the configuration file: the one named, else ./dovetail.toml, else the copy
    that the run folder keeps. The run folder is `runs/<name of the pictures' folder>` where none is named.
    """
    kept = Path(run) / CONFIG_FILE if run else None
    choices = [Path(config_file)] if config_file else [p for p in (Path(CONFIG_FILE), kept) if p is not None and p.exists()]
    data = settings.merged(settings.read(choices[0]) if choices else {}, keys)
    config = settings.validated(data, str(choices[0]) if choices else "the flags")
    if run is None:
        if not config.sourcing.folder:
            raise BadConfigError(
                "no run folder is named and no folder of pictures",
                do="give --run DIR, or [sourcing] folder in dovetail.toml",
            )
        run = str(Path("runs") / safe_name(Path(config.sourcing.folder).resolve().name))
    return _resolved(config), Run(Path(run).expanduser())


def _resolved(config: Config) -> Config:
    """What is left open by the file and follows from the rest: absolute folder, name and registry."""
    folder = str(Path(config.sourcing.folder).expanduser().resolve()) if config.sourcing.folder else ""
    name = config.repo.name or (safe_name(Path(folder).name) if folder else "")
    registry = str(Path(config.repo.registry).expanduser().resolve()) if config.repo.registry else str(default_root())
    return config.model_copy(
        update={
            "sourcing": config.sourcing.model_copy(update={"folder": folder}),
            "repo": config.repo.model_copy(update={"name": safe_name(name) if name else "", "registry": registry}),
        }
    )


def advance(config: Config, run: Run, until: str, only: bool, show: Show) -> dict[str, Artifact]:
    """Bring the run up to `until`, keep the configuration beside it, write the report."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large pages; PyTorch reads it as it starts
    compiler.ahead(SOURCES)
    sealed = pipeline.run(config, run, show, until, only, text=settings.text(config, comments=False))
    later = {s.stage: s.artifact for s in pipeline.status(config, run) if s.artifact}
    report.write(config, run, {"base": sealed["base"]} | later)
    return sealed


def run(
    folder: str = "",
    *,
    run: str | None = None,
    until: str = "production",
    config: str | None = None,
    quiet: bool = True,
    **keys: Any,
) -> dict[str, Artifact]:
    """All stages up to `until`, on a folder of captioned pictures; what is sealed is not done again.

    `keys` are tables of the configuration: `run("pictures", training={"steps": 400})`.
    """
    tables = settings.merged(keys, {"sourcing": {"folder": folder}} if folder else {})
    resolved, place = configure(run, config, tables)
    return advance(resolved, place, until, False, Show(quiet))


def _verb(stage: str) -> Any:
    def verb(*, run: str | None = None, config: str | None = None, quiet: bool = True, **keys: Any) -> Artifact:
        resolved, place = configure(run, config, {stage: keys} if keys else {})
        return advance(resolved, place, stage, True, Show(quiet))[stage]

    verb.__name__ = verb.__qualname__ = next(s.verb for s in pipeline.STAGES if s.name == stage)
    verb.__doc__ = f"The stage `{stage}` alone, on what the stages before it left; keywords are keys of its table."
    return verb


source, gather, wrangle, build, process = (_verb(s) for s in ("sourcing", "gathering", "wrangling", "buildout", "processing"))
train, evaluate, publish, release = (_verb(s) for s in ("training", "evaluation", "repo", "production"))


def status(run: str | None = None, config: str | None = None) -> list[Standing]:
    """Where each stage of a run stands."""
    return pipeline.status(*configure(run, config, {}))


def inventory(place: Run, found: list[Standing]) -> dict[str, Any]:
    """The state, path and content of each stage's artifact, and of the published model, for programs to read."""
    artifacts = {s.stage: s.artifact for s in found if s.artifact}
    stages: dict[str, Any] = {s.stage: {"state": s.state, "why": list(s.why), "path": None, "content": None} for s in found}
    for stage, artifact in artifacts.items():
        stages[stage] |= {"path": str(artifact.folder.resolve()), "content": artifact.content}
    model = None
    if "repo" in artifacts:
        folder = artifacts["repo"].folder
        model = json.loads((folder / "published.json").read_text()) | {"path": str((folder / "model").resolve())}
    return {
        "run": str(place.root.resolve()),
        "report": str((place.root / "report.html").resolve()),
        "stages": stages,
        "model": model,
    }


def _located(model: str, registry: Registry) -> tuple[Path, str, str]:
    """Folder, name and version of `embedded`, a folder, or a registry name (`name` or `name@version`)."""
    folder = Path(model).expanduser()
    # A folder of pictures may have the name of what was made of them.
    named = not (folder / "model_index.json").exists() and model.partition("@")[0] in registry.names()
    if model == "embedded" or (folder.is_dir() and not named):
        folder = bases.find(model)
        return folder, "embedded" if model == "embedded" else safe_name(folder.name), "local"
    folder, version = registry.find(model)
    return folder, model.partition("@")[0], version


def paint(
    model: str,
    prompt: str,
    *,
    seed: int = 0,
    steps: int = 20,
    guidance_scale: float | None = None,
    negative_prompt: str = "",
    lora_scale: float = 1.0,
    out: str | None = None,
) -> bytes:
    """One picture as PNG bytes, written to `out` where given. `model`: a folder, a registry name, or `embedded`.

    `lora_scale` is for a model that was tuned with a LoRA: 0 its base, 1 as published, at most 2. Raises ModelError.
    """
    with _importing():
        from dovetail.engines.studio import Studio
        from dovetail.stages import endpoint
        from dovetail.wishes import Caller, UnpaintableError, Wish, WishError

    folder, name, version = _located(model, Registry(default_root()))
    studio = Studio(endpoint.opened(folder, name, version))
    side, scale = studio.served.side, guidance_scale or bases.hints(folder).guidance_scale
    wish = Wish(
        prompt=prompt, negative_prompt=negative_prompt, seed=seed, steps=steps, guidance_scale=scale, width=side, height=side,
        lora_scale=lora_scale,
    )  # fmt: skip
    try:
        picture = studio.submit([wish], Caller())[0].future.result().png
    except (WishError, UnpaintableError) as error:
        raise ModelError(str(error), do="ask for something else") from error
    finally:
        studio.close()
    if out:
        write_bytes(Path(out), picture)
    return picture


def serve(model: str, config: Endpoint | None = None, registry: str | None = None, quiet: bool = False) -> None:
    """Answer requests until stopped; a registry name is followed as it is promoted and rolled back."""
    with _importing():
        from dovetail.stages import endpoint

    place = Registry(Path(registry) if registry else default_root())
    first, name, _ = _located(model, place)

    def find() -> tuple[Path, str]:
        folder, _, version = _located(model, place)
        return folder, version

    def base(folder: Path) -> Path | None:
        try:
            told = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["base"]["name"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return bases.find(str(told))

    endpoint.serve(find, name, bases.hints(first).guidance_scale, config or Endpoint(), Show(quiet), base)


def promote(name: str, version: str, reason: str = "", registry: str | None = None) -> Release:
    """Put a published version in force."""
    return Registry(Path(registry) if registry else default_root()).promote(name, version, reason)


def rollback(name: str, reason: str = "", registry: str | None = None) -> Release:
    """Put the version before the current one back in force."""
    return Registry(Path(registry) if registry else default_root()).rollback(name, reason)


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """What comes into being now stays: to look through it for garbage, again and again, takes a quarter of the time."""
    if "dovetail.stages.endpoint" in sys.modules:  # there already: what is garbage by now may go
        yield
        return
    looked = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor later
        if looked:
            gc.enable()
