"""Feed-forward layers in pieces, held to diffusers' own."""

import copy

import pytest
import torch
from diffusers.models.attention import FeedForward
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from dovetail.engines import feedforward


@pytest.fixture(autouse=True)
def _however_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedforward, "MUCH", 0)


def a_layer(dtype: torch.dtype = torch.float64, **told: object) -> FeedForward:
    torch.manual_seed(0)
    return FeedForward(8, **told).to(dtype)


def in_pieces(layer: FeedForward) -> FeedForward:
    layer = copy.deepcopy(layer)
    feedforward.in_pieces(layer)
    return layer


def there_and_back(layer: FeedForward, dtype: torch.dtype = torch.float64, autocast: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens, gradient = (torch.randn(3, 50, 8, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    tokens.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        seen = layer(tokens)
    seen.backward(gradient.to(seen.dtype))
    return [seen.detach(), tokens.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("at_once", [1, 64 * 8 * 7, 1 << 20], ids=["a token", "some", "all"])
def test_there_and_back_as_diffusers_does(monkeypatch, at_once: int) -> None:
    monkeypatch.setattr(feedforward, "AT_ONCE", at_once)
    layer = a_layer()
    for mine, its in zip(there_and_back(in_pieces(layer)), there_and_back(layer), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)


def test_under_autocast_it_is_as_near_to_the_truth_as_diffusers(monkeypatch) -> None:
    monkeypatch.setattr(feedforward, "AT_ONCE", 64 * 2 * 7)
    exact = there_and_back(a_layer())
    layer = a_layer(torch.float32)
    mine, its = (there_and_back(way, torch.float32, autocast=True) for way in (in_pieces(layer), layer))
    for true, here, there in zip(exact, mine, its, strict=True):
        assert here.dtype == there.dtype
        assert (here - true).norm() < 1.3 * (there - true).norm() < 0.03 * true.norm()


def test_nothing_of_the_inner_width_is_kept() -> None:
    kept: list[int] = []
    layer = in_pieces(a_layer())
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        layer(torch.randn(3, 50, 8, dtype=torch.float64, requires_grad=True))
    assert max(kept) == max(3 * 50 * 8, 64 * 8) and 3 * 50 * 64 not in kept


@pytest.mark.parametrize("kind", ["few tokens", "adapters", "dropout", "another gate", "no biases"])
def test_what_it_is_not_made_for_is_left_to_diffusers(monkeypatch, kind: str) -> None:
    told = {"dropout": {"dropout": 0.5}, "another gate": {"activation_fn": "gelu"}, "no biases": {"bias": False}}.get(kind, {})
    monkeypatch.setattr(feedforward, "MUCH", 1 << 30 if kind == "few tokens" else 0)
    monkeypatch.setattr(feedforward._Gated, "apply", lambda *_: pytest.fail("it was taken"))
    layer = in_pieces(a_layer(**told))
    if kind == "adapters":
        inject_adapter_in_model(LoraConfig(target_modules=["net.2"]), layer)
    layer.train()(torch.randn(3, 50, 8, dtype=torch.float64))
