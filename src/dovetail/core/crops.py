"""From a picture of any shape to the shape that the model learns: where to cut, and whether to mirror."""

from dataclasses import dataclass

from dovetail.core.digests import unit_interval

RANDOM_CROPS = 4  # variants cached where crops are random
SCALED, SHIFTED = 0.15, 0.06  # of a moved view: how much larger or smaller at most, and shares of a side beyond the edge


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One way to see a picture: scale it to (width, height), cut the shape at (left, top), mirror it or not.

    A cut that goes over an edge sees a plain background go on there, and any other picture mirrored.
    """

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
    return (height, width, max(0, view.top), max(0, left), shape[1], shape[0])


def views(width: int, height: int, shape: tuple[int, int], *, centre: bool, flip: bool, key: str, moved: int = 0) -> list[View]:
    """The views of `shape` (width, height) that are cached, each also mirrored.

    The centre, or `RANDOM_CROPS` places that follow from the picture's key; the picture is scaled until it just covers the
    shape. Then `moved` views of another scale and place, by chance that follows from the key. Nothing is stretched.
    """
    cover = max(shape[0] / width, shape[1] / height)
    whole = (max(shape[0], round(width * cover)), max(shape[1], round(height * cover)))
    room = (whole[0] - shape[0], whole[1] - shape[1])
    if centre or room == (0, 0):
        cuts = [(whole, (room[0] // 2, room[1] // 2))]
    else:
        cuts = [(whole, _corner(room, key, str(n))) for n in range(RANDOM_CROPS)]
    for n in range(moved):
        scale = cover * (1 + SCALED) ** (2 * unit_interval(key, "scale", str(n)) - 1)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        cuts.append((size, _corner((size[0] - shape[0], size[1] - shape[1]), key, f"moved {n}", round(SHIFTED * min(shape)))))
    return [
        View(width=size[0], height=size[1], left=left, top=top, mirrored=mirrored)
        for size, (left, top) in cuts
        for mirrored in ((False, True) if flip else (False,))
    ]


def _corner(room: tuple[int, int], key: str, number: str, beyond: int = 0) -> tuple[int, int]:
    """(left, top) of a cut, from one end of the room to the other and up to `beyond` pixels over it, by the picture's key."""
    left, top = (
        min(0, space) - beyond + int(unit_interval(key, side, number) * (abs(space) + 2 * beyond + 1))
        for side, space in zip(("left", "top"), room, strict=True)
    )
    return left, top
