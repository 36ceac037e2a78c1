"""What is captured of a step and done again: the same bits as step by step, and nothing that cannot be done again."""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from schooling import config, material, teach
from torch import Tensor

from dovetail.edges import tensors
from dovetail.engines import attention
from dovetail.engines.fused import blocks, copies, graphs, kernels, products, unets

here = kernels.there() and platform.machine() == "x86_64"
pytestmark = pytest.mark.skipif(not here, reason="no C compiler, or another processor")
with_tiles = pytest.mark.skipif(not products.tiled(), reason="no tiles")
STEP_BY_STEP = [way for way in blocks.WAYS if way[0] is not UNet2DConditionModel]


def unet_of(base: Path, monkeypatch: pytest.MonkeyPatch, captured: bool = True, kept: bool = False) -> Any:
    """One that learns; `kept` with bf16 copies of its weights."""
    unet = UNet2DConditionModel.from_pretrained(base / "unet").train()
    unet.set_attn_processor(attention.CacheAttention())
    with monkeypatch.context() as only:
        if not captured:
            only.setattr(blocks, "WAYS", STEP_BY_STEP)
        blocks.fuse(unet)
    if kept:
        copies.allow(unet.parameters())
    return unet


def inputs(unet: Any, seed: int, batch: int = 3, side: int = 8) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(seed)
    told: dict[str, Any] = {
        "sample": torch.randn(batch, 4, side, side, generator=chance),
        "timestep": torch.randint(0, 1000, (batch,), generator=chance),
        "encoder_hidden_states": torch.randn(batch, 16, unet.config.cross_attention_dim, generator=chance),
    }
    if unet.config.addition_embed_type == "text_time":
        width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        told["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, width, generator=chance),
            "time_ids": torch.ones(batch, 6),
        }
    return told


