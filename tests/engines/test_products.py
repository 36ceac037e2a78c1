"""Products of tokens and pictures with weights, held to float64: by tiles where there are some, and as PyTorch does them."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dovetail.engines.fused import kernels, products

pytestmark = [pytest.mark.skipif(not kernels.there(), reason="no C compiler"), pytest.mark.usefixtures("two_threads")]
BF16 = 2**-8
BOTH = torch.bfloat16, torch.float32


def chance(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return numbers.contiguous(memory_format=torch.channels_last) if len(shape) == 4 and dtype == torch.bfloat16 else numbers


def near(mine: Tensor, exact: Tensor) -> None:
    assert mine.shape == exact.shape
    assert (mine.double() - exact).norm() <= BF16 * exact.norm()


@pytest.mark.parametrize("tiles", [True, False], ids=["tiles", "PyTorch's"])
@pytest.mark.parametrize("rows, width, out", [(64, 64, 64), (77, 96, 40), (1, 300, 24), (700, 320, 520), (33, 7, 3), (0, 8, 8)])
def test_linear_there_and_back(monkeypatch: pytest.MonkeyPatch, rows: int, width: int, out: int, tiles: bool) -> None:
    if not tiles:
        monkeypatch.setattr(kernels, "tiles", lambda: None)
    x, weight, bias = chance(2, rows, width), chance(out, width, seed=1), chance(out, seed=2).float()
    up, beside = chance(2, rows, out, seed=3), chance(2, rows, out, seed=4)
    for dtype in BOTH:
        near(products.linear(x, weight.to(dtype)), x.double() @ weight.double().T)
        whole = x.double() @ weight.double().T + bias.double() + beside.double()
        near(products.linear(x, weight.to(dtype), bias, beside.clone()), whole)
        near(products.back(up, weight.to(dtype)), up.double() @ weight.double())
        found = products.outer(up, x, dtype)
        assert found.dtype == dtype
        near(found, up.double().flatten(0, 1).T @ x.double().flatten(0, 1))


SIZES = [(2, 32, 5, 7, 64), (1, 64, 16, 16, 32), (3, 160, 4, 4, 96), (1, 288, 3, 3, 40), (5, 4, 8, 8, 64), (2, 64, 8, 6, 3)]
SIZES += [(1, 32, 34, 32, 32), (9, 32, 2, 8, 300)]  # over the blocks that are worked on at once


@pytest.mark.skipif(not kernels.tiles(), reason="no tiles here")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("b, c, h, w, out", SIZES)
def test_convolutions_by_tiles(b: int, c: int, h: int, w: int, out: int, stride: int) -> None:
    x, weight, bias = chance(b, c, h, w), chance(out, c, 3, 3, seed=1, dtype=torch.float32), chance(out, seed=2).float()
    exact = [t.double().requires_grad_() for t in (x, weight.bfloat16())]
    y = functional.conv2d(*exact, bias.double(), stride, 1)
    up, beside = chance(*y.shape, seed=3), chance(*y.shape, seed=4)
    y.backward(up.double())
    for dtype in BOTH:
        by = weight.to(dtype).flatten(1)
        near(products.conv(x, by, bias, stride), y.detach())
        near(products.conv(x, by, None, stride, beside), (y - bias.double()[:, None, None] + beside.double()).detach())
        near(products.conv_back(up, by, x, stride), exact[0].grad)
        near(products.conv_outer(up, x, stride, dtype), exact[1].grad)


@pytest.mark.skipif(not kernels.tiles(), reason="no tiles here")
def test_by_tiles_the_number_of_threads_and_the_kind_of_weights_change_no_bit() -> None:
    found = []
    x, tokens, kernel, matrix = chance(3, 64, 12, 12), chance(900, 352), chance(96, 64, 3, 3), chance(288, 352)
    for threads, dtype in ((1, torch.bfloat16), (2, torch.bfloat16), (2, torch.float32)):
        torch.set_num_threads(threads)
        weight, by = kernel.contiguous().flatten(1).to(dtype), matrix.to(dtype)
        y, z = products.conv(x, weight, None, 1), products.linear(tokens, by)
        back = products.conv_back(y, weight, x, 1), products.back(z, by)
        found.append([y, z, *back, products.outer(z, tokens), products.conv_outer(y, x, 1, torch.float32)])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.skipif(not kernels.tiles(), reason="no tiles here")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_by_tiles_a_number_that_is_none_stays_none(bad: float) -> None:
    x, weight = chance(40, 64), chance(48, 64, seed=1)
    x[7, 9] = bad
    assert not products.linear(x, weight)[7].isfinite().any() and products.linear(x, weight)[:7].isfinite().all()
    assert not products.outer(chance(40, 48), x)[:, 9].isfinite().any()


@pytest.mark.parametrize("rows", [2047, 2048, 2049, 4097, 8193])
def test_gradients_of_many_rows_miss_none(rows: int) -> None:
    """They are summed in parts: the last rows are in one of them, too."""
    gradient, x = torch.zeros(rows, 40), torch.zeros(rows, 72)
    gradient[-1], x[-1] = 1, 2
    assert torch.equal(products.outer(gradient.bfloat16(), x.bfloat16()).float(), torch.full((40, 72), 2.0))
    every = products.outer(torch.ones(rows, 40).bfloat16(), torch.ones(rows, 72).bfloat16(), torch.float32)
    assert torch.equal(every, torch.full((40, 72), float(torch.tensor(float(rows)).bfloat16())))
