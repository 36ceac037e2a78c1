"""From a painted picture back to the rows that its model learnt from."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from dovetail.edges import pixels
from dovetail.edges.registry import Registry, default_root
from dovetail.errors import BadInputError


def lines(picture: Path, registry: str | None = None) -> list[str]:
    """What the picture says of itself, the model that painted it, the training, and each picture that it learnt from.

    `registry` is the folder of published models, where it is not the usual one.
    Raises BadInputError where the file is no picture of ours, or its model is not in the registry.
    """
    from dovetail.stages import endpoint

    place, told = Registry(Path(registry) if registry else default_root()), _receipt(picture)
    asked = "".join(
        f", {name} {told[name]}" for name in ("steps", "guidance_scale", "sampler", "strength", "lora_scale") if name in told
    )
    found = [f"{picture.name}: {told['prompt']!r}, seed {told['seed']}{asked}"]
    found.append(f"painted by {told['model']} {told['version']}, weights {told['digest'][:16]}, by {told.get('engine', '?')}")
    folder = place.version_folder(told["model"], told["version"])
    if not folder.is_dir():
        if told["model"] == "embedded":
            return [*found, "the embedded base: recipes/embedded_base says what it learnt from"]
        raise BadInputError(
            f"{told['model']} {told['version']}, which painted {picture.name}, is not in {place.root}",
            do="give the one that it was served from with --registry",
        )
    if endpoint.digest_of(folder) != told["digest"]:
        found.append("warning: that version has other weights now than those that painted the picture")
    return found + _learnt(folder)


def _receipt(picture: Path) -> dict[str, str]:
    try:
        told = pixels.texts(picture.read_bytes())
    except OSError as error:
        raise BadInputError(f"cannot read {picture}: {error.strerror}", do="check the path") from error
    missing = [name for name in ("prompt", "seed", "model", "version", "digest") if name not in told]
    if missing:
        raise BadInputError(
            f"{picture} does not say its {missing[0]}: it was not painted here, or what it said was taken away",
            do="give the PNG as it came from the endpoint",
        )
    return told


def _learnt(folder: Path) -> list[str]:
    """The rows of a published model's provenance."""
    try:
        told: dict[str, Any] = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        base, asked = told["base"], told["checkpoint"]["asked"]
        rows = [row for row in told["pictures"] if row["split"] == "train"]
        found = [f"tuned from {base['name']} ({base['content'][:16]}) by training {told['checkpoint']['content'][:16]}"]
        found += [f"asked for: {json.dumps(asked.get('config', asked), sort_keys=True)}"]
        licences = ", ".join(f"{count} {name}" for name, count in Counter(r["license"] for r in rows).most_common())
        found += [f"learnt from {len(rows)} pictures of dataset {told['dataset']['content'][:16]} ({licences}):"]
        said = ("name", "caption", "license", "author", "origin")
        return found + [f"  {row['sha256'][:12]}  " + "  ".join(str(row[k]) for k in said if row.get(k)) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInputError(f"the provenance in {folder} cannot be read", do="publish the model again") from error
