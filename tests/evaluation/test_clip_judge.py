"""CLIP and SigLIP as judges: the same numbers as transformers gives, long texts, and folders that hold something else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPTextConfig, CLIPTextModel

from dovetail.errors import ModelError
from dovetail.evaluation.clip_judge import ClipJudge

TEXTS = ["a red cat", "a dog on blue", "the television"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("judges")
    return {
        "clip": tiny_models.write_clip(place / "clip"),
        "siglip": tiny_models.write_siglip(place / "siglip"),
        "siglip2": tiny_models.write_siglip(place / "siglip2", version=2),
    }


@pytest.fixture
def images() -> list[np.ndarray]:
    dice = np.random.default_rng(7)
    return [dice.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((40, 52), (32, 32), (90, 31))]


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_scores_are_the_cosines_that_transformers_gives(kind: str, folders: dict[str, Path], images: list[np.ndarray]) -> None:
    judge = ClipJudge(str(folders[kind]))
    model = AutoModel.from_pretrained(folders[kind]).eval()
    more = {"crop_size": {"height": 32, "width": 32}} if kind == "clip" else {}
    pixels = AutoImageProcessor.from_pretrained(folders[kind], backend="pil", **more)(
        [Image.fromarray(i) for i in images], return_tensors="pt"
    )
    words = AutoTokenizer.from_pretrained(folders[kind])(TEXTS, padding="max_length", max_length=16, return_tensors="pt")
    told = dict(words) if kind == "clip" else {"input_ids": words.input_ids}
    with torch.no_grad():
        logits = model(**pixels, **told).logits_per_image
        cosines = (logits - (0 if kind == "clip" else model.logit_bias)) / model.logit_scale.exp()
    assert judge.score(images, TEXTS) == pytest.approx(100 * cosines.diagonal().numpy(), abs=2e-4)
    assert len(set(np.round(judge.score(images, TEXTS), 3))) == 3


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_embeddings_are_unit_vectors_and_do_not_depend_on_the_company(
    kind: str, folders: dict[str, Path], images: list[np.ndarray]
) -> None:
    judge = ClipJudge(str(folders[kind]))
    of_images, of_texts = judge.embed_images(images), judge.embed_texts(TEXTS)
    assert of_images.dtype == of_texts.dtype == torch.float32
    assert of_images.norm(dim=-1).numpy() == pytest.approx(np.ones(3), abs=1e-5)
    assert judge.embed_images(images[1:2])[0].numpy() == pytest.approx(of_images[1].numpy(), abs=1e-5)
    assert judge.embed_texts(TEXTS[2:])[0].numpy() == pytest.approx(of_texts[2].numpy(), abs=1e-5)
    assert judge.embed_images([]).shape == (0, of_images.shape[1]) == judge.embed_texts([]).shape
    assert judge.score([], []).shape == (0,)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("text", ["cat " * 200, "", "🙂" * 300, "赤いテレビ" * 50])
def test_a_text_longer_than_the_tower_keeps_its_end_token(kind: str, text: str, folders: dict[str, Path]) -> None:
    judge = ClipJudge(str(folders[kind]))
    ids = judge.tokens([text])["input_ids"]
    assert ids.shape == (1, tiny_models.TOKENS)
    assert (ids == judge.tokenizer.eos_token_id).any()
    assert torch.isfinite(judge.embed_texts([text])).all()


def test_what_a_long_text_says_last_is_cut_and_what_it_says_first_counts(folders: dict[str, Path]) -> None:
    judge = ClipJudge(str(folders["clip"]))
    first, second, third = judge.embed_texts(["cat " * 40 + "red", "cat " * 40 + "dog", "red " * 40])
    assert torch.equal(first, second)
    assert float(first @ third) < 0.999


def test_a_tokenizer_that_cuts_the_end_token_off_is_put_right(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["clip"], tmp_path / "clip")
    told = json.loads((tmp_path / "clip" / "tokenizer.json").read_text())
    judge = ClipJudge(str(tmp_path / "clip"))
    judge.tokenizer._tokenizer.post_processor = None  # as in files that were converted without one
    assert told["post_processor"] is not None
    ids = judge.tokens(["cat " * 200])["input_ids"]
    assert ids[0, -1] == judge.tokenizer.eos_token_id
    assert (ids[0, :-1] != judge.tokenizer.eos_token_id).all()


def test_its_own_preprocessing_is_followed(folders: dict[str, Path], tmp_path: Path, images: list[np.ndarray]) -> None:
    """A stretched picture, another mean and another resampling are other numbers."""
    plain = ClipJudge(str(folders["clip"])).embed_images(images[:1])
    told = {
        "mean": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        "stretched": {"size": {"height": 32, "width": 32}, "do_center_crop": False},
        "nearest": {"resample": 0},
    }
    for name, keys in told.items():
        judge = ClipJudge(str(tiny_models.write_clip(tmp_path / name, **keys)))
        assert not torch.allclose(judge.embed_images(images[:1]), plain, atol=1e-3), name


def test_without_preprocessing_of_its_own_the_family_s_is_taken_at_the_tower_s_size(
    folders: dict[str, Path], tmp_path: Path, images: list[np.ndarray]
) -> None:
    for kind in ("clip", "siglip", "siglip2"):
        shutil.copytree(folders[kind], tmp_path / kind)
        (tmp_path / kind / "preprocessor_config.json").unlink()
    assert np.isfinite(ClipJudge(str(tmp_path / "siglip")).score(images, TEXTS)).all()
    same = ClipJudge(str(tmp_path / "clip")).score(images, TEXTS)
    assert same == pytest.approx(ClipJudge(str(folders["clip"])).score(images, TEXTS), abs=1e-4)


def test_weights_that_are_no_numbers_give_scores_that_are_none(
    folders: dict[str, Path], tmp_path: Path, images: list[np.ndarray]
) -> None:
    shutil.copytree(folders["clip"], tmp_path / "nan")
    weights = load_file(tmp_path / "nan" / "model.safetensors")
    weights["visual_projection.weight"][:] = float("nan")
    save_file(weights, tmp_path / "nan" / "model.safetensors", {"format": "pt"})
    assert np.isnan(ClipJudge(str(tmp_path / "nan")).score(images, TEXTS)).all()


def _spoil(folder: Path, how: str, clip: Path) -> str:
    if how == "absent":
        return str(folder / "absent")
    if how == "no hub id":
        return "nobody/has-this-judge"
    folder.mkdir()
    if how == "U-Net":
        (folder / "config.json").write_text('{"_class_name": "UNet2DConditionModel", "sample_size": 64}')
    elif how == "pipeline":
        (folder / "model_index.json").write_text("{}")
    elif how == "text model":
        config = CLIPTextConfig(**tiny_models.TOWER, vocab_size=40, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        CLIPTextModel(config).save_pretrained(folder)
    elif how == "not JSON":
        (folder / "config.json").write_text("{")
    elif how == "a list":
        (folder / "config.json").write_text("[]")
    elif how == "a file":
        (folder / "file.safetensors").write_bytes(b"x")
        return str(folder / "file.safetensors")
    elif how != "empty":
        shutil.copytree(clip, folder, dirs_exist_ok=True)
        weights = folder / "model.safetensors"
        if how == "broken weights":
            weights.write_bytes(weights.read_bytes()[:500])
        elif how == "no weights":
            weights.unlink()
        elif how == "half the weights":
            kept = {n: w for n, w in load_file(weights).items() if n.startswith("text_model")}
            save_file(kept, weights, {"format": "pt"})
        elif how == "no tokenizer":
            for file in folder.glob("*token*"):
                file.unlink()
        elif how == "another tokenizer":
            text = json.loads((folder / "tokenizer.json").read_text())
            text["model"]["vocab"] = {token: 1000 + i for token, i in text["model"]["vocab"].items()}
            (folder / "tokenizer.json").write_text(json.dumps(text))
        elif how == "another size":
            told = json.loads((folder / "preprocessor_config.json").read_text())
            told |= {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
            (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return str(folder)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("absent", "there is no folder"),
        ("no hub id", "cannot be read from the hub"),
        ("empty", "the folder is empty"),
        ("a file", "it is a file, not a folder"),
        ("U-Net", "it is a UNet2DConditionModel of diffusers"),
        ("pipeline", "it is a whole diffusers pipeline"),
        ("text model", "it is a CLIPTextModel"),
        ("not JSON", "config.json cannot be read"),
        ("a list", "config.json is no table of keys"),
        ("broken weights", "cannot load the judge"),
        ("no weights", "cannot load the judge"),
        ("half the weights", "lacks"),
        ("no tokenizer", "has no tokenizer that tells words apart"),
        ("another tokenizer", "is another model's"),
        ("another size", "prepares pictures of 24x24 for a tower of 32x32"),
    ],
)
def test_a_folder_that_is_no_clip_is_told_in_one_line(how: str, said: str, folders: dict[str, Path], tmp_path: Path) -> None:
    place = _spoil(tmp_path / "judge", how, folders["clip"])
    with pytest.raises(ModelError) as caught:
        ClipJudge(place)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)
