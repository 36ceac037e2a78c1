"""The model to tune: where it lies, what it is made of, how it is loaded with and without the trained weights."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dovetail.config import Repo, Training
from dovetail.core import digests
from dovetail.edges.folders import Artifact, Run, digest_folder, write_json
from dovetail.edges.registry import Registry, default_root
from dovetail.records import Hints, Manifest

if TYPE_CHECKING:
    from dovetail.edges.models import Models

EMBEDDED = Path(__file__).parent / "base"
HINTS = "hints.json"
FEW_STEP_FILE = "few_step/pytorch_lora_weights.safetensors"  # of a base that has a few-step version
KEPT = (  # as they are
    "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler", "feature_extractor", "safety_checker",
    "image_encoder",
)  # fmt: skip
DEFAULT_JUDGE = "openai/clip-vit-base-patch32"


def find(name: str, revision: str | None = None, downloads: str | None = None) -> Path:
    """The diffusers folder that a base's name stands for; `revision` and folder of `downloads` are for hub ids."""
    if name == "embedded" and (EMBEDDED / "model_index.json").exists():
        return EMBEDDED  # without loading the libraries that the other kinds need
    from dovetail.edges import models

    return models.resolve(name, EMBEDDED, default_root().parent / "converted", revision, downloads)


def part_digest(folder: Path, part: str) -> str:
    """Digest of the files of one part of a diffusers folder: `vae`, say."""
    return digests.of_files(digest_folder(folder / part))


def artifact(name: str, run: Run) -> Artifact:
    """The base as the artifact that everything starts from: its files and their digests.

    Files are digested once; later only their names, sizes and times are compared.
    """
    folder = find(name)
    stamp = [
        [p.relative_to(folder).as_posix(), (s := p.stat()).st_size, s.st_mtime_ns]
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    ]
    remembered = run.root / "base.json"
    try:
        told = json.loads(remembered.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = {}
    if told.get("stamp") != stamp or told.get("folder") != str(folder):
        told = {"folder": str(folder), "stamp": stamp, "files": digest_folder(folder)}
        if run.root.is_dir():  # looking makes nothing
            write_json(remembered, told)
    files: dict[str, str] = told["files"]
    content = digests.of_files(files)
    manifest = Manifest(
        stage="base", asked={}, asked_digest=content, content=content, files=files, made_at="", seconds=0.0, dovetail=""
    )
    return Artifact(folder, manifest)


def load(folder: Path) -> "Models":
    """The parts of a diffusers folder, on the best device."""
    from dovetail.edges import machine, models

    return models.Models(folder, machine.pick_device())


def load_tuned(folder: Path, trained: Artifact, config: Training) -> "Models":
    """The base with what a training gave in its U-Net (LoRA adapters are left on, ready to be kept or added in)."""
    from dovetail.edges import adapters, tensors, words

    tuned = load(folder)
    tuned.prediction = config.prediction_type
    weights = tensors.read(trained.folder / "weights.safetensors", trained.manifest.files["weights.safetensors"])
    for part, reader in tuned.encoders.items():
        text = {name.removeprefix(f"{part}."): weights.pop(name) for name in list(weights) if name.startswith(f"{part}.")}
        encoder = getattr(tuned, part) if text else None
        if config.method == "textual_inversion":
            words.add(getattr(tuned, reader), encoder, config.placeholder, config.placeholder_vectors, config.initializer)
            words.put(encoder, text)
        elif text:
            adapters.put(encoder, text, config.method, config.lora_rank, config.lora_alpha)
        tuned.text_taught |= bool(text)
    if config.method != "textual_inversion":
        adapters.put(tuned.unet, weights, config.method, config.lora_rank, config.lora_alpha)
    return tuned


def version_in_production(config: Repo, trained: Artifact) -> str | None:
    """The version of the same name that a training would replace; None where there is none."""
    registry = Registry(Path(config.registry) if config.registry else default_root())
    return registry.reference(config.name, trained.content) if config.name else None


def published(config: Repo, version: str) -> Path:
    """The folder of a published version."""
    return Registry(Path(config.registry) if config.registry else default_root()).version_folder(config.name, version)


def judge_folder(folder: Path) -> str:
    """What judges a base's pictures where nothing else is named: its own judge, else a public CLIP."""
    own = folder / "judge"
    return str(own) if own.is_dir() else DEFAULT_JUDGE


def hints(folder: Path) -> Hints:
    """What came with a model in its `hints.json`; what Stable Diffusion at large wants where it has none."""
    file = folder / HINTS
    return Hints(**json.loads(file.read_text(encoding="utf-8"))) if file.exists() else Hints()
