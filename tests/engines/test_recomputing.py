"""Gradient checkpointing: the same gradients as without, and less that is kept than with diffusers' own."""

import copy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from dovetail.engines import recomputing


def there_and_back(unet: UNet2DConditionModel) -> tuple[list[torch.Tensor], int]:
    """Gradients, and bytes kept for the way back."""
    kept, mine = {}, {p.untyped_storage().data_ptr() for p in unet.parameters()}
    torch.manual_seed(0)
    side, width = 4 * unet.config.sample_size, unet.config.cross_attention_dim

    def seen(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda x: x):
        said = unet(torch.randn(2, 4, side, side), torch.tensor([5, 500]), torch.randn(2, 7, width)).sample
    bytes_kept = sum(s.nbytes() for at, s in kept.items() if at not in mine)
    kept.clear()
    said.square().sum().backward()
    return [p.grad for p in unet.parameters()], bytes_kept


def test_the_same_gradients_and_less_that_is_kept(tiny_base: Path) -> None:
    plain = UNet2DConditionModel.from_pretrained(tiny_base / "unet").train()
    theirs, ours, off = (copy.deepcopy(plain) for _ in range(3))
    theirs.enable_gradient_checkpointing()
    recomputing.turn_on(ours)
    recomputing.turn_on(off)
    off.disable_gradient_checkpointing()
    (exact, most), (_, some), (mine, few), (same, all_of_it) = (there_and_back(u) for u in (plain, theirs, ours, off))
    assert few < 0.95 * some < 0.95 * most and all_of_it == most
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(exact, mine, same, strict=True))
    assert ours.is_gradient_checkpointing and not off.is_gradient_checkpointing


def test_a_picture_at_a_time_gives_the_same_gradients(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts = (UNet2DConditionModel.from_pretrained(tiny_base / "unet").train() for _ in range(2))
    for unet in (whole, parts):
        recomputing.turn_on(unet)
    monkeypatch.setattr(recomputing, "PLACES", 1)
    layers: list[object] = []
    recomputing.one_by_one(parts, torch.Size((2, 4, 32, 32)), lambda layer: (layers.append(layer), nullcontext())[1])
    pictures: list[int] = []
    for block in parts.down_blocks:
        block.resnets[0].conv1.register_forward_pre_hook(lambda _, args: pictures.append(len(args[0])))
    (exact, _), (mine, _) = there_and_back(whole), there_and_back(parts)
    assert len(layers) == len({id(x) for x in layers}) > 6
    assert pictures == [2] * len(parts.down_blocks) + [1, 1] * len(parts.down_blocks)
    assert all((a - b).norm() <= 1e-4 * b.norm() + 1e-6 for a, b in zip(mine, exact, strict=True))
