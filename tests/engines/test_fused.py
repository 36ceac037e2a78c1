"""Blocks as one step for autograd, held to diffusers' own and to float64; and what they are not made for."""

import copy
import itertools
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from schooling import CPU, config, material, teach
from torch import Tensor
from torch.nn import functional

from dovetail.edges import tensors
from dovetail.edges.models import Models
from dovetail.engines import attention, feedforward
from dovetail.engines.fused import SOURCES, blocks, convolutions, kernels, products, transformers

pytestmark = pytest.mark.skipif(not kernels.there(), reason="no C compiler")
shared_out = pytest.mark.usefixtures("two_threads")  # not where a U-Net learns: hundreds of small calls wait for both each time
BF16 = 2**-8  # what a number of seven bits is off by at most


def chance(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    return numbers.bfloat16().contiguous(memory_format=torch.channels_last) if len(shape) == 4 else numbers.bfloat16()


def near(mine: Tensor, exact: Tensor, tolerance: float = BF16) -> None:
    assert mine.shape == exact.shape
    assert (mine.double() - exact).norm() <= tolerance * exact.norm() + 1e-12


def with_gradients(way: Callable[..., Tensor], up: Tensor, *numbers: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What `way` gives in float64, and the gradients of all."""
    exact = [x.double().requires_grad_() for x in numbers]
    found = way(*exact)
    found.backward(up.double())
    return found.detach(), [x.grad for x in exact if x.grad is not None]


@shared_out
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("size", [(2, 64, 5, 7), (1, 96, 9, 16), (9, 320, 3, 1)])
def test_group_norm(size: tuple[int, ...], silu: bool) -> None:
    x, up, extra = chance(*size), chance(*size, seed=1), chance(*size, seed=2)
    shift, weight, bias = chance(*size[:2], seed=3), chance(size[1], seed=4).float(), chance(size[1], seed=5).float()

    def way(x: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        found = functional.group_norm(x + shift[:, :, None, None], 32, weight, bias, 1e-5)
        return functional.silu(found) if silu else found

    exact, (to_x, *rest) = with_gradients(way, up, x, shift, weight, bias)
    y, mean, rstd = kernels.group_norm(x, shift, weight, bias, 32, 1e-5, silu)
    near(y, exact)
    found = kernels.group_norm_back(up, x, shift, weight, bias, mean, rstd, silu, extra)
    near(found[0], to_x + extra.double())
    for mine, its in zip(found[1:], rest, strict=True):
        near(mine, its, 1e-5)


@shared_out
def test_a_norm_of_numbers_far_from_nothing_is_as_exact() -> None:
    x = (torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(0)) + 200).bfloat16()
    x, ones = x.contiguous(memory_format=torch.channels_last), torch.ones(32)
    y, *_ = kernels.group_norm(x, None, ones, 0 * ones, 32, 1e-5, False)
    near(y, functional.group_norm(x.double(), 32))


@shared_out
def test_layer_norm_of_a_sum() -> None:
    x, delta, up, extra = (chance(35, 72, seed=s) for s in range(4))
    weight, bias = chance(72, seed=5).float(), chance(72, seed=6).float()
    whole, y, mean, rstd = kernels.layer_norm(x, delta, weight, bias, 1e-5)
    assert torch.equal(whole, (x.float() + delta.float()).bfloat16())
    exact, (to_x, *rest) = with_gradients(lambda x, w, b: functional.layer_norm(x, (72,), w, b), up, whole, weight, bias)
    near(y, exact)
    found = kernels.layer_norm_back(up, whole, weight, mean, rstd, extra)
    near(found[0], to_x + extra.double())
    for mine, its in zip(found[1:], rest, strict=True):
        near(mine, its, 1e-5)


@shared_out
def test_gate() -> None:
    x, up = chance(33, 80, scale=3), chance(33, 40, seed=1)
    exact, (to_x,) = with_gradients(lambda x: x[:, :40] * functional.gelu(x[:, 40:]), up, x)
    found, again = kernels.gated_back(up, x)
    near(kernels.gated(x), exact)
    near(again, exact)
    near(found, to_x)
    near(kernels.sum_rows(x), x.double().sum(0), 1e-6)


@shared_out
@pytest.mark.parametrize("spread", [1.0, 40.0], ids=["even", "sharp"])
@pytest.mark.parametrize(
    "n, m, d",
    [
        (64, 64, 8),
        (63, 35, 24),
        (5, 77, 32),
        (1, 1, 8),
        (256, 256, 16),
        (81, 300, 8),
        (144, 33, 32),
        (130, 77, 40),
        (40, 300, 80),
        (97, 64, 160),
    ],
)
def test_attention_of_heads(n: int, m: int, d: int, spread: float) -> None:
    if not kernels.attends(d):
        pytest.skip("no products of pairs of bf16 numbers here")
    query, up = chance(2, n, 3 * d, scale=spread), chance(2, n, 3 * d, seed=1)
    key, value = chance(2, m, 6 * d, seed=2).chunk(2, dim=-1)

    def way(*parts: Tensor) -> Tensor:
        query, key, value = (x.unflatten(-1, (3, d)).transpose(1, 2) for x in parts)
        return (torch.softmax(query @ key.transpose(-1, -2) * 0.3, -1) @ value).transpose(1, 2).flatten(2)

    exact, gradients = with_gradients(way, up, query, key, value)
    out, logs = kernels.attend(query, key, value, 3, 0.3)
    near(out, exact)
    both = torch.empty(2, m, 6 * d, dtype=torch.bfloat16)
    found = [torch.empty_like(query), *both.chunk(2, dim=-1)]
    kernels.attend_back(up, query, key, value, out, logs, found, 3, 0.3)
    size = max(g.norm() for g in gradients)  # of sharp attention some gradients are next to nothing
    for mine, its in zip(found, gradients, strict=True):
        assert (mine.double() - its).norm() < (0.01 if spread == 1 else 0.03) * its.norm() + 0.002 * size


@shared_out
@pytest.mark.parametrize("d", [8, 16, 32])
def test_attention_of_a_number_that_is_none_stays_none(d: int) -> None:
    if not kernels.attends(d):
        pytest.skip("no products of pairs of bf16 numbers here")
    for which, bad in itertools.product(range(3), (float("nan"), float("inf"))):
        if which == 1 and bad == float("inf"):
            continue  # an infinite key may well weigh nothing
        parts = [chance(1, 40, 2 * d, seed=s) for s in range(3)]
        parts[which][0, 5, 3] = bad  # of the first head's
        out, _ = kernels.attend(*parts, 2, 0.3)
        rows = out[0, 5:6, :d] if which == 0 else out[0, :, :d]
        assert not rows.isfinite().any(dim=-1).any() if which < 2 else not rows[:, 3].isfinite().any()
        assert out[0, :, d:].isfinite().all()


@shared_out
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [40, 80], ids=["fewer channels than places", "more"])
@pytest.mark.parametrize("places", [0, 1 << 30], ids=["PyTorch's", "as products"])
def test_convolutions_either_way(monkeypatch: pytest.MonkeyPatch, places: int, width: int, stride: int) -> None:
    monkeypatch.setattr(kernels, "tiles", lambda: None)
    monkeypatch.setattr(convolutions, "FEW", places)
    monkeypatch.setattr(convolutions, "SOME", places)
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(24, width, 3, stride, 1)
    x, up = chance(2, 24, 5, 6), chance(2, width, -(-5 // stride), -(-6 // stride), seed=1)
    parts = [x, *(p.detach().bfloat16() for p in layer.parameters())]
    exact, gradients = with_gradients(lambda *parts: functional.conv2d(*parts, stride, 1), up, *parts)

    def way(convolved: Callable[[Tensor], Tensor]) -> list[Tensor]:
        layer.zero_grad()
        seen = x.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = convolved(seen)
        y.backward(up)
        return [y.detach(), *(p.grad for p in (seen, *layer.parameters()) if p.grad is not None)]

    mine, its = way(partial(convolutions.conv, layer)), way(layer)
    # A processor that has no bf16 may round PyTorch's sums more than once.
    for here, there, true in zip(mine, its, [exact, *gradients], strict=True):
        near(here, true, BF16 if places else max(BF16, 1.1 * float((there.double() - true).norm() / true.norm())))


@shared_out
def test_adamw_is_pytorchs() -> None:
    sizes = [(3, 5), (1,), (170, 100)]
    mine, its = ([torch.nn.Parameter(chance(*s, seed=n).float()) for n, s in enumerate(sizes)] for _ in range(2))
    told: dict[str, Any] = {"lr": 3e-3, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    optimizer = torch.optim.AdamW(its, **told)
    state = [[torch.zeros_like(p) for p in mine] for _ in range(2)] + [[torch.zeros(()) for _ in mine]]
    averages, same = [p.detach().clone() for p in mine], [p.detach().clone() for p in mine]
    for step in range(4):
        gradients = [chance(*s, seed=10 * step + n).float() for n, s in enumerate(sizes)]
        for p, g in zip(its, gradients, strict=True):
            p.grad = g * 0.7
        optimizer.step()
        torch._foreach_lerp_(same, [p.detach() for p in its], 0.25)
        kernels.adamw([p.data for p in mine], gradients, state, averages, (3e-3, 0.1, 0.8, 0.95, 1e-6, 0.7, 0.25))
        exact = torch.stack([g.double().norm() for g in gradients]).float()
        torch.testing.assert_close(kernels.norms(gradients), exact, rtol=1e-6, atol=0)
        assert torch.equal(kernels.norms([g.bfloat16() for g in gradients]), kernels.norms(gradients))
    for a, b in zip((*mine, *averages, *state[0]), (*its, *same, *(optimizer.state[p]["exp_avg"] for p in its)), strict=True):
        torch.testing.assert_close(a.data, b.data, rtol=2e-6, atol=2e-7)
    assert [float(n) for n in state[2]] == [4, 4, 4]


def unet_of(base: Path) -> UNet2DConditionModel:
    unet = Models(base, CPU).unet.requires_grad_(True).train()
    unet.set_attn_processor(attention.CacheAttention())
    return unet


def learnt(unet: UNet2DConditionModel, exact: bool = False, context: bool = False) -> list[Tensor]:
    """What it says, and the gradients of what is shown and of all its weights."""
    like = torch.float64 if exact else torch.float32
    draw = torch.Generator().manual_seed(0)
    seen = torch.randn(3, 4, 8, 8, generator=draw).to(like).requires_grad_()
    states = torch.randn(3, 16, unet.config.cross_attention_dim, generator=draw).to(like).requires_grad_(context)
    with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
        said = unet(seen, torch.tensor([1, 500, 900]), encoder_hidden_states=states, return_dict=False)[0]
    said.to(like).square().mean().backward()
    found = [said.detach(), seen.grad, *([states.grad] if context else []), *(p.grad for p in unet.parameters())]
    return [x for x in found if x is not None]


WAYS = ["as it is", "wide heads", "inner width at once", "inner width in pieces", "without tiles", "all as products"]


@pytest.mark.parametrize("way", WAYS)
def test_a_unet_is_as_near_to_the_truth_as_diffusers(tiny_base: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "wide heads":
        monkeypatch.setattr(kernels, "attends", lambda width: False)
    if way == "inner width in pieces":
        monkeypatch.setattr(feedforward, "MUCH", 0)
    if way in ("inner width in pieces", "inner width at once"):
        monkeypatch.setattr(products, "CACHED", 0)
    if way in ("without tiles", "all as products"):
        monkeypatch.setattr(kernels, "tiles", lambda: None)
    if way == "all as products":
        monkeypatch.setattr(convolutions, "FEW", 1 << 30)
        monkeypatch.setattr(convolutions, "SOME", 1 << 30)
    plain = unet_of(tiny_base)
    quick = copy.deepcopy(plain)
    blocks.fuse(quick)
    taken: list[str] = []
    for kind in (transformers._Block, transformers._Project, convolutions._Residual, convolutions._Conv, convolutions._Norm):
        apply = kind.apply
        monkeypatch.setattr(kind, "apply", lambda *told, kind=kind, apply=apply: taken.append(kind.__name__) or apply(*told))
    exact, its = learnt(copy.deepcopy(plain).double(), exact=True, context=True), learnt(plain, context=True)
    assert not taken
    mine = learnt(quick, context=True)
    assert set(taken) == {"_Block", "_Project", "_Residual", "_Conv", "_Norm"}
    assert len(mine) == len(exact) == 3 + len(list(plain.parameters()))
    errors = [
        tuple(float((seen - true).norm() / true.norm()) for seen in (here, there))
        for here, there, true in zip(mine, its, exact, strict=True)
    ]
    assert all(here < 5 * there + 0.01 for here, there in errors)
    assert sum(here for here, _ in errors) < 1.1 * sum(there for _, there in errors)


@shared_out
def test_the_number_of_threads_changes_no_bit() -> None:
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        x, w = chance(4, 64, 9, 9), torch.ones(64)
        y, mean, rstd = kernels.group_norm(x, None, w, w, 32, 1e-5, True)
        group = kernels.group_norm_back(x, x, None, w, w, mean, rstd, True)
        row, *rest = kernels.layer_norm(chance(600, 64), None, w, w, 1e-5)[1:]
        layer = kernels.layer_norm_back(row, chance(600, 64), w, *rest, None)
        parts = [*(g for g in group if g is not None), *layer, kernels.sum_rows(row), kernels.norms([y.float()])]
        found.append([y, mean, rstd, row, *parts])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("processor", ["x86-64", "haswell", "icelake-server", "cooperlake", "sapphirerapids"])
def test_other_processors_have_them_too(processor: str) -> None:
    """Their compiler finds all that is called; what they lack is left out."""
    flags = [f"-march={processor}", "-fopenmp", "-Wall", "-Werror", "-Wno-psabi", "-Wno-unused-function"]
    known = subprocess.run(["cc", flags[0], "-xc", "-fsyntax-only", "/dev/null"], capture_output=True, check=False)
    if known.returncode:
        pytest.skip("the compiler does not know it")
    for source in (s for s in SOURCES if s.suffix == ".c"):
        made = subprocess.run(["cc", *flags, "-fsyntax-only", str(source)], capture_output=True, text=True, check=False)
        assert not made.returncode, made.stderr


@pytest.mark.parametrize("kind", ["adapters", "float32", "frozen", "no gradient"])
def test_what_it_is_not_made_for_goes_as_before(tiny_base: Path, kind: str) -> None:
    plain = unet_of(tiny_base)
    if kind == "adapters":
        plain.requires_grad_(False)
        plain.add_adapter(LoraConfig(target_modules=["to_q", "to_out.0", "conv1", "proj_in"], init_lora_weights=False))
    if kind == "frozen":
        plain.requires_grad_(False)
    quick = copy.deepcopy(plain)
    blocks.fuse(quick)
    if kind == "float32":
        for mine, its in zip(learnt_in_float32(quick), learnt_in_float32(plain), strict=True):
            assert torch.equal(mine, its)
        return
    if kind == "no gradient":
        seen, states = torch.randn(1, 4, 8, 8), torch.randn(1, 16, plain.config.cross_attention_dim)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            mine, its = (u(seen, 3, encoder_hidden_states=states, return_dict=False)[0] for u in (quick, plain))
        near(mine, its.double(), 0.03)
        return
    found = learnt(quick), learnt(plain)
    assert len(found[0]) == len(found[1]) == 2 + sum(p.requires_grad for p in plain.parameters())
    for mine, its in zip(*found, strict=True):
        assert (mine - its).norm() < 0.08 * its.norm()


def learnt_in_float32(unet: UNet2DConditionModel) -> list[Tensor]:
    seen, states = torch.ones(1, 4, 8, 8), torch.ones(1, 16, unet.config.cross_attention_dim)
    said = unet(seen, torch.tensor([7]), encoder_hidden_states=states, return_dict=False)[0]
    said.square().mean().backward()
    return [said.detach(), *(p.grad for p in unet.parameters())]


def test_a_machine_without_a_compiler_trains_all_the_same(tiny_base: Path, tmp_path: Path, monkeypatch) -> None:
    asked = config(mixed_precision="bf16")
    with_c, curve = teach(tiny_base, tmp_path / "with", material(), asked)
    monkeypatch.setattr(kernels, "there", lambda: False)
    without, other = teach(tiny_base, tmp_path / "without", material(), asked)
    assert tensors.digest(with_c) != tensors.digest(without), "it was not used, this test would say nothing"
    losses, others = ([row["loss"] for row in rows if "loss" in row] for rows in (curve, other))
    assert losses == pytest.approx(others, rel=0.02)
    assert (
        sum(float((with_c[n] - without[n]).square().sum()) for n in with_c) ** 0.5
        < 0.1 * sum(float(without[n].square().sum()) for n in with_c) ** 0.5
    )
