"""Pictures of every kind that people have become upright 8-bit sRGB, or are refused with a reason."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms
from tiny import drawing

from dovetail.edges import pixels
from dovetail.errors import BadInputError
from dovetail.stages.sourcing import SUFFIXES

WHITE = (255, 255, 255)


def saved(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def decoded(data: bytes) -> np.ndarray:
    return pixels.decode(data, WHITE).pixels


def test_a_plain_png_comes_back_exactly_and_may_be_used_as_it_is() -> None:
    picture = drawing("round", "red")
    found = pixels.decode(saved(picture), WHITE)
    assert np.array_equal(found.pixels, np.asarray(picture)) and found.as_it_is and found.suffix == ".png"
    assert found.pixels.dtype == np.uint8 and found.pixels.flags.c_contiguous


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", ".jpg"), ("WEBP", ".webp")])
def test_jpeg_and_webp_are_passed_through_with_nearly_the_same_pixels(kind: str, suffix: str) -> None:
    picture = Image.new("RGB", (40, 30), (200, 100, 50))
    found = pixels.decode(saved(picture, kind, quality=95), WHITE)
    assert found.as_it_is and found.suffix == suffix
    assert np.abs(found.pixels.astype(int) - np.asarray(picture)).max() <= 4


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_kind_of_file_that_sourcing_takes_can_be_decoded(suffix: str) -> None:
    picture = Image.new("RGB", (40, 30), (200, 100, 50))
    data = saved(picture, Image.registered_extensions()[suffix])
    assert pixels.header(data) == (40, 30)
    assert np.abs(decoded(data).astype(int) - (200, 100, 50)).max() <= 4


def _turned(orientation: int) -> tuple[np.ndarray, bytes]:
    """A picture as it should look, and a JPEG whose camera lay on its side."""
    upright = Image.fromarray(np.kron(np.array([[250, 128, 0], [60, 190, 30]], np.uint8), np.ones((32, 32), np.uint8))).convert(
        "RGB"
    )
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    return np.asarray(upright), saved(upright.transpose(stored), "JPEG", exif=exif, quality=95, subsampling=0)


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_the_orientation_of_a_camera_is_applied_to_the_pixels(orientation: int) -> None:
    upright, data = _turned(orientation)
    found = pixels.decode(data, WHITE)
    assert found.pixels.shape == upright.shape and not found.as_it_is
    assert np.abs(found.pixels[8:24, 8:24].astype(int) - upright[8:24, 8:24]).max() <= 6
    assert np.abs(found.pixels[-24:-8, -24:-8].astype(int) - upright[-24:-8, -24:-8]).max() <= 6


def test_transparent_pixels_show_the_background_and_half_transparent_ones_a_mixture() -> None:
    picture = np.zeros((30, 40, 4), np.uint8)
    picture[:, :20] = (200, 0, 0, 255)
    picture[:, 20:30] = (200, 0, 0, 128)
    found = pixels.decode(saved(Image.fromarray(picture)), (0, 100, 0))
    assert found.pixels[0, 0].tolist() == [200, 0, 0] and found.pixels[0, 39].tolist() == [0, 100, 0]
    assert np.abs(found.pixels[0, 25].astype(int) - (100, 50, 0)).max() <= 1 and not found.as_it_is


def test_sixteen_bit_grey_keeps_its_brightness_and_does_not_turn_white() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(40, 0)
    found = decoded(saved(Image.fromarray(ramp)))
    assert found.shape == (40, 64, 3) and np.ptp(found.astype(int), axis=2).max() <= 1
    assert found.mean() == pytest.approx(127.5, abs=2) and found[0, 0, 0] == 0 and found[0, -1, 0] == 255


@pytest.mark.parametrize("alpha", [65535, 32768, 0])
def test_sixteen_bit_colour_with_transparency_is_scaled_with_its_alpha(alpha: int) -> None:
    raw = np.zeros((40, 40, 4), np.uint16)
    raw[:] = (51400, 0, 0, alpha)
    image = pyvips.Image.new_from_array(raw).copy(interpretation="rgb16")
    share = alpha / 65535
    assert np.abs(decoded(image.pngsave_buffer())[20, 20] - (np.array((200, 0, 0)) * share + 255 * (1 - share))).max() <= 2


@pytest.mark.parametrize(
    ("mode", "colour", "wanted"),
    [("L", 90, (90,) * 3), ("1", 1, (255,) * 3), ("LA", (90, 255), (90,) * 3), ("P", 0, (0,) * 3), ("I;16", 25700, (100,) * 3)],
)
def test_grey_two_tone_and_palette_pictures_become_three_channels(mode: str, colour: Any, wanted: tuple[int, ...]) -> None:
    found = pixels.decode(saved(Image.new(mode, (40, 40), colour)), WHITE)
    assert found.pixels.shape == (40, 40, 3)
    assert np.abs(found.pixels[20, 20].astype(int) - wanted).max() <= 1


def test_a_print_jpeg_in_four_inks_keeps_its_colours_in_kind() -> None:
    found = decoded(saved(Image.new("CMYK", (40, 40), (0, 255, 255, 0)), "JPEG", quality=95))[20, 20].astype(int)
    assert found[0] > 180 and found[0] - found[1] > 80 and found[0] - found[2] > 80


def test_a_grey_jpeg_is_three_equal_channels() -> None:
    found = decoded(saved(Image.new("L", (40, 40), 77), "JPEG"))
    assert found.shape == (40, 40, 3) and set(np.unique(found)) == {77}


def _swapped_profile() -> bytes:
    """The sRGB profile with the places of its red and blue primaries exchanged, as no screen has them: impossible to miss."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at = {bytes(data[i : i + 4]): i for i in range(132, 132 + 12 * int.from_bytes(data[128:132], "big"), 12)}
    red, blue = at[b"rXYZ"] + 4, at[b"bXYZ"] + 4
    data[red : red + 8], data[blue : blue + 8] = data[blue : blue + 8], data[red : red + 8]
    return bytes(data)


