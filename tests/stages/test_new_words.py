"""Textual inversion: one new word is learnt, nothing else changes, and diffusers reads it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import Finished
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from dovetail import library
from dovetail.edges import words
from dovetail.edges.folders import Artifact
from dovetail.edges.models import Models
from dovetail.errors import BadConfigError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inverted(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    place = tmp_path_factory.mktemp("inversion")
    pictures = place / "pictures"
    pictures.mkdir()
    for shape in tiny.SHAPES:
        tiny.drawing(shape, "red").save(pictures / f"{shape}.png")
    keys = tiny.short(
        sourcing={"caption": "a cat like <it> on red"},
        training={
            "method": "textual_inversion", "placeholder": "<it>", "placeholder_vectors": 2, "initializer": "cat",
            "learning_rate": 0.5, "ema_decay": 0.1, "weight_decay": 0.0,
        },
        repo={"registry": str(place / "registry"), "name": "it"},
    )  # fmt: skip
    return library.run(str(pictures), run=str(place / "run"), until="endpoint", base=str(finished.base), **keys)


def _paint(folder: Path, prompt: str, embeds: Path | None = None) -> Any:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if embeds:
        tensors = load_file(embeds)
        pipe.load_textual_inversion(tensors["<it>"], token="<it>")
    told = {"num_inference_steps": 3, "guidance_scale": 4.0, "generator": torch.Generator().manual_seed(1)}
    return np.asarray(pipe(prompt, **told).images[0]).astype(int)


def test_one_word_is_learnt_and_nothing_else_changes(finished: Finished, inverted: dict[str, Artifact]) -> None:
    learnt = load_file(inverted["training"].folder / "weights.safetensors")
    assert {n: tuple(t.shape) for n, t in learnt.items()} == {"text_encoder.new_words": (2, tiny.WIDTH)}
    begin = Models(finished.base, CPU)
    cat = begin.text_encoder.get_input_embeddings().weight[begin.tokenizer("cat", add_special_tokens=False).input_ids].mean(0)
    assert not torch.allclose(learnt["text_encoder.new_words"][0], cat, atol=1e-3)
    model = inverted["repo"].folder / "model"
    for part in ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        before, after = load_file(finished.base / part), load_file(model / part)
        assert all(torch.equal(before[n], after[n]) for n in before)
    before, after = (load_file(f / "text_encoder" / "model.safetensors") for f in (finished.base, model))
    name = next(n for n in before if n.endswith("token_embedding.weight"))
    assert all(torch.equal(before[n], after[n]) for n in before if n != name)
    assert torch.equal(after[name][: len(before[name])], before[name])
    assert torch.equal(after[name][len(before[name]) :], learnt["text_encoder.new_words"])
    losses = [json.loads(line) for line in (inverted["training"].folder / "curve.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["loss"]) for row in losses if "loss" in row)


def test_the_published_word_paints_the_same_in_diffusers_however_it_gets_there(
    finished: Finished, inverted: dict[str, Artifact]
) -> None:
    model, prompt = inverted["repo"].folder / "model", "a <it> on red"
    whole = _paint(model, prompt)
    assert np.abs(_paint(finished.base, prompt, model / "learned_embeds.safetensors") - whole).max() <= 1
    assert np.abs(_paint(finished.base, prompt) - whole).max() > 3, "the word says nothing"
    ours = np.asarray(library.paint(str(model), prompt, seed=1, steps=3, guidance_scale=4.0))
    assert ours.size
    from dovetail.engines import painter

    mine = painter.paint(Models(model, CPU), [painter.Order(prompt=prompt, seed=1)], steps=3, guidance_scale=4.0)[0]
    assert np.abs(mine.astype(int) - whole).max() <= 2


def test_a_word_that_is_known_or_missing_is_said_in_one_line(finished: Finished, tmp_path: Path) -> None:
    models = Models(finished.base, CPU)
    words.add(models.tokenizer, models.text_encoder, "<it>", 1, "cat")
    with pytest.raises(BadConfigError, match="the tokenizer knows <it> already"):
        words.add(models.tokenizer, models.text_encoder, "<it>", 1, "cat")
    with pytest.raises(BadConfigError, match="the initializer has no word"):
        words.add(models.tokenizer, models.text_encoder, "<that>", 1, "")
    keys = tiny.short(training={"method": "textual_inversion", "placeholder": "<never>"})
    with pytest.raises(BadConfigError, match="no caption has the word <never>; write it into the captions"):
        library.run(str(finished.pictures), run=str(tmp_path / "run"), until="training", base=str(finished.base), **keys)
