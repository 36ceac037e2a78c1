"""Stable Diffusion XL on a tiny one: what it is told of words, sizes and crops is what diffusers tells it."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file
from schooling import CPU, config
from torch import Tensor

from dovetail import library
from dovetail.core import crops
from dovetail.edges import models as edge
from dovetail.edges import tensors
from dovetail.edges.console import Show
from dovetail.edges.models import Models
from dovetail.engines import encoder, learner, objective, painter
from dovetail.engines import material as lessons
from dovetail.engines.painter import Order
from dovetail.stages import repo

LAST = 1  # layer of the text encoders
LONG = "a red house on green, " * 6


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_xl_base(tmp_path_factory.mktemp("xl") / "tiny-xl")


def _diffusers(folder: Path, **told: Any) -> np.ndarray:
    return _painted(StableDiffusionXLPipeline.from_pretrained(folder), **told)


def _painted(pipe: Any, **told: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    side = {"height": tiny.SIDE, "width": tiny.SIDE}
    made = pipe(**told, **side, num_inference_steps=4, guidance_scale=5.0, generator=torch.Generator().manual_seed(3))
    return np.asarray(made.images[0]).astype(int)


@pytest.mark.parametrize("negative", [None, "rain"])
def test_a_picture_equals_that_of_diffusers_pipeline(xl: Path, negative: str | None) -> None:
    order = Order(prompt="a cat on red", seed=3, negative_prompt=negative or "")
    ours = painter.paint(Models(xl, CPU), [order], steps=4, guidance_scale=5.0)[0]
    theirs = _diffusers(xl, prompt="a cat on red", negative_prompt=negative)
    assert np.abs(ours.astype(int) - theirs).max() <= 2 and ours.std() > 10


def test_company_and_length_of_other_prompts_change_nothing(xl: Path) -> None:
    models = Models(xl, CPU)
    orders = [Order(prompt="a cat", seed=1), Order(prompt=LONG, seed=2), Order(prompt="a dog", seed=3, negative_prompt=LONG)]
    together = painter.paint(models, orders, steps=3, guidance_scale=4.0)
    alone = [painter.paint(models, [order], steps=3, guidance_scale=4.0)[0] for order in orders]
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(together, alone, strict=True))


def test_coordinates_are_those_of_the_cut() -> None:
    """A picture whose pixels say where they are, cut in every way: what is told finds them again in the scaled picture."""
    page = np.zeros((40, 100, 3), np.uint8)
    page[..., 0], page[..., 1] = np.arange(100)[None], np.arange(40)[:, None]
    recipe = encoder.Recipe(side=40, centre=False, flip=True, resample="lanczos", vae="")
    cuts, told = encoder.cut_outs(page, recipe, "key"), encoder.told(100, 40, recipe, "key")
    views = crops.views(100, 40, (40, 40), centre=False, flip=True, key="key")
    assert len(cuts) == len(told) == len(views) == 8 and len({int(row[3]) for row in told}) > 2
    for cut, row, view in zip(cuts, told.int().tolist(), views, strict=True):
        height, width, top, left, *target = row
        assert (height, width, target) == (40, 100, [40, 40])
        shown = page[:, ::-1] if view.mirrored else page
        np.testing.assert_array_equal(cut, shown[top : top + 40, left : left + 40])


def test_a_row_tells_words_sizes_and_crops_and_the_loss_is_that_of_the_plain_call(xl: Path, tmp_path: Path) -> None:
    models = Models(xl, CPU)
    told = torch.tensor([[40.0, 100.0, 0.0, 13.0, 32.0, 32.0]])
    item = lessons.Item(name="a", caption="a cat", moments=torch.randn(1, 8, 8, 8), sizes=told)
    whole = lessons.Material(
        train=[item], rehearsal=[], validation=[item], test=[], states=lambda c: models.embed([c])[0],
        pooled=lambda c: models.pooled([c])[0],
    )  # fmt: skip
    row = lessons.row(item, 0, 500, config(caption_dropout=0.0), whole, 0.75)
    assert row.added is not None and torch.equal(row.added[-6:], told[0])
    goal = objective.Objective.of(models)
    seen: list[dict[str, Tensor]] = []

    def spy(*args: Any, added_cond_kwargs: dict[str, Tensor], **keys: Any) -> tuple[Tensor]:
        seen.append(added_cond_kwargs)
        return models.unet(*args, added_cond_kwargs=added_cond_kwargs, **keys)

    goal.losses(spy, [row, row])  # type: ignore[arg-type]
    assert seen[0]["time_ids"].tolist() == told.tolist() * 2
    torch.testing.assert_close(seen[0]["text_embeds"], models.pooled(["a cat", "a cat"]))
    dropped = lessons.row(item, 0, 500, config(caption_dropout=0.999), whole, 0.75)
    assert dropped.states.abs().max() == 0 and dropped.added is not None and dropped.added[:-6].abs().max() == 0
    start = learner.teach(models, whole, config(steps=2, batch_size=2), 1e-3, tmp_path, Show(quiet=True), lambda step: None)
    assert all(torch.isfinite(w).all() for w in start.weights.values())


def test_the_main_job_goes_through_and_diffusers_opens_what_it_publishes(xl: Path, tmp_path: Path) -> None:
    pictures = tiny.write_pictures(tmp_path / "pictures")
    tiny.add_picture(pictures, "wide.png", "a wide thing", Image.new("RGB", (96, 40), (10, 200, 30)), group="plain")
    keys = tiny.short(
        processing={"centre_crop": False, "buckets": True},
        training={"method": "lora", "learning_rate": 0.02, "text_encoder": True},
        repo={"registry": str(tmp_path / "registry"), "single_file": True, "name": "xl"},
    )  # fmt: skip
    sealed = library.run(str(pictures), run=str(tmp_path / "run"), base=str(xl), until="endpoint", **keys)
    sizes = tensors.read(sealed["processing"].folder / "sizes.safetensors")
    assert {tuple(row[:2].int().tolist()) for rows in sizes.values() for row in rows} >= {(40, 48), (40, 96), (32, 32)}
    latents = tensors.read(sealed["processing"].folder / "latents.safetensors")
    assert Counter(tuple(x.shape[2:]) for name, x in latents.items() if "." not in name) == {(8, 8): 14, (6, 10): 1}, (
        "the wide one keeps its shape"
    )
    assert lessons.read_material(sealed["processing"]).kinds.count(0) in (0, 1)
    model = sealed["repo"].folder / "model"
    fused, plain = (_diffusers(folder, prompt="a round thing on red") for folder in (model, xl))
    assert np.abs(fused - plain).max() > 8, "the training has changed nothing, this test would say nothing"
    for file in ("pytorch_lora_weights.safetensors", "kohya_lora.safetensors"):
        pipe = StableDiffusionXLPipeline.from_pretrained(xl)
        pipe.load_lora_weights(model, weight_name=file)
        assert np.abs(_painted(pipe, prompt="a round thing on red") - fused).max() <= 1, file
    names = [name.split(".")[0] for name in load_file(model / "kohya_lora.safetensors")]
    assert any(name.startswith("lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q") for name in names)
    assert all(f"lora_te{n}_text_model_encoder_layers_0_self_attn_q_proj" in names for n in (1, 2))
    for part in ("text_encoder", "text_encoder_2"):
        before, after = (load_file(folder / part / "model.safetensors") for folder in (xl, model))
        assert before.keys() == after.keys() and any(not torch.equal(before[n], after[n]) for n in before)
    pipe = StableDiffusionXLPipeline.from_single_file(str(model / "xl.safetensors"), config=str(model), local_files_only=True)
    assert np.abs(_painted(pipe, prompt="a round thing on red") - fused).max() <= 1


@pytest.mark.parametrize("method", ["dora", "lokr", "textual_inversion"])
def test_both_text_encoders_learn_and_diffusers_paints_with_what_they_learnt(xl: Path, tmp_path: Path, method: str) -> None:
    models, base = Models(xl, CPU), Models(xl, CPU)
    told = torch.tensor([[40.0, 100.0, 0.0, 13.0, 32.0, 32.0]])
    moments = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    items = [lessons.Item(name=n, caption=f"a <it> {n}", moments=m, sizes=told) for n, m in zip("ab", moments, strict=True)]
    whole = lessons.Material(
        train=items, rehearsal=[], validation=items[:1], test=[], states=lambda c: base.embed([c])[0],
        pooled=lambda c: base.pooled([c])[0],
    )  # fmt: skip
    asked = config(
        method=method, text_encoder=method != "textual_inversion", steps=4, batch_size=2, lora_rank=2, lora_alpha=6,
        caption_dropout=0.0, placeholder="<it>", placeholder_vectors=2, initializer="cat", ema_decay=0.0,
    )  # fmt: skip
    taught = learner.teach(models, whole, asked, 0.05, tmp_path / "c", Show(quiet=True), lambda step: None).weights
    order = Order(prompt="a <it> on red", seed=3)
    ours = painter.paint(models, [order], steps=4, guidance_scale=5.0)[0].astype(int)
    root = Path(shutil.copytree(xl, tmp_path / "model"))
    if method == "textual_inversion":
        repo._new_word(models, "<it>", root)
    else:
        # The last layer of the second one is heard in what it makes of the whole caption alone.
        assert all(w.abs().max() > 1e-3 for n, w in taught.items() if "text_encoder_2" in n and f".{LAST}." in n)
        repo._adapters(models, method, root)
    edge.save_unet(models.unet, root / "unet", "float32")
    published, plain = (_diffusers(folder, prompt=order.prompt) for folder in (root, xl))
    assert np.abs(published - ours).max() <= 2 and np.abs(published - plain).max() > 8
    pipe = StableDiffusionXLPipeline.from_pretrained(xl)
    if method == "textual_inversion":
        learnt = load_file(root / "learned_embeds.safetensors")
        pipe.load_textual_inversion(learnt["clip_l"], token="<it>", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
        pipe.load_textual_inversion(
            learnt["clip_g"], token="<it>", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
        )
    elif method == "dora":
        pipe.load_lora_weights(root, weight_name="pytorch_lora_weights.safetensors")
    else:
        names = {name.split("_")[1] for name in load_file(root / "lycoris_lokr.safetensors")}
        assert names == {"unet", "te1", "te2"} and len(list((root / "lokr").iterdir())) == 3
        return  # diffusers has no door for it
    assert np.abs(_painted(pipe, prompt=order.prompt) - published).max() <= 1
