"""The command line: parse, call, print, exit."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dovetail import __version__
from dovetail.cli_options import BaseFlag, ConfigFlag, DryFlag, MethodFlag, RunFlag, SetFlag
from dovetail.errors import DovetailError

if TYPE_CHECKING:
    from dovetail.edges.folders import Artifact, Run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
release_app = typer.Typer(
    invoke_without_command=True, help="Stage 10 alone; or promote and roll back by hand.", rich_markup_mode=None
)
app.add_typer(release_app, name="release")


def _keys(settings: list[str] | None, **flags: Any) -> dict[str, Any]:
    from dovetail.edges import settings as edge

    given = {name.replace("__", "."): value for name, value in flags.items() if value is not None}
    nested: dict[str, Any] = {}
    for key, value in given.items():
        table, _, name = key.rpartition(".")
        (nested.setdefault(table, {}) if table else nested)[name] = value
    return edge.merged(nested, edge.pairs(settings or []))


def _work(
    stage: str, only: bool, run: str | None, config: str | None, dry_run: bool, keys: dict[str, Any]
) -> "tuple[dict[str, Artifact], Run] | None":
    from dovetail import library
    from dovetail.edges import settings
    from dovetail.edges.console import Show

    resolved, folder = library.configure(run, config, keys)
    if dry_run:
        typer.echo(settings.text(resolved, comments=False), nl=False)
        return None
    return library.advance(resolved, folder, stage, only, Show()), folder


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    """From a folder of captioned pictures to a Stable Diffusion model that is proven better, packed, and answering."""
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("run")
def run_command(
    folder: Annotated[
        str | None, typer.Argument(help="pictures with captions: metadata.jsonl, metadata.csv, or a .txt beside each")
    ] = None,
    run: RunFlag = None,
    base: BaseFlag = None,
    until: Annotated[str, typer.Option("--until", metavar="STAGE", help="last stage to bring up")] = "production",
    method: MethodFlag = None,
    steps: Annotated[int | None, typer.Option("--steps", help="optimizer steps (training.steps)")] = None,
    config: ConfigFlag = None,
    settings: SetFlag = None,
    dry_run: DryFlag = False,
) -> None:
    """All ten stages on a folder of pictures. Run again: nothing is done twice."""
    from dovetail.records import STAGE_NAMES

    if until not in STAGE_NAMES:
        raise DovetailError(f"there is no stage {until}", do=f"give one of {', '.join(STAGE_NAMES)}")
    keys = _keys(settings, sourcing__folder=folder, base=base, training__method=method, training__steps=steps)
    done = _work(until, False, run, config, dry_run, keys)
    if done:
        _closing_words(*done)


def _closing_words(sealed: "dict[str, Artifact]", run: "Run") -> None:
    from dovetail import report

    typer.echo("\n".join(report.closing_words(sealed, run, _this_command())))


def _this_command() -> str:
    """How the user can call this program again, with the registry that it used."""
    home = f"DOVETAIL_HOME={shlex.quote(os.environ['DOVETAIL_HOME'])} " if "DOVETAIL_HOME" in os.environ else ""
    return home + ("dovetail" if shutil.which("dovetail") else shlex.quote(sys.argv[0]))


def _add_verb(stage: str, verb: str, about: str) -> None:
    def command(
        run: RunFlag = None,
        base: BaseFlag = None,
        config: ConfigFlag = None,
        settings: SetFlag = None,
        dry_run: DryFlag = False,
    ) -> None:
        done = _work(stage, True, run, config, dry_run, _keys(settings, base=base))
        if done:
            artifact = done[0][stage]
            typer.echo(f"{artifact.folder}")

    command.__doc__ = about + " The stages before it must be sealed."
    app.command(verb)(command)


_add_verb("gathering", "gather", "Stage 2 alone: bring the bytes home.")
_add_verb("wrangling", "wrangle", "Stage 3 alone: keep what is worth learning, say why the rest is not.")
_add_verb("buildout", "build", "Stage 4 alone: train / validation / test, an imagefolder.")
_add_verb("processing", "process", "Stage 5 alone: pictures and words to latents and embeddings.")
_add_verb("training", "train", "Stage 6 alone: teach the U-Net.")
_add_verb("repo", "publish", "Stage 8 alone: construct the model repository.")


@app.command("evaluate")
def evaluate_command(
    run: RunFlag = None,
    base: BaseFlag = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="time for samples: prompts and seeds are planned for the most power")
    ] = None,
    config: ConfigFlag = None,
    settings: SetFlag = None,
    dry_run: DryFlag = False,
) -> None:
    """Stage 7 alone: is the tuned model better than its base? The stages before it must be sealed."""
    done = _work("evaluation", True, run, config, dry_run, _keys(settings, base=base, evaluation__minutes=minutes))
    if done:
        typer.echo(f"{done[0]['evaluation'].folder}")


@app.command("source")
def source_command(
    folder: Annotated[str | None, typer.Argument(help="pictures with captions")] = None,
    run: RunFlag = None,
    config: ConfigFlag = None,
    settings: SetFlag = None,
    dry_run: DryFlag = False,
) -> None:
    """Stage 1 alone: where are the pairs, whose are they?"""
    done = _work("sourcing", True, run, config, dry_run, _keys(settings, sourcing__folder=folder))
    if done:
        typer.echo(f"{done[0]['sourcing'].folder}")


@app.command("serve")
def serve_command(
    model: Annotated[
        str | None, typer.Argument(help="a folder, a registry name, or embedded [default: what the run published]")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="address to listen on (endpoint.host)")] = None,
    port: Annotated[int | None, typer.Option("--port", help="port to listen on, 0 for any free one (endpoint.port)")] = None,
    replicas: Annotated[
        int | None, typer.Option("--replicas", help="processes that answer, by Ray Serve; 0 is without (endpoint.replicas)")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="stage 9 alone: start on what the run published, ask for one picture, stop")
    ] = False,
    run: RunFlag = None,
    config: ConfigFlag = None,
    settings: SetFlag = None,
) -> None:
    """Stage 9: answer requests until stopped; a registry name is followed as it is promoted and rolled back."""
    from dovetail import library

    keys = _keys(settings, endpoint__host=host, endpoint__port=port, endpoint__replicas=replicas)
    if check:
        done = _work("endpoint", True, run, config, False, keys)
        if done:
            typer.echo(f"{done[0]['endpoint'].folder}")
        return
    with contextlib.suppress(KeyboardInterrupt):  # that is how it ends
        if model is None or run or config:
            resolved, _ = library.configure(run, config, keys)
            library.serve(model or resolved.repo.name, resolved.endpoint, resolved.repo.registry)
        else:
            from dovetail.edges import settings as edge

            library.serve(model, edge.validated(keys, "the flags").endpoint)


@app.command("trace")
def trace_command(
    picture: Annotated[str, typer.Argument(help="a PNG from an endpoint")],
    registry: Annotated[str | None, typer.Option("--registry", metavar="DIR", help="where models are published")] = None,
) -> None:
    """From a painted picture back to its model, the training, and the pictures that it learnt from."""
    from dovetail import trace

    typer.echo("\n".join(trace.lines(Path(picture), registry)))


@app.command("paint")
def paint_command(
    model: Annotated[str, typer.Argument(help="a folder, a registry name, or embedded")],
    prompt: Annotated[str, typer.Argument(help="what to paint")],
    seed: Annotated[int, typer.Option("--seed")] = 0,
    steps: Annotated[int, typer.Option("--steps", min=1, max=1000)] = 20,
    guidance_scale: Annotated[float | None, typer.Option("--guidance-scale", min=1.0)] = None,
    negative_prompt: Annotated[str, typer.Option("--negative-prompt")] = "",
    lora_scale: Annotated[float, typer.Option("--lora-scale", help="0 the base, 1 as tuned", min=0.0, max=2.0)] = 1.0,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="PNG to write")] = "picture.png",
) -> None:
    """One picture, without a server."""
    from dovetail import library

    library.paint(
        model, prompt, seed=seed, steps=steps, guidance_scale=guidance_scale, negative_prompt=negative_prompt,
        lora_scale=lora_scale, out=out,
    )  # fmt: skip
    typer.echo(out)


@app.command("plan")
def plan_command(
    folder: Annotated[str | None, typer.Argument(help="pictures with captions")] = None,
    run: RunFlag = None,
    base: BaseFlag = None,
    method: MethodFlag = None,
    steps: Annotated[int | None, typer.Option("--steps", help="optimizer steps (training.steps)")] = None,
    gpus: Annotated[str | None, typer.Option("--gpus", metavar="FILE", help="table of GPUs and prices")] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="what a Stable Diffusion itself costs")] = False,
    config: ConfigFlag = None,
    settings: SetFlag = None,
) -> None:
    """Before money is spent: time, memory, disk and cost of the training, here and on GPUs for hire."""
    from dovetail import library, plan
    from dovetail.edges.console import Show

    offers = plan.gpus(gpus)
    if from_scratch:
        typer.echo("\n".join(plan.from_scratch(offers)))
        return
    keys = _keys(settings, sourcing__folder=folder, base=base, training__method=method, training__steps=steps)
    resolved, place = library.configure(run or "runs/plan", config, keys)
    typer.echo("\n".join(plan.lines(resolved, place, offers, Show(quiet=True))))


@app.command("status")
def status_command(
    run: RunFlag = None,
    config: ConfigFlag = None,
    as_json: Annotated[bool, typer.Option("--json", help="with the paths of all artifacts")] = False,
) -> None:
    """What is sealed, stale or missing, and why, field by field."""
    import json

    from dovetail import library, pipeline

    resolved, folder = library.configure(run, config, {})
    found = pipeline.status(resolved, folder)
    if not as_json:
        for s in found:
            typer.echo(f"{s.stage:<11} {s.state:<8} {'; '.join(s.why) or (s.artifact.folder if s.artifact else '')}")
        return
    typer.echo(json.dumps(library.inventory(folder, found), indent=2))


@app.command("init")
def init_command(
    file: Annotated[str, typer.Argument(help="file to write")] = "dovetail.toml",
    force: Annotated[bool, typer.Option("--force", help="overwrite it where it exists")] = False,
) -> None:
    """Write a commented dovetail.toml."""
    from dovetail.config import Config
    from dovetail.edges import folders, settings

    if Path(file).exists() and not force:
        raise DovetailError(f"{file} exists already", do="give another name, or --force")
    folders.write_bytes(Path(file), settings.text(Config(), comments=True).encode())
    typer.echo(file)


@release_app.callback()
def release_command(
    context: typer.Context,
    run: RunFlag = None,
    config: ConfigFlag = None,
    settings: SetFlag = None,
    dry_run: DryFlag = False,
) -> None:
    """Stage 10 alone: release what was published, if the proof allows it."""
    if context.invoked_subcommand is None:
        done = _work("production", True, run, config, dry_run, _keys(settings))
        if done:
            _closing_words(*done)


NameArgument = Annotated[str, typer.Argument(help="name in the registry")]
ReasonFlag = Annotated[str, typer.Option("--reason", help="kept in the record")]
RegistryFlag = Annotated[
    str | None,
    typer.Option("--registry", metavar="DIR", help="[default: $DOVETAIL_HOME/registry or ~/.dovetail/registry]"),
]


@release_app.command("promote")
def promote_command(
    name: NameArgument,
    version: Annotated[str, typer.Argument(help="version to put in force")],
    reason: ReasonFlag = "",
    registry: RegistryFlag = None,
) -> None:
    """Put a published version in force; a running endpoint follows."""
    from dovetail import library

    made = library.promote(name, version, reason, registry)
    typer.echo(f"{name}: {made.version} is in force (release {made.number})")


@release_app.command("rollback")
def rollback_command(name: NameArgument, reason: ReasonFlag = "", registry: RegistryFlag = None) -> None:
    """Put the version before the current one back in force; a running endpoint follows."""
    from dovetail import library

    made = library.rollback(name, reason, registry)
    typer.echo(f"{name}: {made.version} is in force again (release {made.number})")


@release_app.command("list")
def list_command(name: NameArgument, registry: RegistryFlag = None) -> None:
    """The release record and the published versions of a name."""
    from dovetail.edges.registry import Registry, default_root

    place = Registry(Path(registry) if registry else default_root())
    for release in place.releases(name):
        typer.echo(f"{release.number:>4}  {release.at}  {release.action:<8}  {release.version}  {release.reason}")
    typer.echo(f"published: {', '.join(place.versions(name)) or 'none'}; in force: {place.current(name) or 'none'}")


def main() -> None:
    """Run the command line; `train` with flags of the diffusers example is that example."""
    example = sys.argv[1:2] == ["train"] and any(re.match(r"--[a-z]\w*_", word) for word in sys.argv[2:])
    _answer(sys.argv[2:] if example else None)


def train_text_to_image() -> None:
    """The script of that name: all words are flags of the diffusers example."""
    _answer(sys.argv[1:])


def _answer(example: list[str] | None) -> None:
    """Every failure is one line on standard error and an exit code."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        if example is not None:
            from dovetail import flags, launch

            launch.run(*flags.parse(example))
        elif app(standalone_mode=False) == 130:  # typer turns Ctrl-C into this
            raise KeyboardInterrupt
    except DovetailError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on from here", 130)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        _explain(error)


def _explain(error: Exception) -> None:
    """What click says of wrong flags in its words; anything else is ours to answer for, with a file to send."""
    show = getattr(error, "format_message", None)
    if show is not None:
        _fail(f"{show()}; see dovetail --help", 2)
    if type(error).__name__ == "Abort":
        _fail("stopped; the same command goes on from here", 130)
    from dovetail.errors import unexpected

    _fail(*unexpected(error))


def _fail(text: str, code: int) -> None:
    print(f"dovetail: {text}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
