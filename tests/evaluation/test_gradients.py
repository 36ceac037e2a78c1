"""The features that the embedded judge sees pictures by."""

import numpy as np
import torch

from dovetail.evaluation import gradients
from recipes.embedded_base import scenes, televisions


def televisions_seen(count: int = 6) -> torch.Tensor:
    """Televisions of many colors on many grounds, (count, 3, 64, 64) in -1..1."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(number)
        _, drawn = televisions.invented(6000 + number)
        scene = scenes.draw_scene(rng, [("television", "own")], shares=(1.0,))
        found.append(scenes.paint_scene(rng, scene, {("television", "own"): drawn}, side=64))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2) / 127.5 - 1


def on_ground(thing: tuple[float, float, float], ground: tuple[float, float, float]) -> torch.Tensor:
    """A square in the middle of a picture, colors in -1..1."""
    picture = torch.tensor(ground)[:, None, None].expand(3, 64, 64).clone()
    picture[:, 16:48, 16:48] = torch.tensor(thing)[:, None, None]
    return picture[None]


def test_the_mirror_of_the_features_is_the_features_of_the_mirror() -> None:
    pictures = televisions_seen()
    seen, expected = gradients.mirrored(gradients.features(pictures)), gradients.features(pictures.flip(-1))
    assert seen.shape == (len(pictures), gradients.WIDTH)
    far, plain = (seen - expected).abs().mean(), (gradients.features(pictures) - expected).abs().mean()
    assert float(far) < 0.02 * float(plain)  # where two channels' edges are as strong, rounding chooses


def test_features_lie_in_0_to_1_also_of_blank_pictures() -> None:
    for pictures in (televisions_seen(), torch.zeros(2, 3, 64, 64), torch.ones(1, 3, 32, 32)):
        seen = gradients.features(pictures)
        assert bool(torch.isfinite(seen).all()) and float(seen.min()) >= 0 and float(seen.max()) <= 1 + 1e-5


def test_edges_do_not_depend_on_size_and_place() -> None:
    large = torch.zeros(1, 3, 64, 64) - 1
    small = large.clone()
    large[..., 8:56, 8:56], large[..., 20:44, 20:44] = 1.0, -0.5
    small[..., 30:54, 6:30], small[..., 36:48, 12:24] = 1.0, -0.5
    seen = [gradients.maps_of(gradients.features(x)).flatten() for x in (large, small)]
    assert float(torch.cosine_similarity(seen[0], seen[1], dim=0)) > 0.9


def test_colors_of_thing_and_ground_stand_apart() -> None:
    red, blue = (1.0, -1.0, -1.0), (-1.0, -1.0, 1.0)
    first, second = (gradients.features(on_ground(*pair))[0, -2 * gradients.COLORS :] for pair in ((red, blue), (blue, red)))
    thing, ground = first.split(gradients.COLORS)
    most = gradients.SHADES - 1
    assert int(thing.argmax()) == most * gradients.SHADES**2 and int(ground.argmax()) == most
    assert float(ground.max()) > 0.99 and abs(float(thing.square().sum()) - 1) < 1e-4
    assert int(second[: gradients.COLORS].argmax()) == int(ground.argmax()), "exchanged, they change places"


def test_a_turned_picture_keeps_its_middle() -> None:
    pictures = televisions_seen(2)
    assert gradients.turned(pictures, 0.0) is pictures
    turned = gradients.turned(pictures, 12.0)
    assert turned.shape == pictures.shape
    assert float((turned - pictures)[..., 31:33, 31:33].abs().max()) < float((turned - pictures).abs().max())
    assert torch.allclose(gradients.turned(turned, -12.0)[..., 24:40, 24:40], pictures[..., 24:40, 24:40], atol=0.6)
