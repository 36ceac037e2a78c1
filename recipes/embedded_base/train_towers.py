"""Stage 3: a text and an image tower trained together (CLIP), of which the generator keeps the text tower."""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.modeling_clip import CLIPOutput

from . import icons, scenes
from .train_vae import as_batch
from .whole import whole

GROUP = 8  # scenes told in the same words
HEADS = 4.0  # weight of their loss
KNOWN = list(icons.THINGS)
NOTHING = len(KNOWN)
STYLES = list(icons.SETS)
CORNERS = [f"in the {down} {across} corner" for down in ("top", "bottom") for across in ("left", "right")]
PLACES = ["", "on the left", "on the right", "at the top", "at the bottom", *CORNERS, "across", "down", *scenes.TRIPLES]
QUESTIONS = (NOTHING + 1, NOTHING + 1, NOTHING + 1, len(PLACES), len(STYLES))  # answers to each
PATCH, PLACE_SPREAD = 8, 0.3
JOINT = 128  # width of the space where pictures and texts meet
SIZE = dict(hidden_size=192, intermediate_size=640, num_attention_heads=4, hidden_act="quick_gelu")


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIPModel of about 4 M parameters for 64x64 pictures and 32 tokens."""
    ends = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    text = (
        SIZE
        | ends
        | dict(
            vocab_size=len(tokenizer),
            max_position_embeddings=tokenizer.model_max_length,
            num_hidden_layers=4,
            projection_dim=JOINT,
        )
    )
    vision = SIZE | dict(image_size=scenes.SIDE, patch_size=PATCH, num_hidden_layers=5, projection_dim=JOINT)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=JOINT))
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.weight[1:] = places_of(scenes.SIDE // PATCH, SIZE["hidden_size"])
    return model


def places_of(cells: int, width: int) -> torch.Tensor:
    """Where each patch lies, (cells * cells, width): sines and cosines of row and column (Chen et al. 2021, sec. 4.3).

    Drawn at random, 64 places have nothing in common, and a small tower does not learn in hours that some are "left".
    """
    waves = 10_000 ** -(torch.arange(width // 4) / (width // 4))
    turns = torch.arange(cells)[:, None] * waves
    line = torch.cat([turns.sin(), turns.cos()], dim=1)  # (cells, width / 2)
    rows, columns = line[:, None].expand(-1, cells, -1), line[None].expand(cells, -1, -1)
    return PLACE_SPREAD * torch.cat([rows, columns], dim=-1).reshape(cells * cells, width)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step learns from."""

    pixels: torch.Tensor  # (size, 3, 64, 64) in -1..1
    captions: list[str]
    wrong: list[str]  # false captions of some of the pictures
    facts: torch.Tensor  # (size, len(QUESTIONS)): numbers of the right answers, -100 where there is none
    covers: torch.Tensor  # (size, 64): number of the thing that each patch shows, -100 at its border


def facts_of(scene: scenes.Scene) -> list[int]:
    """Answers to `QUESTIONS`: the things in reading order, where they stand, in which style."""
    things = [KNOWN.index(o.thing) for o in scene.objects]
    place = scenes.position_of(scene.objects[0]) if scene.layout == "single" else scene.layout
    hands = {o.style for o in scene.objects}
    style = STYLES.index(hand) if len(hands) == 1 and (hand := hands.pop()) in STYLES else -100
    return [*things, *[NOTHING] * (3 - len(things)), PLACES.index(place), style]


def covers_of(scene: scenes.Scene) -> list[int]:
    """The number of the thing that each patch shows, row by row: `NOTHING` on the ground, -100 too near to a thing's border."""
    cells = scenes.SIDE // PATCH
    found = [NOTHING] * cells**2
    for row, column in np.ndindex(cells, cells):
        for placed in scene.objects:
            across, down = ((k + 0.5) / cells - c for k, c in zip((column, row), placed.centre, strict=True))
            far = 2 * max(abs(across), abs(down)) / placed.size
            if far < 1.2:
                found[row * cells + column] = KNOWN.index(placed.thing) if far < 0.8 else -100
    return found


