"""Where a model is found, what is refused, and what its parts give."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from tiny import SIDE, TOKENS, WIDTH

from dovetail.edges import adapters, models, tensors
from dovetail.edges.models import Models
from dovetail.errors import ModelError, StoreError

CPU = torch.device("cpu")


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


def _resolve(name: str, tmp_path: Path) -> Path:
    return models.resolve(name, tmp_path / "embedded", tmp_path / "cache")


def test_a_diffusers_folder_is_found(tiny_base: Path, tmp_path: Path) -> None:
    assert _resolve(str(tiny_base), tmp_path) == tiny_base


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no such model", "there is no model 'no such model'"),
        ("", "model"),
        ("a/b/c/d", "there is no model"),
        ("weights.ckpt", "pickle"),
        ("weights.bin", "pickle"),
        ("missing.safetensors", "there is no file missing.safetensors"),
        ("owner/name-that-no-hub-has", "cannot fetch owner/name-that-no-hub-has from the hub"),
        ("embedded", "embedded base is not in this installation"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line_with_a_next_step(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=said) as caught:
        _resolve(name, tmp_path)
    assert "; " in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_folder_without_model_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no model_index\.json"):
        _resolve(str(tmp_path), tmp_path)


def test_a_safetensors_file_that_is_no_checkpoint_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(tensors.to_bytes({"a": torch.zeros(2)}))
    with pytest.raises(ModelError, match=r"cannot read .*x\.safetensors"):
        _resolve(str(tmp_path / "x.safetensors"), tmp_path)
    assert not (tmp_path / "cache").exists()


def test_a_folder_with_pickled_weights_only_is_refused(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ModelError, match="cannot load unet of the model"):
        _ = Models(copy, CPU).unet


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("vae", "config.json"),
        ("text_encoder", "model.safetensors"),
        ("tokenizer", "tokenizer.json"),
        ("scheduler", "scheduler_config.json"),
    ],
)
def test_a_missing_or_broken_part_is_named(copy: Path, part: str, file: str) -> None:
    for damage in ("{", None):
        if damage is None:
            shutil.rmtree(copy / part)
        else:
            (copy / part / file).write_text(damage)
        with pytest.raises(ModelError, match=part):
            found = getattr(Models(copy, CPU), part)
            found() if part == "scheduler" else None


def test_sizes_are_read_from_the_parts(tiny_base: Path) -> None:
    found = Models(tiny_base, CPU)
    assert (found.resolution, found.pixels_per_latent) == (SIDE, 4)
    assert not any(p.requires_grad for part in (found.unet, found.vae, found.text_encoder) for p in part.parameters())


def test_text_states_have_a_row_for_each_token_and_a_long_prompt_is_cut(tiny_base: Path) -> None:
    found = Models(tiny_base, CPU)
    states = found.embed(["a cat", "word " * 500, ""])
    assert states.shape == (3, TOKENS, WIDTH) and states.dtype == torch.float32
    torch.testing.assert_close(found.embed(["a cat"])[0], states[0])
    assert not torch.allclose(states[0], states[2])
    ids = found.tokenizer(
        ["a cat", "word " * 500], padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    torch.testing.assert_close(found.text_encoder(ids.input_ids)[0], states[:2])  # in one piece as diffusers reads it


def test_a_long_text_is_read_in_pieces_and_a_short_one_filled_up(tiny_base: Path) -> None:
    found, long, read = Models(tiny_base, CPU), "red blue " * 40, TOKENS - 2
    words = found.tokenizer(long, add_special_tokens=False, verbose=False).input_ids
    assert found.pieces(long) == -(-len(words) // read) > 2 and found.pieces("a cat") == found.pieces("") == 1
    states = found.embed([long, "a cat"], 2)
    assert states.shape == (2, 2 * TOKENS, WIDTH)
    torch.testing.assert_close(states[1], torch.cat([*found.embed(["a cat", ""])]))
    second = torch.tensor([[found.tokenizer.bos_token_id, *words[read : 2 * read], found.tokenizer.eos_token_id]])
    torch.testing.assert_close(states[0, TOKENS:], found.text_encoder(second)[0][0])


def test_moments_are_the_autoencoders_and_decoding_is_its_way_back(tiny_base: Path) -> None:
    found = Models(tiny_base, CPU)
    vae = AutoencoderKL.from_pretrained(tiny_base / "vae")
    picture = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(picture).latent_dist
        torch.testing.assert_close(found.moments(picture), posterior.parameters)
        wanted = ((vae.decode(posterior.mean).sample / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
    made = found.decode(posterior.mean * vae.config.scaling_factor)
    assert made.dtype == np.uint8 and np.abs(made.astype(int) - wanted).max() <= 1


def test_half_precision_weights_are_loaded_in_float32(copy: Path) -> None:
    UNet2DConditionModel.from_pretrained(copy / "unet").half().save_pretrained(copy / "unet")
    assert {p.dtype for p in Models(copy, CPU).unet.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_saved_unet_reads_back_rounded_and_the_one_in_memory_is_as_it_was(
    tiny_base: Path, tmp_path: Path, dtype: str
) -> None:
    unet = Models(tiny_base, CPU).unet
    before = {n: t.clone() for n, t in unet.state_dict().items()}
    models.save_unet(unet, tmp_path / "unet", dtype)
    assert all(torch.equal(t, before[n]) and t.dtype == torch.float32 for n, t in unet.state_dict().items())
    written = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    kind = getattr(torch, dtype)
    assert written.keys() == before.keys() and all(torch.equal(t, before[n].to(kind)) for n, t in written.items())
    assert not list(tmp_path.rglob("*.bin"))
    assert str(tiny_base) not in (tmp_path / "unet" / "config.json").read_text()


def test_weights_of_another_model_are_refused(tiny_base: Path) -> None:
    with pytest.raises(ModelError, match="do not fit the base"):
        adapters.put(Models(tiny_base, CPU).unet, {"no.such.weight": torch.zeros(1)}, "full", 1, 1)


def test_fresh_adapters_change_nothing_and_follow_from_their_seed(tiny_base: Path) -> None:
    plain, adapted, again = (Models(tiny_base, CPU).unet for _ in range(3))
    state = torch.random.get_rng_state()
    added = adapters.add(adapted, "lora", 2, 2, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert added and all(p.dtype == torch.float32 for p in added)
    sample, states = torch.randn(1, 4, 8, 8), torch.randn(1, TOKENS, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(adapted(sample, 5, states).sample, plain(sample, 5, states).sample)
    assert all(torch.equal(a, b) for a, b in zip(added, adapters.add(again, "lora", 2, 2, seed=5), strict=True))


@pytest.mark.parametrize("method", ["lora", "dora", "lokr"])
def test_fused_adapters_say_the_same_as_adapters_left_on(tiny_base: Path, method: str) -> None:
    unet, plain = Models(tiny_base, CPU).unet, Models(tiny_base, CPU).unet
    for parameter in adapters.add(unet, method, 2, 6, seed=1):
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(2))
    sample, states = torch.randn(1, 4, 8, 8), torch.randn(1, TOKENS, WIDTH)
    with torch.no_grad():
        left_on = unet(sample, 5, states).sample
        assert not torch.allclose(left_on, plain(sample, 5, states).sample, atol=1e-3)
        adapters.fuse(unet)
        torch.testing.assert_close(unet(sample, 5, states).sample, left_on, atol=2e-4, rtol=1e-3)
    assert not any("lora" in name for name in unet.state_dict())


def test_the_scheduler_is_a_fresh_one_of_the_class_that_the_folder_names(copy: Path) -> None:
    found = Models(copy, CPU)
    first, second = found.scheduler(), found.scheduler()
    first.set_timesteps(3)
    assert first is not second and type(first).__name__ == "DDIMScheduler" and second.num_inference_steps is None
    told = json.loads((copy / "scheduler" / "scheduler_config.json").read_text()) | {"_class_name": "EulerDiscreteScheduler"}
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))
    assert type(found.scheduler()).__name__ == "EulerDiscreteScheduler"


def test_tensors_have_the_same_bytes_for_the_same_values_and_damage_is_noticed(tmp_path: Path) -> None:
    one, other = {"b": torch.ones(2), "a": torch.zeros(3)}, {"a": torch.zeros(3), "b": torch.ones(2)}
    assert tensors.to_bytes(one) == tensors.to_bytes(other) and tensors.digest(one) == tensors.digest(other)
    assert (
        len(
            {
                tensors.digest(x)
                for x in (
                    one,
                    {"a": torch.zeros(3)},
                    {"b": torch.ones(2), "a": torch.zeros(3, 1)},
                    {"b": torch.ones(2), "a": torch.zeros(3).half()},
                )
            }
        )
        == 4
    )
    (tmp_path / "t.safetensors").write_bytes(tensors.to_bytes(one))
    assert torch.equal(tensors.read(tmp_path / "t.safetensors")["b"], torch.ones(2))
    with pytest.raises(StoreError, match="damaged"):
        tensors.read(tmp_path / "t.safetensors", "0" * 64)


def test_parts_that_threads_load_at_the_same_time_are_whole(tiny_base: Path) -> None:
    """transformers builds a model without weights first, and says so to all threads."""
    for _ in range(8):
        each = [(Models(tiny_base, torch.device("cpu")), part) for part in ("vae", "text_encoder", "unet")]
        with ThreadPoolExecutor(3) as threads:
            loaded = list(threads.map(lambda told: getattr(*told), each))
        assert not any(p.is_meta for model in loaded for p in model.parameters())