def test_an_embedded_colour_profile_is_converted_to_srgb_as_little_cms_does() -> None:
    picture, profile = drawing("round", "red"), _swapped_profile()
    found = pixels.decode(saved(picture, icc_profile=profile), WHITE)
    target = ImageCms.createProfile("sRGB")
    wanted = ImageCms.profileToProfile(picture, io.BytesIO(profile), target, ImageCms.Intent.RELATIVE_COLORIMETRIC)
    assert not found.as_it_is and np.abs(found.pixels.astype(int) - np.asarray(wanted)).max() <= 3
    assert np.abs(found.pixels.astype(int) - np.asarray(picture)).max() > 60


def test_a_broken_colour_profile_leaves_the_numbers_as_they_are() -> None:
    picture = drawing("round", "red")
    assert np.array_equal(decoded(saved(picture, icc_profile=b"no profile at all" * 20)), np.asarray(picture))


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (40, 30), c) for c in ((250, 0, 0), (0, 250, 0))]
    found = decoded(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert found.shape == (30, 40, 3) and found[10, 10, 0] > 200 > found[10, 10, 1]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_a_file_that_ends_too_early_is_refused(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8))
    data = saved(noise, kind)
    with pytest.raises(BadInputError):
        pixels.decode(data[: int(len(data) * share)], WHITE)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"hello" * 99, bytes(500)])
def test_what_is_no_picture_is_refused_by_header_and_decoder(data: bytes) -> None:
    with pytest.raises(BadInputError):
        pixels.header(data)
    with pytest.raises(BadInputError):
        pixels.decode(data, WHITE)


def test_the_header_tells_the_size_of_a_picture_too_large_to_decode() -> None:
    bomb = pyvips.Image.black(20_000, 20_000).pngsave_buffer(compression=9)
    assert pixels.header(bomb) == (20_000, 20_000)


def test_png_keeps_pixels_and_text_in_any_script(tmp_path: Path) -> None:
    picture = np.asarray(drawing("dotted", "blue"))
    data = pixels.png(picture, {"prompt": "ein 🦊 in Köln", "seed": "7"})
    (tmp_path / "a.png").write_bytes(data)
    assert np.array_equal(pixels.read(tmp_path / "a.png"), picture)
    assert Image.open(io.BytesIO(data)).text == {"prompt": "ein 🦊 in Köln", "seed": "7"}  # type: ignore[attr-defined]


def test_resizing_grids_and_enlarging_give_the_sizes_asked_for() -> None:
    picture = np.asarray(drawing("plain", "green"))
    assert pixels.resized(picture, 33, 21).shape == (21, 33, 3) and pixels.resized(picture, 48, 40) is picture
    sheet = pixels.grid([picture] * 3, 2, gap=4)
    assert sheet.shape == (84, 100, 3) and np.array_equal(sheet[44:, :48], picture) and (sheet[44:, 52:] == 255).all()
    assert np.array_equal(pixels.enlarged(picture, 3)[::3, ::3], picture)
