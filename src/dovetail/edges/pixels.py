"""Pictures: decode, orient, colour to sRGB, flatten, resize, encode (libvips by pyvips; Pillow to compose grids)."""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dovetail.errors import BadInputError

os.environ.setdefault("VIPS_BLOCK_UNTRUSTED", "1")  # loaders that nobody fuzzes stay shut
os.environ.setdefault("VIPS_CONCURRENCY", "1")

import pyvips

SUFFIXES = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".gif": "gif",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".bmp": "bmp",
}
_PASSED_THROUGH = ("pngload_buffer", "jpegload_buffer", "webpload_buffer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A picture as 8-bit sRGB, and whether its file can be used as it is."""

    pixels: np.ndarray  # uint8 (height, width, 3)
    as_it_is: bool
    suffix: str


def header(data: bytes) -> tuple[int, int]:
    """Width and height from the header alone, nothing decoded. Raises BadInputError where the bytes are no picture."""
    if not data:
        raise BadInputError("the file is empty")
    try:
        image = _open(data)
    except pyvips.Error as error:
        raise BadInputError(f"not a picture that can be read ({_first_line(error)})") from error
    return image.width, image.height


def decode(data: bytes, background: tuple[int, int, int]) -> Decoded:
    """The upright sRGB pixels; alpha is flattened on `background`; 16 bits become 8 by scale, not by cutting.

    Raises BadInputError for a damaged or truncated file.
    """
    try:
        image = _open(data)
        fields = image.get_fields()
        plain = (
            image.get("vips-loader") in _PASSED_THROUGH
            and (image.get("orientation") if "orientation" in fields else 1) == 1
            and image.format == "uchar"
            and image.bands == 3
            and image.interpretation in ("srgb", "rgb")
            and not {"icc-profile-data", "palette", "palette-bit-depth"} & set(fields)
        )
        suffix = {"pngload_buffer": ".png", "jpegload_buffer": ".jpg", "webpload_buffer": ".webp"}.get(
            image.get("vips-loader"), ".png"
        )
        image = image.autorot()
        if "icc-profile-data" in fields:
            image = _to_srgb(image)
        if image.interpretation != "srgb" or image.format != "uchar":
            image = image.colourspace("srgb")
        if image.hasalpha():
            image = image.flatten(background=list(background))
        if image.bands == 1:
            image = image.bandjoin([image, image])
        pixels = image[:3].cast("uchar").numpy()
    except pyvips.Error as error:
        raise BadInputError(f"the picture is damaged ({_first_line(error)})") from error
    return Decoded(pixels=np.ascontiguousarray(pixels), as_it_is=plain, suffix=suffix if plain else ".png")


def _open(data: bytes) -> "pyvips.Image":
    if data[:2] == b"BM":  # libvips has no loader of its own for it
        try:
            with Image.open(io.BytesIO(data)) as picture:
                data = png(np.asarray(picture.convert("RGB")))
        except (OSError, SyntaxError, ValueError) as error:
            raise pyvips.Error(str(error)) from error
    # "truncated" would do for the others, but lets a TIFF that ends too early through as black.
    return pyvips.Image.new_from_buffer(data, "", access="random", fail_on="error")


def _to_srgb(image: "pyvips.Image") -> "pyvips.Image":
    try:
        return image.icc_transform("srgb", embedded=True, intent="relative", depth=8)
    except pyvips.Error:  # a broken profile: the numbers are taken as sRGB, as every viewer does
        return image


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def read(path: Path) -> np.ndarray:
    """uint8 (height, width, 3) of a canonical file."""
    return decode(path.read_bytes(), (255, 255, 255)).pixels


RESAMPLES = {filter.name.lower(): filter for filter in Image.Resampling}  # names of ways to resize


def resized(pixels: np.ndarray, width: int, height: int, resample: str = "lanczos") -> np.ndarray:
    """To exactly that size, by one of `RESAMPLES`."""
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), RESAMPLES[resample]))


def png(pixels: np.ndarray, text: dict[str, str] | None = None) -> bytes:
    """PNG bytes of uint8 (height, width, 3); `text` goes into its text chunks."""
    from PIL import PngImagePlugin

    information = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        information.add_itxt(key, value)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=information)
    return buffer.getvalue()


def texts(png: bytes) -> dict[str, str]:
    """The text chunks before the pixels of a PNG, by name; none where it is no PNG. Nothing is decoded."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            return {str(k): str(v) for k, v in image.info.items() if isinstance(v, str)}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return {}


def grid(pictures: list[np.ndarray], columns: int, gap: int = 4) -> np.ndarray:
    """Pictures of one size, side by side on white."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def enlarged(pixels: np.ndarray, times: int) -> np.ndarray:
    """Each pixel as a square of `times` by `times`, for small pictures on large screens."""
    return pixels.repeat(times, axis=0).repeat(times, axis=1)
