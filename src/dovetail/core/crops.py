"""From a picture of any shape to the shape that the model learns: where to cut, and whether to mirror."""

from dataclasses import dataclass

from dovetail.core.digests import unit_interval

RANDOM_CROPS = 4  # variants cached where crops are random


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


def views(width: int, height: int, shape: tuple[int, int], *, centre: bool, flip: bool, key: str) -> list[View]:
    """The views of `shape` (width, height) that are cached, each also mirrored.

    The centre, or `RANDOM_CROPS` places that follow from the picture's key. The picture is scaled until it just covers the
    shape; nothing is stretched.
    """
    scale = max(shape[0] / width, shape[1] / height)
    scaled = (max(shape[0], round(width * scale)), max(shape[1], round(height * scale)))
    room = (scaled[0] - shape[0], scaled[1] - shape[1])
    if centre or room == (0, 0):
        corners = [(room[0] // 2, room[1] // 2)]
    else:
        corners = [
            (
                int(unit_interval(key, "left", str(n)) * (room[0] + 1)),
                int(unit_interval(key, "top", str(n)) * (room[1] + 1)),
            )
            for n in range(RANDOM_CROPS)
        ]
    return [
        View(width=scaled[0], height=scaled[1], left=left, top=top, mirrored=mirrored)
        for left, top in corners
        for mirrored in ((False, True) if flip else (False,))
    ]
