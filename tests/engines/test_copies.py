"""bf16 copies of weights: the bits of a cast, whatever happens to the weights."""

from pathlib import Path

import pytest
import torch
from schooling import config, material, teach

from dovetail.edges import tensors
from dovetail.engines import preparation
from dovetail.engines.fused import copies, kernels, matrices, products


def weights() -> list[torch.nn.Parameter]:
    chance = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(n, 5, 3, 3, generator=chance)) for n in (4, 3)]


@torch.no_grad()
def test_it_is_what_a_cast_gives_and_made_once() -> None:
    both = weights()
    cast = matrices.matrix(*both)
    assert copies.of(both) is None, "nobody asked for it"
    copies.allow(both)
    kept = matrices.matrix(*both)
    assert torch.equal(kept, cast) and matrices.matrix(*both) is kept
    assert copies.of(both[:1]) is None, "alone it lies elsewhere"
    alone = matrices.matrix(both[0])
    assert alone.dtype == (torch.float32 if products.tiled() else torch.bfloat16)
    assert torch.equal(alone.bfloat16(), cast[:4])


@torch.no_grad()
def test_other_weights_are_noticed_however_they_got_there() -> None:
    both = weights()
    copies.allow(both)
    before = matrices.matrix(*both).clone()
    both[1].add_(1)
    assert torch.equal(matrices.matrix(*both), torch.cat([w.detach().flatten(1) for w in both]).bfloat16())
    mine, average = both[0].data, torch.zeros_like(both[0])
    both[0].data = average
    assert (matrices.matrix(*both)[:4] == 0).all()
    both[0].data = mine
    assert torch.equal(matrices.matrix(*both)[:4], before[:4])


@pytest.mark.skipif(not kernels.there(), reason="no C compiler")
@pytest.mark.parametrize("most", [0.5, None])
def test_a_training_ends_with_the_same_bits(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: float | None
) -> None:
    asked = config(mixed_precision="bf16", max_grad_norm=most)
    walked: list[int] = []
    written = copies.written
    monkeypatch.setattr(
        copies, "written", lambda told: (walked.append(sum(x is not None for x in copies.parts(told))), written(told))[1]
    )
    mine, curve = teach(tiny_base, tmp_path / "copies", material(), asked)
    assert sum(n > 10 for n in walked) == 6, "they are written as weights are, at each step"
    monkeypatch.setattr(preparation.copies, "allow", lambda told: None)
    plain, same = teach(tiny_base, tmp_path / "casts", material(), asked)
    assert tensors.digest(mine) == tensors.digest(plain) and same == curve


@pytest.mark.skipif(not kernels.there(), reason="no C compiler")
def test_a_number_that_is_none_stays_none() -> None:
    weight, moments = torch.tensor([1.0, torch.nan, torch.inf, -3.0]), [torch.zeros(4), torch.zeros(4), torch.zeros(())]
    copy = torch.empty(4, dtype=torch.bfloat16)
    numbers = (1e-3, 0.0, 0.9, 0.999, 1e-8, 1.0, 0.0)
    kernels.adamw([weight], [torch.ones(4)], [[m] for m in moments], None, numbers, [copy])
    assert torch.equal(copy[[0, 2, 3]], weight.bfloat16()[[0, 2, 3]]) and copy[1].isnan() and weight[1].isnan()
