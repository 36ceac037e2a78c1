"""Stage 8, model upload: construct the repository (folder, card, licences, checksums) and put it into the registry."""

import json
import shutil
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dovetail import bases
from dovetail.config import Repo
from dovetail.core import cards, digests, layouts
from dovetail.edges import adapters, pixels, words
from dovetail.edges import models as model_edge
from dovetail.edges.folders import Artifact, Desk, digest_folder, link_or_copy, write_bytes, write_json
from dovetail.edges.models import Models
from dovetail.edges.registry import Registry
from dovetail.records import Example, Rejected, ScoredSample

PAIRS_SHOWN = 8
LEARNT = "learned_embeds.safetensors"
OPEN_CLIP_WIDTH = 1024  # of the text encoder of SD 2.x; that of SD 1.x has 768


def publish(
    base_name: str, base: Artifact, pairs: Artifact, dataset: Artifact, checkpoint: Artifact, verdict: Artifact,
    tuned: Models, method: str, config: Repo, desk: Desk,
) -> None:  # fmt: skip
    """Checkpoint and verdict -> `model/`, a diffusers folder with everything but the U-Net byte for byte the base's.

    Each written weight file is read back and compared before the folder is published.
    """
    root = desk.folder / "model"
    shutil.rmtree(root, ignore_errors=True)
    for part in bases.KEPT:
        for file in sorted(f for f in base.manifest.files if f.startswith(f"{part}/")):
            link_or_copy(base.folder / file, root / file)
    training = json.loads((checkpoint.folder / "training.json").read_text())
    if method == "textual_inversion":
        _new_word(tuned, training["placeholder"], root)
    elif method != "full":
        _adapters(tuned, method, root)
    model_edge.save_unet(tuned.unet, root / "unet", config.dtype)
    if tuned.prediction:
        (root / "scheduler" / "scheduler_config.json").unlink()  # a link to the base's own
        tuned.scheduler().save_pretrained(root / "scheduler")
    write_json(root / "model_index.json", json.loads((base.folder / "model_index.json").read_text()))
    model_edge.same_unet(tuned.unet, root, config.dtype)
    if config.single_file:
        model_edge.save_single_file(tuned, root / f"{config.name}.safetensors", config.dtype, _single_file_names(tuned))
    examples = dataset.records(Example)
    told = json.loads((verdict.folder / "verdict.json").read_text())
    write_bytes(root / "eval" / "before-after.png", before_after(verdict))
    write_json(root / "eval" / "verdict.json", told)
    write_json(root / "provenance.json", _provenance(base_name, base, dataset, checkpoint, examples))
    facts = {
        "name": config.name, "base": base_name, "base_licence": _base_licence(base), "training": training, "verdict": told,
        "examples": examples, "rejected": pairs.records(Rejected, "rejected.jsonl"), "picture": "eval/before-after.png",
        "versions": {name: version(name) for name in ("dovetail", "diffusers", "transformers", "torch")},
    }  # fmt: skip
    write_bytes(root / "README.md", cards.model_card(facts).encode())
    for name in sorted(
        f for f in base.manifest.files if "/" not in f and f.upper().startswith(("LICENSE", "LICENCE", "HINTS.JSON"))
    ):
        link_or_copy(base.folder / name, root / name)
    write_bytes(root / "NOTICE", _notice(base_name, base, examples, _changed(tuned, method)).encode())
    sums = digest_folder(root)
    write_bytes(root / "SHA256SUMS", "".join(f"{sha}  {name}\n" for name, sha in sums.items()).encode())
    number = digests.of_files(sums)[:12]
    Registry(Path(config.registry)).add(config.name, number, root)
    write_json(desk.folder / "published.json", {"name": config.name, "version": number, "registry": config.registry})


def _adapters(tuned: Models, method: str, root: Path) -> None:
    """The adapters in files of their own; then added in, those of taught text encoders into their folders."""
    taught = {"unet": tuned.unet} | ({part: getattr(tuned, part) for part in tuned.encoders} if tuned.text_taught else {})
    adapters.write(root, taught)
    own = (
        partial(layouts.kohya_name, rename=partial(layouts.sgm_module, **_shape(tuned))) if tuned.is_xl else layouts.kohya_name
    )
    first = partial(layouts.kohya_text_name, encoder="te1") if tuned.is_xl else layouts.kohya_text_name
    names = {"unet": own, "text_encoder": first, "text_encoder_2": partial(layouts.kohya_text_name, encoder="te2")}
    adapters.write_kohya(root / ("lycoris_lokr.safetensors" if method == "lokr" else "kohya_lora.safetensors"), names, taught)
    for model in taught.values():
        adapters.fuse(model)
    if tuned.text_taught:
        _text_encoders(tuned, root)


