"""Stage 3, data wrangling: keep what is worth learning, say why the rest is not."""

from typing import Any

import numpy as np

from dovetail.config import Wrangling
from dovetail.core import captions, fingerprints
from dovetail.edges import pixels
from dovetail.edges.folders import Artifact, Desk, write_records
from dovetail.errors import BadInputError
from dovetail.records import Gathered, Pair, Rejected


def wrangle(haul: Artifact, config: Wrangling, desk: Desk) -> None:
    """Haul -> pairs (`records.jsonl`) and what is not worth learning (`rejected.jsonl`), each with its reason."""
    known = _examined_before(config, desk)
    pairs: list[Pair] = []
    rejected = haul.records(Rejected, "rejected.jsonl")
    seen: dict[str, str] = {}
    found = haul.records(Gathered)
    for item in desk.show.track(found, "wrangling", len(found)):
        outcome = _examine(item, config, desk, known.get(item.key))
        if isinstance(outcome, Pair) and outcome.pixels_key in seen:
            detail = f"the same picture as {seen[outcome.pixels_key]}"
            outcome = Rejected(name=item.name, key=item.key, reason="duplicate", detail=detail)
        if isinstance(outcome, Rejected):
            rejected.append(outcome)
        else:
            seen[outcome.pixels_key] = item.name
            pairs.append(outcome)
    if not pairs:
        reasons = ", ".join(sorted({r.reason for r in rejected}))
        raise BadInputError(
            f"none of the {len(found)} pictures can be used ({reasons})", do="look at the pictures and captions"
        )
    write_records(desk.folder / "records.jsonl", pairs)
    write_records(desk.folder / "rejected.jsonl", rejected)


def _examine(item: Gathered, config: Wrangling, desk: Desk, known: Pair | None) -> Pair | Rejected:
    """The verdict on one picture; `known` is an earlier one on the same bytes under the same rules."""
    caption = captions.cleaned(item.caption)
    if fault := captions.fault(caption, config.max_caption_characters):
        return Rejected(name=item.name, key=item.key, reason=fault[0], detail=fault[1])
    told: dict[str, Any] = {
        "name": item.name,
        "caption": caption,
        "licence": item.licence,
        "author": item.author,
        "origin": item.origin,
        "group": item.group,
    }
    if known is not None:
        seen = {f: getattr(known, f) for f in ("key", "pixels_key", "width", "height", "fingerprint", "colours")}
        return Pair(**seen, **told)
    data = desk.run.object_path(item.key).read_bytes()
    try:
        if fault := _size_fault(*pixels.header(data), config):
            return Rejected(name=item.name, key=item.key, reason=fault[0], detail=fault[1])
        decoded = pixels.decode(data, _rgb(config.background))
    except BadInputError as error:
        return Rejected(name=item.name, key=item.key, reason="cannot be decoded", detail=str(error))
    picture = decoded.pixels
    grey = pixels.resized(picture, 32, 32).astype(np.float64) @ (0.299, 0.587, 0.114)
    return Pair(
        key=item.key,
        pixels_key=item.key if decoded.as_it_is else desk.run.put(pixels.png(picture)),
        width=picture.shape[1],
        height=picture.shape[0],
        fingerprint=fingerprints.perceptual_hash(grey),
        colours=fingerprints.colour_signature(pixels.resized(picture, 4, 4)),
        **told,
    )


def _size_fault(width: int, height: int, config: Wrangling) -> tuple[str, str] | None:
    if min(width, height) < config.min_side:
        return "too small", f"{width}x{height} pixels, the shorter side must be {config.min_side} or more"
    if width * height > config.max_pixels:
        return "too large", f"{width}x{height} pixels, at most {config.max_pixels:,} in all"
    if max(width, height) / min(width, height) > config.max_aspect_ratio:
        return "too long a shape", f"{width}x{height} pixels, sides may differ {config.max_aspect_ratio:g} times"
    return None


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _examined_before(config: Wrangling, desk: Desk) -> dict[str, Pair]:
    """Pairs of earlier artifacts made under the same rules, by the key of their bytes: they need no second decoding."""
    asked = config.model_dump(mode="json")
    return {
        pair.key: pair
        for artifact in desk.before
        if artifact.manifest.asked["config"] == asked
        for pair in artifact.records(Pair)
    }
