"""Icons as small pictures in memory-mapped arrays: an alpha mask and its filled outline, or colors and alpha."""

import argparse
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyvips
from scipy.ndimage import binary_fill_holes

from recipes.embedded_base import televisions

from .selection import Icon, select

SIDE = 64  # pixels of the longer side of what is drawn
MARGIN_FREE = 8  # alpha up to which a pixel counts as empty
BATCH = 256
INVENTED, TELEVISIONS = "invented", 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A rendered icon: row `index` of `masks.npy` (one color) or of `colors.npy`."""

    icon: Icon
    colored: bool
    index: int


def svg_of(data: dict, icon: str) -> bytes:
    """A stand-alone SVG of one icon of an iconify set."""
    found = data["icons"][icon]
    width, height = (found.get(k, data.get(k, 16)) for k in ("width", "height"))
    box = f"{found.get('left', data.get('left', 0))} {found.get('top', data.get('top', 0))} {width} {height}"
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'{head} viewBox="{box}" width="{width}" height="{height}">{found["body"]}</svg>'.encode()


def render(svg: bytes, side: int = SIDE) -> np.ndarray | None:
    """RGBA uint8 (side, side, 4) of what is drawn, centered, its longer side filling the square; None where that is nothing."""
    first = pyvips.Image.svgload_buffer(svg, unlimited=True)
    rough = pyvips.Image.svgload_buffer(svg, scale=1.6 * side / max(first.width, first.height), unlimited=True)
    pixels = rough.numpy()
    seen = pixels[..., 3] > MARGIN_FREE
    if not seen.any():
        return None
    rows, columns = (np.flatnonzero(seen.any(axis=a)) for a in (1, 0))
    left, top, width, height = columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    longer = int(max(width, height))
    square = np.zeros((longer, longer, 4), np.float32)
    y, x = (longer - height) // 2, (longer - width) // 2
    part = pixels[top : top + height, left : left + width].astype(np.float32)
    square[y : y + height, x : x + width] = part
    square[..., :3] *= square[..., 3:] / 255  # premultiplied: clear pixels have no color
    small = pyvips.Image.new_from_array(square).resize(side / longer, kernel="linear" if longer < side else "lanczos2").numpy()
    small = np.clip(small[:side, :side], 0, 255)
    if small.shape[:2] != (side, side):
        small = np.pad(small, ((0, side - small.shape[0]), (0, side - small.shape[1]), (0, 0)))
    small[..., :3] = np.where(small[..., 3:] > 1, small[..., :3] * 255 / np.maximum(small[..., 3:], 1), 0)
    return np.clip(small.round(), 0, 255).astype(np.uint8)


def is_colored(picture: np.ndarray) -> bool:
    """Whether a rendering shows colors of its own: `currentColor` is black."""
    return bool(((picture[..., :3].max(axis=-1) > 40) & (picture[..., 3] > 100)).mean() > 0.01)


def filled(alpha: np.ndarray) -> np.ndarray:
    """The outline with everything that it encloses, uint8."""
    return np.where(binary_fill_holes(alpha > 100), 255, alpha).astype(np.uint8)


def _allow_svg() -> None:
    pyvips.operation_block_set("VipsForeignLoadSvg", False)  # Dovetail refuses SVG from users; this art is pinned


def _one_set(task: tuple[Path, str, list[Icon]]) -> tuple[list[Icon], list[tuple[Icon, np.ndarray]]]:
    package, set_name, icons = task
    found = []
    if set_name == INVENTED:
        return icons, [(icon, fitted(televisions.invented(int(icon.icon), side=SIDE)[1])) for icon in icons]
    data = json.loads((package / "json" / f"{set_name}.json").read_text())
    for icon in icons:
        try:
            picture = render(svg_of(data, icon.icon))
        except pyvips.Error:  # a few files of the package are broken
            continue
        if picture is not None:
            found.append((icon, picture))
    return icons, found


def invented() -> list[Icon]:
    """Televisions that no artist drew, painted by the embedded base's recipe."""
    noun = {n: televisions.invented(n, side=8)[0] for n in range(TELEVISIONS)}
    about = dict(set=INVENTED, family=INVENTED, part="train", style="")
    return [Icon(icon=str(n), name=name, **about) for n, name in noun.items()]