def said(unet: Any, told: dict[str, Any]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return unet(**told, return_dict=False)[0]


def learnt(unet: Any, *steps: dict[str, Any]) -> list[Tensor]:
    """What it says, and its gradients, of each step; the weights are moved in between."""
    found = []
    for told in steps:
        y = said(unet, told)
        y.float().square().sum().backward()
        found += [y.detach(), *(p.grad for p in unet.parameters())]
        with torch.no_grad():
            for p in unet.parameters():
                p -= 1e-5 * p.grad
                p.grad = None
    return found


def same(mine: list[Tensor], its: list[Tensor]) -> bool:
    return len(mine) == len(its) and all(torch.equal(a, b) for a, b in zip(mine, its, strict=True))


@with_tiles
@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("kept", [False, True], ids=["float32 weights", "and bf16 copies"])
@pytest.mark.parametrize("xl", [False, True], ids=["SD", "XL"])
def test_captured_steps_have_the_bits_of_steps_that_are_not(
    tiny_base: Path, tmp_path: Path, xl: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny.write_xl_base(tmp_path) if xl else tiny_base
    quick, plain = unet_of(base, monkeypatch, kept=kept), unet_of(base, monkeypatch, captured=False, kept=kept)
    steps = [inputs(quick, 0), inputs(quick, 1), inputs(quick, 2, batch=1, side=16), inputs(quick, 3)]
    assert same(learnt(quick, *steps), learnt(plain, *steps))
    assert [graph is not None for graph in quick.captured.known.values()] == [True, True]
    calls = [len(g.there.words) + len(g.back.words) for g in quick.captured.known.values()]
    assert min(calls) > 100 * graphs.WORDS, "most of a step should be there"


@with_tiles
def test_a_training_is_the_same_with_and_without(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config(mixed_precision="bf16", batch_size=2, gradient_accumulation_steps=2, merge_micro_batches=False)
    begun: list[Any] = []
    captured = unets.Graphs._captured
    monkeypatch.setattr(unets.Graphs, "_captured", lambda *told: begun.append(captured(*told)) or begun[-1])
    quick, curve = teach(tiny_base, tmp_path / "a", material(), asked)
    assert len(begun) == 1 and begun[0] is not None
    monkeypatch.setattr(blocks, "WAYS", STEP_BY_STEP)
    plain, other = teach(tiny_base, tmp_path / "b", material(), asked)
    assert len(begun) == 1 and tensors.digest(quick) == tensors.digest(plain) and curve == other


@with_tiles
def test_a_second_way_there_before_the_first_way_back(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick, plain = unet_of(tiny_base, monkeypatch), unet_of(tiny_base, monkeypatch, captured=False)
    for unet in (quick, plain):
        one, other = said(unet, inputs(unet, 0)), said(unet, inputs(unet, 1))
        (one.float().square().sum() + other.float().sum()).backward()
    assert same([p.grad for p in quick.parameters()], [p.grad for p in plain.parameters()])
    given_up = said(quick, inputs(quick, 2))
    assert not quick.captured.room.free()
    del given_up
    assert quick.captured.room.free(), "nobody will come back for it"


@with_tiles
def test_a_way_back_is_taken_once(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = unet_of(tiny_base, monkeypatch)
    loss = said(unet, inputs(unet, 0)).float().sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="gone once it was taken"):
        loss.backward()


@with_tiles
def test_other_weights_in_their_place_are_captured_anew(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick, plain = unet_of(tiny_base, monkeypatch), unet_of(tiny_base, monkeypatch, captured=False)
    for unet in (quick, plain):
        learnt(unet, inputs(unet, 0))
        louder = {name: 1.5 * weight for name, weight in unet.state_dict().items()}
        unet.load_state_dict(louder, assign=True)
        unet.requires_grad_(True)
    assert same(learnt(quick, inputs(quick, 1)), learnt(plain, inputs(plain, 1)))


@with_tiles
@pytest.mark.parametrize("what", ["hook", "frozen weight", "frozen input", "states that learn", "no memory", "another size"])
def test_what_cannot_be_captured_goes_as_before(tiny_base: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    unet, heard = unet_of(tiny_base, monkeypatch), []
    told = inputs(unet, 0, side=9 if what == "another size" else 8)
    if what == "hook":
        unet.mid_block.resnets[0].register_forward_hook(lambda *_: heard.append(1))
    if what == "frozen weight":
        unet.mid_block.resnets[0].conv1.weight.requires_grad_(False)
    if what == "frozen input":
        unet.conv_in.requires_grad_(False)
    if what == "states that learn":
        told["encoder_hidden_states"].requires_grad_()
    if what == "no memory":
        monkeypatch.setattr(unets.machine, "memory_bytes", lambda device: 0)
    said(unet, told).float().sum().backward()
    assert not hasattr(unet, "captured") or not any(unet.captured.known.values())
    assert all((p.grad is not None) == p.requires_grad for p in unet.parameters())
    assert heard == ([1] if what == "hook" else [])
    assert (told["encoder_hidden_states"].grad is not None) == (what == "states that learn")


def _of(way: Callable[[Tensor], Tensor], *weights: Tensor) -> graphs.Graph:
    x = torch.randn(2, 32, 4, 4).bfloat16().contiguous(memory_format=torch.channels_last)
    return graphs.Graph(lambda given: way(given[0]), [x], 1, weights, graphs.Room())


def test_a_capture_is_void_where_something_cannot_be_done_again() -> None:
    from dovetail.engines.fused.convolutions import _Enlarged

    elsewhere = torch.ones(2, 32, 4, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    graph = _of(lambda x: _Enlarged.apply(torch.cat([x, x], 1)))
    x = torch.randn_like(elsewhere)
    assert torch.equal(graph.forward([x]), torch.nn.functional.interpolate(torch.cat([x, x], 1), scale_factor=2))
    ((found,), _) = graph.backward([x], torch.ones(2, 64, 8, 8, dtype=torch.bfloat16))
    assert torch.equal(found, torch.full_like(x, 8)), "whatever the layout of what comes back"
    with pytest.raises(graphs.VoidError, match="one place"):
        _of(_Enlarged.apply, elsewhere, elsewhere)
    with pytest.raises(graphs.VoidError, match="sin"):
        _of(lambda x: _Enlarged.apply(x.sin()))
    with pytest.raises(graphs.VoidError, match="mul"):
        _of(lambda x: _Enlarged.apply(x) * 2)
    with pytest.raises(graphs.VoidError, match="scalar"):
        _of(lambda x: _Enlarged.apply(x) if x[0, 0, 0, 0].item() < 9 else x)
    with pytest.raises(graphs.VoidError, match="from without"):
        _of(lambda x: _Enlarged.apply(x + elsewhere))
    with pytest.raises(graphs.VoidError, match="layouts"):
        _of(lambda x: _Enlarged.apply(torch.cat([x, x], 0)))
    assert kernels.listening.ear is None


def test_no_two_numbers_that_are_wanted_at_once_have_the_same_place() -> None:
    chance = torch.Generator().manual_seed(0)
    spans = torch.randint(0, 100, (200, 2), generator=chance).sort(1).values.tolist()
    sizes = torch.randint(1, 5000, (200,), generator=chance).tolist()
    every = [graphs._Numbers(size, span) for size, span in zip(sizes, spans, strict=True)]
    room = graphs.planned(every)
    assert room < sum(sizes) and all(n.place % graphs.LINE == 0 and n.place + n.size <= room for n in every)
    for n, one in enumerate(every):
        for other in every[:n]:
            if one.calls[0] <= other.calls[1] and other.calls[0] <= one.calls[1]:
                assert one.place + one.size <= other.place or other.place + other.size <= one.place
