"""More or less of a model's LoRA: the base at 0, what was published at 1, each picture by itself in any company."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from tuned import write_tuned
from typer.testing import CliRunner
from waiting import CEILING, until

from dovetail import library
from dovetail.cli import app
from dovetail.core import solvers
from dovetail.edges import adapters, openvino, pixels
from dovetail.engines import receipts, studio
from dovetail.engines.revisions import Revision
from dovetail.engines.studio import Studio
from dovetail.errors import ModelError
from dovetail.stages import endpoint
from dovetail.wishes import Caller, Wish, WishError

WISH = Wish(prompt="a cat", negative_prompt="red", seed=3, steps=4, guidance_scale=3.0, width=tiny.SIDE, height=tiny.SIDE)


def revision(folder: Path, engine: str = "torch") -> Revision:
    return endpoint.opened(folder, "tuned", "1", engine)


def painted(made: Revision, *wishes: Wish) -> list[bytes]:
    """All asked for at once."""
    painting = Studio(made)
    try:
        return [ticket.future.result(CEILING).png for w in wishes for ticket in painting.submit([w], Caller())]
    finally:
        painting.close()


def seen(png: bytes) -> np.ndarray:
    return pixels.decode(png, (0, 0, 0)).pixels.astype(int)


@pytest.mark.parametrize("kind", ["the U-Net alone", "the text encoder too", "Stable Diffusion XL, its text encoders too"])
def test_at_0_it_is_the_picture_of_the_base(tiny_base: Path, tuned: Path, tmp_path: Path, kind: str) -> None:
    base = tiny.write_xl_base(tmp_path / "xl") if "XL" in kind else tiny_base
    folder = tuned if "too" in kind and base == tiny_base else write_tuned(tmp_path / "own", base, text="too" in kind)
    made, unguided = revision(folder), replace(WISH, guidance_scale=1.0)  # so that one text is read again and again
    whole, nothing, half, *again = (
        painted(made, replace(unguided, lora_scale=scale))[0] for scale in (1.0, 0.0, 0.5, 0.0, 1.0)
    )
    (wanted,) = painted(revision(base), unguided)
    assert np.abs(seen(nothing) - seen(wanted)).max() <= 1 and again == [nothing, whole]
    for one, other in ((whole, wanted), (half, wanted), (half, whole)):
        assert np.abs(seen(one) - seen(other)).max() > 8, "the LoRA has changed nothing, this test would say nothing"


def test_between_it_is_the_picture_of_diffusers_with_the_adapter_at_that_weight(tiny_base: Path, tuned: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(tuned, weight_name=adapters.FILE, adapter_name="own")

    def theirs(weight: float) -> np.ndarray:
        pipe.set_adapters("own", weight)
        dice = torch.Generator().manual_seed(WISH.seed)
        made = pipe("a cat", negative_prompt="red", num_inference_steps=4, guidance_scale=3.0, generator=dice)
        return np.asarray(made.images[0]).astype(int)

    half, more, whole = map(seen, painted(revision(tuned), *(replace(WISH, lora_scale=scale) for scale in (0.5, 1.6, 1.0))))
    assert max(np.abs(half - theirs(0.5)).max(), np.abs(more - theirs(1.6)).max(), np.abs(whole - theirs(1.0)).max()) <= 1
    assert min(np.abs(half - whole).max(), np.abs(more - whole).max()) > 8


@pytest.mark.parametrize("engine", ["bf16", "openvino"])
def test_the_fast_engines_paint_about_the_same_at_other_scales(by_engine: Callable[[str], Revision], engine: str) -> None:
    wishes = [replace(WISH, steps=2, guidance_scale=1.0, lora_scale=scale) for scale in (0.0, 0.5, 1.0)]
    ours, exact = (list(map(seen, painted(by_engine(by), *wishes))) for by in (engine, "torch"))
    for one, here in zip(ours, exact, strict=True):
        away = [np.abs(other - here).mean() for other in exact if other is not here]
        assert np.abs(one - here).mean() < min(away) / 2


def test_what_paints_at_other_scales_is_kept_for_the_next_start_and_given_back_at_rest(
    by_engine: Callable[[str], Revision], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, half = by_engine("openvino"), replace(WISH, lora_scale=0.5)
    plain, first = painted(made, WISH, half)
    assert made._lora is not None and "unet" not in vars(made.models)

    def never(*given: Any) -> None:
        raise AssertionError("it is made again")

    monkeypatch.setattr(openvino, "keep", never)
    monkeypatch.setattr(studio, "REST_SECONDS", 0.05)
    painting = Studio(made)
    until(lambda: made._lora is None)
    assert [painting.submit([w], Caller())[0].future.result(CEILING).png for w in (WISH, half)] == [plain, first]
    until(lambda: made._lora is None)
    painting.close()
    again = Revision(made.models, made.served, "openvino", made._kept)
    assert again._lora is None and painted(again, half, WISH) == [first, plain]


def test_other_pictures_go_on_while_it_is_made_and_what_cannot_be_made_fails_alone(
    tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = revision(tuned)
    painting = Studio(made)

    def broken(folder: Path, device: torch.device) -> Any:
        painting.submit([WISH], Caller())[0].future.result(CEILING)
        raise OSError("unreadable: /secret/place")

    monkeypatch.setattr(adapters, "read", broken)
    (ticket,) = painting.submit([replace(WISH, lora_scale=0.5)], Caller())
    assert str(ticket.future.exception(CEILING)) == "painting failed: OSError"
    assert painting.ready
    painting.close()


@pytest.mark.parametrize("scale", [-0.1, 2.1, float("nan"), float("inf")])
def test_a_scale_that_cannot_be_is_refused(tuned: Path, scale: float) -> None:
    made = revision(tuned)
    painting = Studio(made, {"base": made})
    with pytest.raises(WishError, match="a number from 0 to 2") as refused:
        painting.submit([replace(WISH, lora_scale=scale)], Caller())
    assert refused.value.parameter == "lora_scale"
    painting.close()


@pytest.mark.parametrize("kind", ["dora", "lokr", "the base", "a LoRA that nothing says is in the weights", "a damaged LoRA"])
def test_a_model_without_a_lora_has_one_scale(tiny_base: Path, tuned: Path, tmp_path: Path, kind: str) -> None:
    folder = tiny_base
    if kind in ("dora", "lokr"):
        folder = write_tuned(tmp_path / kind, tiny_base, method=kind)
    elif "LoRA" in kind:
        folder = Path(shutil.copytree(tuned, tmp_path / "copy"))
        (folder / ("provenance.json" if "nothing" in kind else adapters.FILE)).write_bytes(b"{}")
    made = revision(folder)
    painting = Studio(made)
    with pytest.raises(WishError, match="lora_scale can only be 1 here: tuned was not tuned with a LoRA") as refused:
        painting.submit([replace(WISH, lora_scale=0.5)], Caller())
    assert refused.value.parameter == "lora_scale" and not made.served.lora
    assert painting.submit([replace(WISH, lora_scale=1.0)], Caller())[0].future.result(CEILING).png
    painting.close()


def test_a_release_without_a_lora_leaves_what_waits_for_one_to_the_version_before(tiny_base: Path, tuned: Path) -> None:
    painting = Studio(revision(tuned), rows=2)
    wishes = [replace(WISH, seed=n, steps=8, lora_scale=scale) for n, scale in enumerate((1.0, 1.0, 0.5, 1.0))]
    tickets = [painting.submit([wish], Caller())[0] for wish in wishes]
    painting.swap(endpoint.opened(tiny_base, "tuned", "2", "torch"))
    made = [ticket.future.result(CEILING) for ticket in tickets]
    assert (made[2].version, made[3].version) == ("1", "2")
    with pytest.raises(WishError, match="not tuned with a LoRA"):
        painting.submit([wishes[2]], Caller())
    painting.close()


def test_a_picture_says_its_scale_and_is_painted_again_from_it(tuned: Path) -> None:
    wish = replace(WISH, lora_scale=0.1 + 0.2)
    made = revision(tuned)
    half, whole = painted(made, wish, WISH)
    read, told = receipts.wish_of(half)
    assert read == replace(wish, sampler=solvers.own(made.config)) and told["lora_scale"] == "0.30000000000000004"
    assert told["parameters"].startswith("a cat <lora:tuned:0.30000000000000004>\nNegative prompt: red\n")
    assert painted(made, read) == [half]
    assert "lora" not in "".join(receipts.wish_of(whole)[1].values()) + "".join(receipts.wish_of(whole)[1])


def test_the_command_line_has_it_too(tiny_base: Path, tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, out = endpoint.opened, tmp_path / "picture.png"
    monkeypatch.setattr(endpoint, "opened", lambda *told: opened(*told, "torch"))  # no trial of all engines
    asked = ["--seed", "3", "--steps", "4", "--guidance-scale", "3", "--negative-prompt", "red", "--out", str(out)]
    wanted = painted(opened(tuned, "tuned", "1", "torch"), replace(WISH, lora_scale=0.5), WISH)
    for more, other in zip((["--lora-scale", "0.5"], []), wanted, strict=True):
        assert CliRunner().invoke(app, ["paint", str(tuned), "a cat", *asked, *more]).exit_code == 0
        assert np.array_equal(seen(out.read_bytes()), seen(other))
    with pytest.raises(ModelError, match="lora_scale can only be 1 here"):
        library.paint(str(tiny_base), "a cat", lora_scale=0.5)