def fitted(picture: np.ndarray) -> np.ndarray:
    """The picture in the middle of a clear square."""
    square = np.zeros((SIDE, SIDE, 4), np.uint8)
    height, width = (min(v, SIDE) for v in picture.shape[:2])
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    square[top : top + height, left : left + width] = picture[:height, :width]
    return square


def _tasks(package: Path, icons: list[Icon]) -> Iterator[tuple[Path, str, list[Icon]]]:
    by_set: dict[str, list[Icon]] = defaultdict(list)
    for icon in icons:
        by_set[icon.set].append(icon)
    for set_name, rows in by_set.items():
        for start in range(0, len(rows), BATCH):
            yield package, set_name, rows[start : start + BATCH]


def same_picture(alpha: np.ndarray) -> bytes:
    """A coarse fingerprint: renderings of one name that share it are one drawing."""
    coarse = alpha.reshape(8, SIDE // 8, 8, SIDE // 8).mean(axis=(1, 3))
    return (coarse // 32).astype(np.uint8).tobytes()


def draw_all(package: Path, out: Path, icons: list[Icon], processes: int) -> None:
    """Add what is missing to `masks.raw` (n, 2, side, side), `colors.raw` (m, 4, side, side) and `rows.jsonl` in `out`.

    Interrupted, the same call goes on. A one-colored drawing whose twin of the same name is there already is left out.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in ("masks.raw", "colors.raw", "rows.jsonl", "seen.jsonl"):
        (out / name).touch()
    rows, masks, colors = load(out)
    counts = {False: sum(not r.colored for r in rows), True: sum(r.colored for r in rows)}
    os.truncate(out / "masks.raw", counts[False] * 2 * SIDE**2)
    os.truncate(out / "colors.raw", counts[True] * 4 * SIDE**2)
    done = {tuple(json.loads(line)) for line in (out / "seen.jsonl").read_text().splitlines()}
    twins = {(r.icon.name, same_picture(masks[r.index, 0])) for r in rows if not r.colored}
    del masks, colors
    files = [(out / name).open("ab") for name in ("masks.raw", "colors.raw")]
    lines, seen_lines = ((out / name).open("a") for name in ("rows.jsonl", "seen.jsonl"))
    missing = [icon for icon in icons if (icon.set, icon.icon) not in done]
    with get_context("spawn").Pool(processes, _allow_svg) as pool:  # libvips hangs where it is forked
        for task, part in pool.imap(_one_set, _tasks(package, missing)):
            found = []
            for icon, picture in part:
                colored = is_colored(picture)
                if not colored:
                    twin = (icon.name, same_picture(picture[..., 3]))
                    if twin in twins:
                        continue
                    twins.add(twin)
                    files[0].write(np.stack([picture[..., 3], filled(picture[..., 3])]).tobytes())
                else:
                    files[1].write(np.ascontiguousarray(picture.transpose(2, 0, 1)).tobytes())
                found.append(json.dumps(asdict(icon) | {"colored": colored, "index": counts[colored]}) + "\n")
                counts[colored] += 1
            for file in files:
                file.flush()
            lines.write("".join(found))
            lines.flush()
            seen_lines.write("".join(json.dumps([icon.set, icon.icon]) + "\n" for icon in task))
            seen_lines.flush()
    for file in (*files, lines, seen_lines):
        file.close()


def load(out: Path) -> tuple[list[Drawn], np.ndarray, np.ndarray]:
    """Rows, masks and colors (memory-mapped) that `draw_all` wrote."""
    rows = []
    for line in (out / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        colored, index = row.pop("colored"), row.pop("index")
        rows.append(Drawn(icon=Icon(**row), colored=colored, index=index))

    def read(name: str, layers: int) -> np.ndarray:
        size = (out / name).stat().st_size // (layers * SIDE**2)  # an interrupted run may leave a part of one behind
        if not size:
            return np.zeros((0, layers, SIDE, SIDE), np.uint8)
        return np.memmap(out / name, np.uint8, "r", shape=(size, layers, SIDE, SIDE))

    return rows, read("masks.raw", 2), read("colors.raw", 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, required=True, help="npm's @iconify/json, unpacked")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    draw_all(args.package, args.out / "art", [*invented(), *select(args.package)], args.processes)
    rows, masks, colors = load(args.out / "art")
    print(len(rows), "drawings,", len(masks), "of one color,", len(colors), "colored")


if __name__ == "__main__":
    main()