def _new_word(tuned: Models, placeholder: str, root: Path) -> None:
    """The learnt vectors in a file of their own; then in the text encoders and the tokenizers."""
    encoders = [getattr(tuned, part) for part in tuned.encoders]
    words.write(dict(zip(("clip_l", "clip_g") if tuned.is_xl else (placeholder,), encoders, strict=True)), root / LEARNT)
    for encoder in encoders:
        words.fuse(encoder)
    _text_encoders(tuned, root)
    for reader in tuned.encoders.values():
        shutil.rmtree(root / reader)
        getattr(tuned, reader).save_pretrained(root / reader)


def _text_encoders(tuned: Models, root: Path) -> None:
    for part in tuned.encoders:
        shutil.rmtree(root / part)  # links to the base's own
        getattr(tuned, part).save_pretrained(root / part, safe_serialization=True)


def _single_file_names(tuned: Models) -> dict[str, tuple[str, tuple[str, ...]]]:
    text, second = tuned.text_encoder, tuned.text_encoder_2.state_dict() if tuned.is_xl else {}
    return layouts.single_file(
        tuned.unet.state_dict(), tuned.vae.state_dict(), text.state_dict(), second, **_shape(tuned),
        vae_blocks=len(tuned.vae.config.block_out_channels), open_clip=text.config.hidden_size == OPEN_CLIP_WIDTH,
    )  # fmt: skip


def _shape(tuned: Models) -> dict[str, Any]:
    """What the names in a single file depend on."""
    config = tuned.unet.config
    attended = frozenset(i for i, kind in enumerate(config.up_block_types) if "CrossAttn" in kind)
    return {"layers_per_block": config.layers_per_block, "attended": attended}


def before_after(verdict: Artifact) -> bytes:
    """PNG: different held-out prompts, the base above and the tuned model below, at the same seeds, four times as large."""
    samples = [s for s in verdict.records(ScoredSample) if s.group == "held-out"]
    first = list({s.prompt: s for s in reversed(samples)}.values())[::-1]
    chosen = (first + [s for s in samples if s not in first])[:PAIRS_SHOWN]
    if not chosen:
        return pixels.png(pixels.grid([pixels.read(f) for f in sorted(verdict.folder.rglob("*.png"))[:1]], 1))
    files = [s.base_file for s in chosen] + [s.tuned_file for s in chosen]
    pictures = [pixels.read(verdict.folder / f) for f in files]
    times = max(1, 192 // pictures[0].shape[0])
    return pixels.png(pixels.grid([pixels.enlarged(p, times) for p in pictures], len(chosen), gap=8))


def _base_licence(base: Artifact) -> str:
    """As the base's own card states it."""
    card = base.folder / "README.md"
    for line in card.read_text(encoding="utf-8", errors="replace").splitlines() if card.exists() else []:
        if line.startswith("license:"):
            return line.removeprefix("license:").strip()
    return "not stated"


def _provenance(
    base_name: str, base: Artifact, dataset: Artifact, checkpoint: Artifact, examples: list[Example]
) -> dict[str, object]:
    return {
        "base": {"name": base_name, "content": base.content, "files": base.manifest.files},
        "dataset": {"content": dataset.content},
        "checkpoint": {"content": checkpoint.content, "asked": checkpoint.manifest.asked},
        "pictures": [
            {
                "sha256": e.key,
                "name": e.name,
                "split": e.split,
                "caption": e.caption,
                "license": e.licence,
                "author": e.author,
                "origin": e.origin,
            }
            for e in examples
        ],
    }


def _changed(tuned: Models, method: str) -> str:
    """What is no longer the base's own."""
    text = "text encoders" if tuned.is_xl else "text encoder"
    if method == "textual_inversion":
        return text
    return f"U-Net and {text}" if tuned.text_taught else "U-Net"


def _notice(base_name: str, base: Artifact, examples: list[Example], changed: str) -> str:
    lines = [
        f"This model was made from {base_name} by changing the weights of its {changed}.",
        "",
        "It was tuned on pictures by:",
    ]
    lines += [f"- {author} ({licence}), {n} pictures" for licence, author, n in cards.licence_rows(examples)]
    own = base.folder / "NOTICE"
    return "\n".join([*lines, *(["", own.read_text(encoding="utf-8").strip()] if own.exists() else [])]) + "\n"
