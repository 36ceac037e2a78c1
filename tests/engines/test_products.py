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
SIZES += [(1, 32, 34, 32, 32), (9, 32, 2, 8, 300), (5, 64, 16, 16, 64)]  # over the blocks that are worked on at once
SIZES += [(2, 40, 3, 48, 32), (2, 64, 6, 8, 32), (4, 96, 3, 4, 64), (8, 32, 3, 2, 32), (16, 32, 5, 1, 8)]  # woven together,
SIZES += [(4, 96, 16, 16, 40), (4, 40, 6, 8, 64), (8, 32, 35, 4, 32), (32, 64, 1, 1, 32)]  # in pairs, too,
SIZES += [(3, 32, 4, 8, 32), (1, 32, 4, 12, 32)]  # or not, but laid out


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


GATES = [(96, 64, 256), (33, 32, 64), (1, 96, 32), (700, 160, 640), (2049, 32, 128), (0, 64, 256)]


def gated(x: Tensor, into: Tensor, first: Tensor, out: Tensor) -> Tensor:
    value, gate = (x @ into.T + first).chunk(2, dim=-1)
    return (value * functional.gelu(gate)) @ out.T


@pytest.mark.skipif(not kernels.tiles(), reason="no tiles here")
@pytest.mark.parametrize("spread", [1.0, 30.0], ids=["gates ajar", "open or shut"])
@pytest.mark.parametrize("rows, width, inner", GATES)
def test_gated_layers_there_and_back(rows: int, width: int, inner: int, spread: float) -> None:
    x, up, beside = chance(2, rows, width), chance(2, rows, width, seed=1), chance(2, rows, width, seed=2)
    into = (spread * width**-0.5 * chance(2 * inner, width, seed=3).float()).bfloat16()
    first, out, last = chance(2 * inner, seed=4).float(), chance(width, inner, seed=5), chance(width, seed=6).float()
    exact = [t.double().requires_grad_() for t in (x, into, first, out)]
    y = gated(*exact)
    y.backward(up.double())
    for dtype in BOTH:
        by = into.to(dtype), out.to(dtype)
        near(products.gated(x, by[0], first, by[1], last, beside), (y + last.double() + beside.double()).detach())
        found = products.gated_back(up, x, by[0], first, by[1], dtype)
        assert [t.dtype for t in found] == [torch.bfloat16, dtype, torch.float32, dtype]
        for mine, its in zip(found, exact, strict=True):
            near(mine, its.grad)


@pytest.mark.skipif(not kernels.tiles(), reason="no tiles here")
def test_a_gate_is_as_exact_as_it_says() -> None:
    """One inner number at a time: nothing averages errors out."""
    gates = torch.linspace(-9, 9, 4096).bfloat16()
    x, into, first, out = torch.zeros(len(gates), 32).bfloat16(), torch.zeros(64, 32), torch.zeros(64), torch.zeros(32, 32)
    x[:, 0], into[32, 0], first[0], out[0, 0] = gates, 1, 1, 1
    into, out, none = into.bfloat16(), out.bfloat16(), torch.zeros_like(x)
    up = torch.zeros_like(x)
    up[:, 0] = 1
    at = gates.double().requires_grad_()
    exact = functional.gelu(at)
    exact.sum().backward()
    seen = products.gated(x, into, first, out, torch.zeros(32), none)[:, 0].double()
    assert ((seen - exact).abs() <= 2**-8 * exact.abs() + 1e-5 * at.abs()).all()
    back = products.gated_back(up, x, into, first, out, torch.float32)[0][:, 0].double()
    assert ((back - at.grad).abs() <= 2**-7 * at.grad.abs() + 1e-4).all()


@pytest.mark.skipif(not kernels.tiles(), reason="no tiles here")
def test_the_number_of_threads_changes_no_bit_of_a_gated_layer() -> None:
    found, x, into, out = [], chance(1500, 96), chance(768, 96, seed=1), chance(96, 384, seed=2)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        y = products.gated(x, into, torch.zeros(768), out, torch.zeros(96), x)
        found.append([y, *products.gated_back(y, x, into, torch.zeros(768), out, torch.float32)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.skipif(not kernels.tiles(), reason="no tiles here")
def test_gated_layers_too_wide_for_the_cache_or_of_few_tokens_go_as_before() -> None:
    for rows, width, inner in ((900, 320, 1280), (900, 40, 160), (900, 64, 80), (40, 64, 256)):
        assert not products.gates(chance(rows, width), chance(2 * inner, width))
    assert products.gates(chance(2, 48, 64), chance(512, 64))


@pytest.mark.skipif(not kernels.tiles(), reason="no tiles here")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_by_tiles_a_number_that_is_none_stays_none(bad: float) -> None:
    x, weight = chance(40, 64), chance(48, 64, seed=1)
    x[7, 9] = bad
    assert not products.linear(x, weight)[7].isfinite().any() and products.linear(x, weight)[:7].isfinite().all()
    assert not products.outer(chance(40, 48), x)[:, 9].isfinite().any()
    into, out, none = chance(64, 64, seed=2), chance(64, 32, seed=3), torch.zeros(64)
    seen = products.gated(x, into, none, out, none, chance(40, 64))
    assert not seen[7].isfinite().any() and seen[:7].isfinite().all()
    assert not products.gated_back(chance(40, 64), x, into, none, out, torch.float32)[3].isfinite().any()


@pytest.mark.parametrize("rows", [2047, 2048, 2049, 4097, 8193])
def test_gradients_of_many_rows_miss_none(rows: int) -> None:
    """They are summed in parts: the last rows are in one of them, too."""
    gradient, x = torch.zeros(rows, 40), torch.zeros(rows, 72)
    gradient[-1], x[-1] = 1, 2
    assert torch.equal(products.outer(gradient.bfloat16(), x.bfloat16()).float(), torch.full((40, 72), 2.0))
    every = products.outer(torch.ones(rows, 40).bfloat16(), torch.ones(rows, 72).bfloat16(), torch.float32)
    assert torch.equal(every, torch.full((40, 72), float(torch.tensor(float(rows)).bfloat16())))