class Heads(torch.nn.Module):
    """What is in the picture, where and in which style, read off either tower; thrown away when the training is over.

    Without them the towers sort scenes by colour: the text states of a panda and of a football were nearly the same, and those
    of "left" and "right" still when only the things were asked for. Asked of every patch as well, what a picture shows is
    learnt from sixty-four answers and not from one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pictures = torch.nn.ModuleList(torch.nn.Linear(JOINT, n) for n in QUESTIONS)
        self.texts = torch.nn.ModuleList(torch.nn.Linear(SIZE["hidden_size"], n) for n in QUESTIONS)
        self.patches = torch.nn.Linear(SIZE["hidden_size"], NOTHING + 1)

    def forward(self, out: CLIPOutput, batch: Batch) -> torch.Tensor:
        """Mean cross-entropy over the questions: of the joint place, of the mean token state, and of the patches."""
        joint, seen = out.vision_model_output.pooler_output.float(), out.vision_model_output.last_hidden_state[:, 1:].float()
        told = out.text_model_output.last_hidden_state[: len(joint)].float().mean(1)
        asked = [(head, joint) for head in self.pictures] + [(head, told) for head in self.texts]
        losses = [F.cross_entropy(head(x), batch.facts[:, k % len(QUESTIONS)]) for k, (head, x) in enumerate(asked)]
        return torch.stack(losses).mean() + F.cross_entropy(self.patches(seen).flatten(0, 1), batch.covers.flatten()) / 2


def batch_of(step: int, size: int, art: dict) -> Batch:
    """The lessons of one step; the same for the same step.

    Scenes come in groups that differ in one fact alone, told in the same words: were all facts drawn anew, the background
    would tell 64 captions apart and the thing would never be learnt. A false caption says one thing wrong.
    """
    rng = np.random.default_rng([19, step])
    known = list(art)
    pictures, captions, wrong, facts, covers = [], [], [], [], []
    while len(captions) < size:
        wording = int(rng.integers(2**32))
        for scene in group_of(rng, known):
            caption = scenes.describe(np.random.default_rng(wording), scene, icons.STYLE_WORDS)
            if caption in captions or len(captions) == size:
                continue
            pictures.append(scenes.paint_scene(rng, scene, art))
            captions.append(caption)
            facts.append(facts_of(scene))
            covers.append(covers_of(scene))
            false = scenes.false_caption(rng, scene, known, icons.STYLE_WORDS, wording)
            wrong += [false] if false else []
    return Batch(as_batch(pictures), captions, wrong, torch.tensor(facts), torch.tensor(covers))


def group_of(rng: np.random.Generator, drawn: list[tuple[str, str]]) -> list[scenes.Scene]:
    """`GROUP` scenes that differ in a thing (most groups) or in one fact of any kind."""
    first = scenes.draw_scene(rng, drawn)
    kind = "thing" if rng.random() < 0.7 else None
    known, found, tries = set(drawn), [first], 0
    while len(found) < GROUP and tries < 4 * GROUP:
        tries += 1
        scene = scenes.altered(rng, first, drawn, kind)
        if not scenes.held_out(scene) and scene not in found and all((o.thing, o.style) in known for o in scene.objects):
            found.append(scene)
    return found


def compare(model: CLIPModel, tokenizer: CLIPTokenizer, pixels: torch.Tensor, captions: list[str]) -> CLIPOutput:
    """Both towers' answers; `logits_per_image` is (pictures, captions)."""
    tokens = tokenizer(
        captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=tokens.input_ids, attention_mask=None, pixel_values=pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--downloads", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args()
    tokenizer = CLIPTokenizer.from_pretrained(args.out / "tokenizer")
    art = icons.load_icons(args.downloads, icons.of_the_generator())
    torch.manual_seed(2)
    model = build(tokenizer).train()
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(art)} icons",
        flush=True,
    )
    heads = Heads()
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05, fused=True)
    state_file, first = args.out / "towers_state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    started = time.time()
    for step in range(first, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = (
                args.lr * min(1, (step + 1) / 150) * float(0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * step / args.steps)))
            )
        batch = batch_of(step, args.batch, art)
        out = compare(model, tokenizer, batch.pixels, batch.captions + batch.wrong)
        logits, target = out.logits_per_image.float(), torch.arange(args.batch)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T[: args.batch], target)) / 2
        loss = loss + HEADS * heads(out, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        model.logit_scale.data.clamp_(max=4.6)
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            row = dict(step=step + 1, loss=loss.item(), seconds=time.time() - started)
            row |= accuracy(model, heads, tokenizer, art)
            with (args.out / "towers.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(row, flush=True)
            torch.save(
                {
                    "model": model.state_dict(),
                    "heads": heads.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step + 1,
                },
                state_file,
            )
    model.eval()
    with whole(args.out / "text_encoder") as folder:
        model.text_model.save_pretrained(folder)


@torch.no_grad()
def accuracy(model: CLIPModel, heads: Heads, tokenizer: CLIPTokenizer, art: dict) -> dict[str, float]:
    """Of unseen scenes: own caption first among 64, and the heads' answers about the first thing, the place, the style."""
    model.eval()
    found: dict[str, list[torch.Tensor]] = {"top1": [], "thing": [], "place": [], "style": []}
    for k in range(4):
        batch = batch_of(10**9 + k, 64, art)
        out = compare(model, tokenizer, batch.pixels, batch.captions)
        found["top1"].append(out.logits_per_image.argmax(1) == torch.arange(64))
        for name, question in (("thing", 0), ("place", 3), ("style", 4)):
            answers = heads.pictures[question](out.vision_model_output.pooler_output.float()).argmax(1)
            asked = batch.facts[:, question]
            found[name].append((answers == asked)[asked >= 0])
    model.train()
    return {name: round(float(torch.cat(hits).float().mean()), 4) for name, hits in found.items()}


if __name__ == "__main__":
    main()
