"""What a picture says of itself, in the text chunks of its PNG: enough to paint it again, and to find where it came from."""

import hashlib
from dataclasses import replace

import numpy as np

from dovetail.edges import machine, pixels
from dovetail.errors import BadInputError
from dovetail.wishes import Painted, Served, Wish, WishError, tagged

MOST_PIXELS = 2**24  # of a picture to begin from
NUMBERS = {
    "seed": int, "steps": int, "guidance_scale": float, "strength": float, "width": int, "height": int, "lora_scale": float,
}  # fmt: skip


def painted(picture: np.ndarray, wish: Wish, served: Served, engine: str) -> Painted:
    """The finished PNG of a uint8 (height, width, 3) picture, with its receipt."""
    data = pixels.png(picture, receipt(wish, served, engine))
    return Painted(png=data, wish=wish, model=served.name, version=served.version, digest=served.digest)


def receipt(wish: Wish, served: Served, engine: str) -> dict[str, str]:
    """The text chunks: parameters by name, the model, what painted; and a line that A1111's readers know."""
    told = {
        "prompt": wish.prompt, "negative_prompt": wish.negative_prompt, "seed": str(wish.seed), "steps": str(wish.steps),
        "guidance_scale": f"{wish.guidance_scale!r}", "sampler": wish.sampler, "width": str(wish.width),
        "height": str(wish.height), "model": served.name, "version": served.version, "digest": served.digest,
        "engine": f"{engine}, {machine.threads()} threads",
    }  # fmt: skip
    if wish.image:
        told |= {"strength": f"{wish.strength!r}", "image_sha256": hashlib.sha256(wish.image).hexdigest()}
    if wish.lora_scale != 1:
        told["lora_scale"] = f"{wish.lora_scale!r}"
    if served.run:
        told["run"] = served.run
    negative = f"\nNegative prompt: {wish.negative_prompt}" if wish.negative_prompt else ""
    told["parameters"] = (
        f"{tagged(wish, served.name)}{negative}\nSteps: {wish.steps}, Sampler: {wish.sampler}, "
        f"CFG scale: {wish.guidance_scale:g}, Seed: {wish.seed}, Size: {wish.width}x{wish.height}, "
        f"Model hash: {served.digest[:10]}, Model: {served.name}"
    )
    return told


def looked_at(image: bytes) -> None:
    """Raises WishError where these bytes are no picture, or one of too many pixels; nothing is decoded."""
    try:
        width, height = pixels.header(image)
    except BadInputError as error:
        raise WishError("the image is not a picture that can be read", "image") from error
    if width * height > MOST_PIXELS:
        raise WishError(f"the image has {width}x{height} pixels, more than {MOST_PIXELS}", "image")


def wish_of(png: bytes) -> tuple[Wish, dict[str, str]]:
    """The wish that a PNG of ours came from, and its whole receipt. Raises WishError where it has none.

    A picture that another one was begun from is not in it: that wish comes back without, and `image_sha256` says which it was.
    """
    told = pixels.texts(png)
    missing = [name for name in ("prompt", "seed", "steps", "guidance_scale", "width", "height", "digest") if name not in told]
    if missing:
        raise WishError(
            f"this PNG does not say its {missing[0]}: it was not painted by this endpoint, or it was changed", "image"
        )
    try:
        numbers = {name: kind(told[name]) for name, kind in NUMBERS.items() if name in told}
    except ValueError as error:
        raise WishError("the settings in this PNG are not numbers", "image") from error
    wish = Wish(prompt=told["prompt"], seed=numbers["seed"], steps=numbers["steps"], guidance_scale=numbers["guidance_scale"],
                width=numbers["width"], height=numbers["height"])  # fmt: skip
    return replace(
        wish, negative_prompt=told.get("negative_prompt", ""), sampler=told.get("sampler", ""),
        strength=numbers.get("strength", 1.0), lora_scale=numbers.get("lora_scale", 1.0),
    ), told  # fmt: skip


def difference(png: bytes, again: Painted, told: dict[str, str]) -> str:
    """Why a picture painted again is not the same to the byte; empty where it is. `told` is what the first one says."""
    if png == again.png:
        return ""
    if told["digest"] != again.digest:
        return f"another model: it was painted by {told['digest'][:12]}, this is {again.digest[:12]}"
    here = pixels.texts(again.png)
    if told.get("engine") != here["engine"]:
        return f"another engine: it was painted by {told.get('engine', 'one it does not name')}, this is {here['engine']}"
    if "image_sha256" in told:
        return "it was begun from another picture, which is not in the PNG"
    changed = [name for name in here if told.get(name) != here[name]]
    return f"its text was changed ({', '.join(changed)})" if changed else "its pixels, or the way they are packed, were changed"
