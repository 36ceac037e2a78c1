"""Attention on a CPU, held to the formula written out in float64, on each of its ways."""

import pytest
import torch
from torch import Tensor

from dovetail.engines import attention
from dovetail.engines.fused import kernels

SCALE = 0.35


def written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.softmax(query @ key.transpose(-1, -2) * SCALE, dim=-1) @ value


def there_and_back(way, parts: list[Tensor], gradient: Tensor) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in parts]
    seen = way(*leaves)
    seen.backward(gradient)
    return [seen.detach(), *(x.grad for x in leaves)]


def drawn(spread: float = 1.0, tokens: int = 77, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values of 2 pictures and 3 heads, laid out as projections leave them, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 100, 3, 8), (2, tokens, 3, 8), (2, tokens, 3, 8), (2, 100, 3, 8)]
    *parts, gradient = (torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2) for s in shapes)
    return [parts[0] * spread, parts[1], parts[2]], gradient


@pytest.mark.parametrize("tokens", [77, 100])
@pytest.mark.parametrize("spread", [1.0, 1000.0], ids=["bare exponentials", "scores beyond them"])
@pytest.mark.parametrize(
    ("few", "at_once", "kept"),
    [(1 << 20, 1, 1), (0, 1 << 30, 1 << 30), (0, 200_000, 1 << 30), (0, 1 << 30, 0), (0, 10_000, 1 << 30), (0, 10_000, 0)],
    ids=["few scores", "all at once", "some heads", "made again", "some rows", "some rows, made again"],
)
def test_there_and_back_as_the_formula_says(monkeypatch, few, at_once, kept, spread, tokens) -> None:
    for name, value in (("FEW", few), ("AT_ONCE", at_once), ("KEPT", kept)):
        monkeypatch.setattr(attention, name, value)
    parts, gradient = drawn(spread, tokens)
    ours = there_and_back(lambda q, k, v: attention.CacheAttention().attended(q, k, v, SCALE), parts, gradient)
    for mine, true in zip(ours, there_and_back(written_out, parts, gradient), strict=True):
        assert mine.shape == true.shape
        assert torch.allclose(mine, true, rtol=1e-9, atol=1e-9 * float(true.abs().max()))
    with torch.no_grad():
        assert torch.allclose(attention.CacheAttention().attended(*parts, SCALE), ours[0], atol=1e-9)


@pytest.mark.parametrize("in_c", [True, False], ids=["in C", "by PyTorch's products"])
@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_in_bf16_about_as_near_as_pytorchs_own_functions(monkeypatch, spread, in_c) -> None:
    monkeypatch.setattr(attention, "FEW", 0)
    if not in_c:
        monkeypatch.setattr(kernels, "there", lambda: False)
    parts, gradient = drawn(spread, dtype=torch.bfloat16)
    true = there_and_back(written_out, [x.double() for x in parts], gradient.double())

    def distances(way) -> list[float]:
        found = there_and_back(way, parts, gradient)
        return [float((a.double() - b).norm() / b.norm()) for a, b in zip(found, true, strict=True)]

    ours = distances(lambda q, k, v: attention.CacheAttention().attended(q, k, v, SCALE))
    theirs = distances(written_out)
    assert all(a < 1.8 * b + 0.002 for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


def test_what_needs_no_gradient_gets_none() -> None:
    parts, gradient = drawn(tokens=77)
    query = parts[0].clone().requires_grad_()
    attention.CacheAttention().attended(query, *parts[1:], SCALE).backward(gradient)
    assert query.grad is not None and parts[1].grad is None
