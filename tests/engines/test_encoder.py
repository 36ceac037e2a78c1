"""How pictures are cut for the encoder: moved views, edges mirrored."""

import numpy as np
import pytest

from dovetail.core import crops
from dovetail.engines import encoder


def _recipe(**more: object) -> encoder.Recipe:
    told: dict[str, object] = {"side": 32, "centre": True, "flip": True, "resample": "lanczos", "vae": ""}
    return encoder.Recipe(**told | more)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(40, 40), (90, 30), (20, 20)])
def test_moved_views_show_the_picture_a_little_larger_smaller_or_aside(shape: tuple[int, int]) -> None:
    picture = np.tile(np.linspace(0, 255, shape[0]).astype(np.uint8)[:, None, None], (1, shape[1], 3))
    plain, moved = (encoder.cut_outs(picture, _recipe(moved=n), "key") for n in (0, 5))
    assert plain.shape == (2, 32, 32, 3) and moved.shape == (12, 32, 32, 3)
    assert (moved[:2] == plain).all(), "the first view is the one that held-out pictures are seen in"
    for cut, mirrored in zip(moved[::2], moved[1::2], strict=True):
        assert (cut[:, ::-1] == mirrored).all()
        assert np.abs(np.diff(cut[..., 0].astype(int), axis=0)).max() < 40, "no seam at an edge that is gone over"
    assert len({cut.tobytes() for cut in moved[2::2]}) == 5


@pytest.mark.parametrize("plain", [True, False])
def test_a_cut_over_an_edge_sees_a_plain_background_go_on_and_else_the_picture_mirrored(
    monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    if plain:
        picture[[0, -1]] = picture[:, [0, -1]] = (10, 200, 30)
    view = crops.View(width=32, height=32, left=-3, top=2, mirrored=False)
    monkeypatch.setattr(crops, "views", lambda *args, **keys: [view])
    cut = encoder.cut_outs(picture, _recipe(), "key")[0]
    padded = np.pad(picture, ((0, 2), (3, 0), (0, 0)), mode="edge" if plain else "symmetric")
    assert (cut == padded[2:34, :32]).all()


def test_latents_of_moved_views_are_kept_apart_and_those_without_as_before() -> None:
    assert _recipe().digest == _recipe(moved=0).digest != _recipe(moved=1).digest != _recipe(moved=2).digest
