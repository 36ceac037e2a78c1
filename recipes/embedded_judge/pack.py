"""The trained towers as a folder that ships: half precision, tokenizer, known words, where the drawings came from."""

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from dovetail.evaluation.embedded_judge import FORMAT
from recipes.embedded_base.whole import whole

from . import lessons, selection, texts

HANDS = 2  # that must have drawn something for its word to count as known


def known_words(art: lessons.Art) -> list[str]:
    """Single words that stand in the names of drawings by at least `HANDS` hands, and whole names of as many."""
    hands: dict[str, set[str]] = defaultdict(set)
    for name, by in art.by_name.items():
        for word in {name, *name.split()}:
            hands[word].update(by)
    return sorted(w for w, by in hands.items() if len(by) >= HANDS and (" " not in w or len(by) >= 2 * HANDS))


def notice(art: lessons.Art, package: Path) -> str:
    """A table of the sets whose drawings the judge was trained on: license, author, how many."""
    collections = json.loads((package / "collections.json").read_text())
    version = json.loads((package / "package.json").read_text())["version"]
    lines = [
        f"The embedded judge was trained on renderings of these icon sets of npm's @iconify/json {version}, each changed in "
        "size, color and background:",
        "",
        "| set | author | license | drawings |",
        "|---|---|---|---|",
    ]
    counts = Counter(r.icon.set for r in art.rows)
    for name in sorted(set(counts) & set(collections)):
        about = collections[name]
        author = f"{about['author']['name']} ({url})" if (url := about["author"].get("url")) else about["author"]["name"]
        license_title = about["license"].get("spdx") or about["license"]["title"]
        lines.append(f"| {name} | {author} | {license_title} | {counts[name]} |")
    lines += ["", f"Besides, {counts['invented']} televisions painted by recipes/embedded_base/televisions.py."] * bool(
        counts["invented"]
    )
    return "\n".join(lines) + "\n"


def pack(build: Path, judge: Path, package: Path) -> None:
    """Write the averaged towers of `build/captions.pt` to the folder `judge`, whole or not at all."""
    state = torch.load(build / "captions.pt", weights_only=True, mmap=True)
    weights = {k.removeprefix("towers."): v for k, v in state["mean"].items() if k.startswith("towers.")}
    half = {k: (v.half() if v.is_floating_point() else v).contiguous().clone() for k, v in weights.items()}
    art = lessons.Art(build / "art")
    with whole(judge) as folder:
        save_file(half, folder / "model.safetensors")
        (folder / "model.safetensors").chmod(0o644)
        told = {"format": FORMAT, "name": "embedded judge", "side": lessons.SIDE, "shape": state["shape"],
                "steps": state["step"]}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(told, indent=2) + "\n")
        texts.make_tokenizer(art, build).save_pretrained(folder)
        (folder / "words.json").write_text(json.dumps({"words": known_words(art)}, separators=(",", ":")) + "\n")
        (folder / "NOTICE").write_text(notice(art, package))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, required=True, help="npm's @iconify/json, unpacked")
    parser.add_argument("--out", type=Path, required=True, help="where the training left its state")
    parser.add_argument("--judge", type=Path, default=selection.HERE.parents[1] / "src" / "dovetail" / "base" / "judge")
    args = parser.parse_args()
    pack(args.out, args.judge, args.package)
    print({f.name: f.stat().st_size for f in sorted(args.judge.iterdir())})


if __name__ == "__main__":
    main()
