"""Adapters as other tools read them: the same change of the same weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dovetail.core import layouts
from dovetail.edges import adapters
from dovetail.edges.models import Models
from dovetail.errors import StoreError

CPU = torch.device("cpu")


@pytest.mark.parametrize("rank", [2, 16], ids=["of two factors", "of one"])
def test_a_lokr_in_lycoris_keys_is_the_same_change_of_every_weight(tiny_base: Path, tmp_path: Path, rank: int) -> None:
    """Put together as LyCORIS does (`get_weight` of its `LokrModule`): alpha counts where a factor is itself a product."""
    told = {
        "unet": (Models(tiny_base, CPU).unet, "lora_unet_"),
        "text_encoder": (Models(tiny_base, CPU).text_encoder, "lora_te_"),
    }
    for model, _ in told.values():
        for parameter in adapters.add(model, "lokr", rank, 3 * rank, seed=1):
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(2))
    names = {"unet": layouts.kohya_name, "text_encoder": layouts.kohya_text_name}
    adapters.write_kohya(tmp_path / "lokr.safetensors", names, {part: model for part, (model, _) in told.items()})
    written = load_file(tmp_path / "lokr.safetensors")
    seen = set()
    for part, (model, prefix) in told.items():
        adapters.fuse(model)
        before = getattr(Models(tiny_base, CPU), part).state_dict()
        for name, after in model.state_dict().items():
            theirs = prefix + (layouts.clip_name(name) if part == "text_encoder" else name).removesuffix(".weight").replace(
                ".", "_"
            )
            own = {k.removeprefix(f"{theirs}."): t for k, t in written.items() if k.startswith(f"{theirs}.")}
            seen |= {f"{theirs}.{k}" for k in own}
            change = torch.zeros(())
            if own:
                second, scale = own.get("lokr_w2"), 1.0
                if second is None:
                    second, scale = own["lokr_w2_a"] @ own["lokr_w2_b"], float(own["alpha"]) / own["lokr_w2_b"].shape[0]
                first = own["lokr_w1"].reshape(own["lokr_w1"].shape + (1,) * (second.ndim - 2))
                change = (torch.kron(first, second) * scale).reshape(after.shape)
            torch.testing.assert_close(before[name] + change, after, atol=1e-6, rtol=1e-4)
            assert not own or change.abs().max() > 0.01
    assert seen == written.keys() and any("conv1.lokr_w2" in name for name in seen)
    assert any("lokr_w2_b" in name for name in seen) == (rank == 2)
    assert all(t == rank for name, t in written.items() if name.endswith(".alpha")), (
        "no tool has a scale to apply, once or twice"
    )


def test_a_written_adapter_that_is_damaged_is_said(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = Models(tiny_base, CPU).unet
    adapters.add(unet, "lora", 2, 2, seed=1)
    saved = adapters.save_file
    monkeypatch.setattr(adapters, "save_file", lambda w, *a, **k: saved({n: t + 1 for n, t in w.items()}, *a, **k))
    with pytest.raises(StoreError, match=r"k\.safetensors differs from the trained adapters"):
        adapters.write_kohya(tmp_path / "k.safetensors", {"unet": layouts.kohya_name}, {"unet": unet})
