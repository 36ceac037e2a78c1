"""Prompts with weights, against the states of the plain text and the formula."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_painter import CPU, apart, theirs
from torch import Tensor

from dovetail.edges import words
from dovetail.edges.models import Models
from dovetail.engines import painter, reader
from dovetail.engines.painter import Order

LONG = "a red cat on a house, " * 9
PLAIN = {
    "": "", " ": " ", LONG: LONG, "Fernseher, 電視 📺": "Fernseher, 電視 📺", "a :) b": "a :) b", "(:1)": "", "((": "((",
    f"({LONG}:1)": LONG, "a (red:1.0) cat": "a red cat", "BREAK a cat BREAK": "a cat", "[(a)] cat": "a cat",
}  # fmt: skip


def _loud(models: Models) -> Models:
    """States whose mean is not zero, as those of a taught encoder."""
    next(part for name, part in models.text_encoder.named_modules() if name.endswith("final_layer_norm")).bias.data += 0.5
    return models


@pytest.fixture
def models(tiny_base: Path) -> Models:
    return _loud(Models(tiny_base, CPU))


@pytest.fixture(scope="module")
def real_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Stable Diffusion with CLIP's own words, 77 tokens at a time."""
    return tiny.write_base_with_clips_words(tmp_path_factory.mktemp("weights") / "base")


@pytest.fixture(scope="module")
def real(real_folder: Path) -> Models:
    return _loud(Models(real_folder, CPU))


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tiny.write_xl_base(tmp_path_factory.mktemp("weights") / "xl"), CPU)


def _states(models: Models, text: str) -> Tensor:
    return reader.read(models, text, reader.pieces(models, text))[0]


def _rescaled(plain: Tensor, weights: dict[int, float]) -> Tensor:
    """The formula on one piece, (1, tokens, width)."""
    scaled = plain.clone()
    for place, weight in weights.items():
        scaled[:, place] *= weight
    return scaled * (plain.mean() / scaled.mean())


@pytest.mark.parametrize("kind", ["models", "real", "xl"])
@pytest.mark.parametrize("text", PLAIN)
def test_a_text_without_weights_has_the_states_it_had_to_the_last_bit(
    kind: str, text: str, request: pytest.FixtureRequest
) -> None:
    read_by, plain = request.getfixturevalue(kind), PLAIN[text]
    pieces = reader.pieces(read_by, text)
    states, whole = reader.read(read_by, text, pieces)
    assert pieces == read_by.pieces(plain) and torch.equal(states, read_by.embed([plain], pieces))
    assert whole is None or torch.equal(whole, read_by.pooled([plain], pieces))


def test_a_weight_changes_the_states_as_the_formula_says(real: Models) -> None:
    plain = real.embed(["a cat on red"])
    torch.testing.assert_close(_states(real, "a (cat:1.5) on red"), _rescaled(plain, {2: 1.5}))
    torch.testing.assert_close(_states(real, "a ((cat)) [on] red"), _rescaled(plain, {2: 1.21, 3: 1 / 1.1}))
    torch.testing.assert_close(_states(real, "(a cat on red:0)"), _rescaled(plain, dict.fromkeys(range(1, 5), 0.0)))


def test_no_mean_no_scaling(tiny_base: Path) -> None:
    models = Models(tiny_base, CPU)  # fresh: each state is normalised to a mean of zero
    expected = models.embed(["cat on red"]).clone()
    expected[:, 1] *= 1.5
    assert torch.equal(_states(models, "(cat:1.5) on red"), expected)


def test_escaped_brackets_are_read_as_brackets(real: Models) -> None:
    assert torch.equal(_states(real, r"a cat \(red\) \[x\]"), real.embed(["a cat (red) [x]"]))
    plain = real.embed(["a cat (red)"])
    torch.testing.assert_close(_states(real, r"a cat (\(red\):1.5)"), _rescaled(plain, {3: 1.5, 4: 1.5, 5: 1.5}))


def test_a_long_prompt_is_weighed_to_its_end(real: Models) -> None:
    begin = ", ".join(f"a television number {n} with a wooden case and two antennas" for n in range(12))
    plain = real.embed([f"{begin} at night"], 3)
    assert real.pieces(f"{begin} at night") == reader.pieces(real, f"{begin} at (night:1.4)") == 3
    weighed = _states(real, f"{begin} at (night:1.4)")
    ends = len(real.tokenizer(f"{begin} at night").input_ids) - 2 - 2 * 75
    assert torch.equal(weighed[:, :154], plain[:, :154])
    torch.testing.assert_close(weighed[:, 154:], _rescaled(plain[:, 154:], {ends: 1.4}))
    over = _states(real, f"({begin} at night:1.4)")
    for first in (0, 77, 154):
        count = ends if first == 154 else 75
        own = _rescaled(plain[:, first : first + 77], dict.fromkeys(range(1, count + 1), 1.4))
        torch.testing.assert_close(over[:, first : first + 77], own)
    assert reader.read(real, f"({begin}:1.4)", 2)[0].shape == (1, 154, tiny.WIDTH), "beyond its pieces it is left out"
    assert reader.read(real, "a (cat)", 2)[0].shape == (1, 154, tiny.WIDTH), "with fewer it is filled up"


def test_break_begins_a_new_piece_and_pads_the_one_before(real: Models) -> None:
    read = _states(real, "a cat BREAK a dog")
    torch.testing.assert_close(read[:, :77], real.embed(["a cat"]))
    torch.testing.assert_close(read[:, 77:], real.embed(["a dog"]))
    read = _states(real, "a cat BREAK a (dog:1.5)")
    torch.testing.assert_close(read[:, 77:], _rescaled(real.embed(["a dog"]), {2: 1.5}))
    assert reader.pieces(real, "a cat BREAK " + "a dog " * 50 + "BREAK BREAK a house BREAK") == 4


def test_a_new_word_has_its_weight_in_all_its_vectors(real_folder: Path) -> None:
    real = _loud(Models(real_folder, CPU))
    words.add(real.tokenizer, real.text_encoder, "<screen>", 2, "television")
    plain = real.embed(["a <screen> at night"])
    torch.testing.assert_close(_states(real, "a (<screen>:1.3) at night"), _rescaled(plain, {2: 1.3, 3: 1.3}))


def test_both_encoders_of_an_xl_are_weighed_alike_and_the_pooled_text_is_not(xl: Models) -> None:
    states, whole = reader.read(xl, "(cat:1.5) on red", 1)
    plain = xl.embed(["cat on red"])
    for own, before in zip(states.split([16, 24], -1), plain.split([16, 24], -1), strict=True):
        scaled = before.clone()
        scaled[:, 1] *= 1.5
        ratio = (own / scaled).flatten()
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    assert whole is not None and torch.equal(whole, xl.pooled(["cat on red"]))
    broken, whole = reader.read(xl, "cat BREAK (red)", 2)
    torch.testing.assert_close(broken[:, : tiny.TOKENS], xl.embed(["cat"]))
    torch.testing.assert_close(whole, xl.pooled(["cat"]))


def test_the_painter_takes_brackets_for_text(tiny_base: Path) -> None:
    order = Order(prompt=r"a (cat:1.5) BREAK \(", seed=3)
    painted = painter.paint(Models(tiny_base, CPU), [order], steps=2, guidance_scale=5.0)[0]
    assert painted.dtype == np.uint8 and apart(painted, theirs(tiny_base, order, 2, 5.0)) <= 2
