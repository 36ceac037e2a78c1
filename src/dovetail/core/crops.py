"""From a picture of any shape to the shape that the model learns: where to cut, and whether to mirror."""

from dataclasses import dataclass

from dovetail.core.digests import unit_interval

RANDOM_CROPS = 4  # variants cached where crops are random
CLOSEST = 0.2  # of a side that a closer view leaves out at most


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One way to see a picture: scale it to (width, height), cut the shape at (left, top), mirror it or not."""

    width: int
    height: int
    left: int
    top: int
    mirrored: bool


def told(view: View, width: int, height: int, shape: tuple[int, int]) -> tuple[int, ...]:
    """What a Stable Diffusion XL is told of a view (Podell et al. 2023, sec. 2.2), in pixels.

    Height and width of the picture as it was; top and left of the cut in the scaled picture (in the mirrored one where it is
    mirrored); height and width of the cut.
    """
    left = view.width - shape[0] - view.left if view.mirrored else view.left
    return (height, width, view.top, left, shape[1], shape[0])


def views(
    width: int, height: int, shape: tuple[int, int], *, centre: bool, flip: bool, key: str, closer: int = 0
) -> list[View]:
    """The views of `shape` (width, height) that are cached, each also mirrored.

    The centre, or `RANDOM_CROPS` places that follow from the picture's key; then `closer` random cut-outs, whose sides are up
    to `CLOSEST` shorter. The picture is scaled until it just covers the shape, or more for a closer view; nothing is stretched.
    """
    cover = max(shape[0] / width, shape[1] / height)

    def scaled(scale: float) -> tuple[int, int]:
        return max(shape[0], round(width * scale)), max(shape[1], round(height * scale))

    whole = scaled(cover)
    room = (whole[0] - shape[0], whole[1] - shape[1])
    if centre or room == (0, 0):
        cuts = [(whole, (room[0] // 2, room[1] // 2))]
    else:
        cuts = [(whole, _corner(whole, shape, key, str(n))) for n in range(RANDOM_CROPS)]
    for n in range(closer):
        size = scaled(cover / (1 - CLOSEST * unit_interval(key, "closer", str(n))))
        cuts.append((size, _corner(size, shape, key, f"closer {n}")))
    return [
        View(width=size[0], height=size[1], left=left, top=top, mirrored=mirrored)
        for size, (left, top) in cuts
        for mirrored in ((False, True) if flip else (False,))
    ]


def _corner(size: tuple[int, int], shape: tuple[int, int], key: str, number: str) -> tuple[int, int]:
    """(left, top) of a cut that follows from the picture's key."""
    across, down = (unit_interval(key, side, number) * (size[i] - shape[i] + 1) for i, side in enumerate(("left", "top")))
    return int(across), int(down)
