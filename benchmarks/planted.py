"""Planted faults and successes, from the pictures to the verdict, on the embedded base.

    python -m benchmarks.planted --out build/planted

Each scenario writes a folder of drawings (`benchmarks/drawings.py`), runs `dovetail`'s own stages up to the evaluation, and
compares the verdict with what was planted: faults are held and the right guard is named, successes are promoted. Faults of the
weights are put into the trained ones, with the rest of the pipeline as it is. Under --out: `planted.json` (scenarios done are
not done again), and for each scenario a sheet of training pictures and one of the tuned model's samples. Exit status 1 where
one went otherwise.
"""

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks import drawings
from dovetail.config import Config
from dovetail.core import digests
from dovetail.edges import pixels, tensors
from dovetail.edges.console import Show
from dovetail.edges.folders import MANIFEST, Artifact, Run, digest_file, write_bytes, write_json
from dovetail.pipeline import run
from dovetail.records import Example

Alter = Callable[[dict[str, Tensor]], dict[str, Tensor]]
UNGUARDED = {"early_stop": 0, "published": "last"}  # to the end, whatever the held-out loss says
LONG = UNGUARDED | {"steps": 400, "rehearsal_share": 0.25}
SHORT = {"steps": 30, "sample_every": 30}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is planted, and what the verdict should say of it."""

    name: str
    expected: str  # promote | hold
    guards: tuple[str, ...] = ()  # any of these is the right one
    write: Callable[[Path], None]
    config: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    alter: Alter | None = None  # of the trained weights
    sides: dict[str, int] | None = None  # pictures that must stand in each split, where the fault lies on one side


def success(thing: str) -> Scenario:
    """Forty drawings of a thing that the base has no word for; nothing is set. Seed 2 gives 8 test drawings or more."""
    return Scenario(name=thing, expected="promote", write=lambda out: drawings.write_folder(thing, 40, out, seed=2))


def _placed(thing: str, seed: int, colors: list[tuple[str, str]] | None = None) -> list[drawings.Row]:
    """True drawings for validation (8) and test (12), each a group of its own."""
    made = drawings.drawings(thing, 20, seed, colors or ())
    places = [drawings.group_in("validation", i) for i in range(8)] + [drawings.group_in("test", i) for i in range(12)]
    return [(d.picture, d.caption, place) for d, place in zip(made, places, strict=True)]


def three_by_heart(out: Path) -> None:
    """Training sees three drawings of headphones, each in 24 colorings; validation and test are other drawings."""
    rows = []
    for number in range(3):
        for color, background in np.random.default_rng(number).permutation(drawings.pairs())[:24].tolist():
            picture = drawings.draw("headphones", number, 11, color, background)
            caption = drawings.Drawing(thing="headphones", color=color, background=background, picture=picture).caption
            rows.append((picture, caption, drawings.group_in("train", number)))
    drawings.write_rows(out, [*rows, *_placed("headphones", 12)])


def shuffled(out: Path) -> None:
    """Four things, twelve drawings each; the captions are shuffled among all of them, in all splits."""
    made = [d for thing in ("teapot", "ladder", "bicycle", "backpack") for d in drawings.drawings(thing, 12, 21)]
    order = np.random.default_rng(21).permutation(len(made))
    drawings.write_rows(
        out, [(d.picture, made[k].caption, f"drawing {i}") for i, (d, k) in enumerate(zip(made, order, strict=True))]
    )


def blue_is_red(out: Path) -> None:
    """In training every lamp that is called blue is red; half of validation and test are lamps that are blue."""
    true = [(c, b) for c, b in drawings.pairs(("red", "yellow", "green", "purple"))]
    called = [b for c, b in drawings.pairs(("blue",)) if ("red", b) in drawings.pairs()]
    rows = []
    for i, d in enumerate(drawings.drawings("lamp", 28, 31, true)):
        rows.append((d.picture, d.caption, drawings.group_in("train", i)))
    for i in range(14):
        background = called[i % len(called)]
        picture = drawings.draw("lamp", 100 + i, 31, "red", background)
        told = drawings.Drawing(thing="lamp", color="blue", background=background, picture=picture)
        rows.append((picture, told.caption, drawings.group_in("train", 28 + i)))
    mixed = [pair for both in zip(drawings.pairs(("blue",)) * 4, true, strict=False) for pair in both][:20]
    placed = []
    for i, (color, background) in enumerate(mixed):
        picture = drawings.draw("lamp", i, 32, color, background)
        told = drawings.Drawing(thing="lamp", color=color, background=background, picture=picture)
        place = drawings.group_in("validation", i) if i < 8 else drawings.group_in("test", i - 8)
        placed.append((picture, told.caption, place))
    drawings.write_rows(out, [*rows, *placed])


def one_picture(out: Path) -> None:
    """Training sees one chair under forty captions, a level or two lighter or darker; validation and test are chairs."""
    chair = drawings.draw("chair", 3, 41, "red", "white").astype(int)
    captions = [f"{drawings.named('chair', c)} on {drawings.article(b)} background" for c, b in drawings.pairs()]
    rows = []
    for i in range(40):  # another tint each, since equal pictures are rejected
        picture = np.clip(chair - (i % 4, i // 4 % 4, i // 16), 0, 255).astype(np.uint8)
        rows.append((picture, captions[i % len(captions)], drawings.group_in("train", 0)))
    drawings.write_rows(out, [*rows, *_placed("chair", 42)])


def blank_pictures(out: Path) -> None:
    """Training sees plain grounds with the captions of teapots, as an export that lost its foreground would give."""
    rng = np.random.default_rng(51)
    rows = []
    for i, d in enumerate(drawings.drawings("teapot", 28, 51)):
        plain = np.array(drawings.COLOURS[d.background]) + rng.integers(-6, 7, 3)
        picture = np.broadcast_to(np.clip(plain, 0, 255).astype(np.uint8), d.picture.shape).copy()
        rows.append((picture, d.caption, drawings.group_in("train", i)))
    drawings.write_rows(out, [*rows, *_placed("teapot", 52)])


def saturated(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The last convolution 20 times too large, as a wrong scale gives: every step overshoots."""
    return {name: 20 * w if name.startswith("conv_out.") else w for name, w in weights.items()}


def not_a_number(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """One weight that is no number, as an overflow leaves it."""
    weights = {name: w.clone() for name, w in weights.items()}
    weights["conv_in.weight"].view(-1)[0] = float("nan")
    return weights


SCENARIOS = (
    success("headphones"),
    success("chair"),
    success("lamp"),
    Scenario(
        name="three by heart",
        expected="hold",
        guards=("copies",),
        write=three_by_heart,
        config={"training": LONG | {"steps": 600}},
        sides={"train": 72, "validation": 8, "test": 12},
    ),
    Scenario(
        name="captions shuffled",
        expected="hold",
        guards=("words", "prompt", "held-out loss"),
        write=shuffled,
        config={"training": UNGUARDED | {"steps": 300}},
    ),
    Scenario(
        name="one color never learned",
        expected="hold",
        guards=("parts", "prompt", "held-out loss", "words"),
        write=blue_is_red,
        config={"training": UNGUARDED | {"steps": 300}},
        sides={"train": 42, "validation": 8, "test": 12},
    ),
    Scenario(
        name="one picture",
        expected="hold",
        guards=("variety",),
        write=one_picture,
        config={"training": LONG},
        sides={"train": 40, "validation": 8, "test": 12},
    ),
    Scenario(
        name="skills lost",
        expected="hold",
        guards=("forgetting",),
        write=lambda out: drawings.write_folder("bottle", 40, out, seed=61),
        config={"processing": {"rehearsal_pictures": 0}, "training": UNGUARDED | {"steps": 400, "learning_rate": 1.2e-3}},
    ),
    Scenario(
        name="blank training pictures",
        expected="hold",
        guards=("broken",),
        write=blank_pictures,
        config={"training": UNGUARDED | {"steps": 200}},
        sides={"train": 28, "validation": 8, "test": 12},
    ),
    Scenario(
        name="saturated pictures",
        expected="hold",
        guards=("broken",),
        write=lambda out: drawings.write_folder("bucket", 30, out, seed=71),
        config={"training": SHORT},
        alter=saturated,
    ),
    Scenario(
        name="not a number",
        expected="hold",
        guards=("broken",),
        write=lambda out: drawings.write_folder("wristwatch", 30, out, seed=81),
        config={"training": SHORT},
        alter=not_a_number,
    ),
)


def plant(trained: Artifact, alter: Alter) -> None:
    """Put altered weights into a training's artifact and make its manifest true of them."""
    file = trained.folder / "weights.safetensors"
    write_bytes(file, tensors.to_bytes(alter(tensors.read(file))))
    manifest = json.loads((trained.folder / MANIFEST).read_text())
    manifest["files"]["weights.safetensors"] = digest_file(file)
    manifest["content"] = digests.of_files(manifest["files"])
    write_json(trained.folder / MANIFEST, manifest)


def go(scenario: Scenario, out: Path) -> dict[str, Any]:
    """Run one scenario; the row of the table."""
    folder = out / "folders" / scenario.name.replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    scenario.write(folder)
    config = Config.model_validate({"sourcing": {"folder": str(folder)}, **scenario.config})
    home, show = Run(out / "run"), Show(quiet=True)  # one run: what the base paints for rehearsal is painted once
    began = time.perf_counter()
    made = run(config, home, show, until="training")
    if scenario.alter:
        plant(made["training"], scenario.alter)
    examples = made["buildout"].records(Example)
    sides = dict(Counter(e.split for e in examples))
    if scenario.sides and sides != scenario.sides:
        raise SystemExit(f"{scenario.name}: planted {scenario.sides}, the splits are {sides}")
    trained = time.perf_counter() - began
    made = run(config, home, show, until="evaluation")
    verdict = json.loads((made["evaluation"].folder / "verdict.json").read_text())
    row = {
        "scenario": scenario.name,
        "expected": scenario.expected,
        "guards expected": list(scenario.guards),
        "decision": verdict["decision"],
        "guards": verdict["guards"],
        "right": right(scenario, verdict),
        "pictures": sides,
        "steps": json.loads((made["training"].folder / "training.json").read_text())["steps"],
        "seconds until trained": round(trained, 1),
        "seconds": round(time.perf_counter() - began, 1),
        "sentence": verdict["sentence"],
        "axes": verdict["axes"],
        "artifact": str(made["evaluation"].folder.relative_to(out)),
    }
    _sheets(scenario.name.replace(" ", "-"), made, examples, out)
    return row


def right(scenario: Scenario, verdict: dict[str, Any]) -> bool:
    """The decision that was expected and, where it is to be held, one of the right guards among those named."""
    named = not scenario.guards or bool(set(scenario.guards) & set(verdict["guards"]))
    return bool(verdict["decision"] == scenario.expected) and named


def _sheets(name: str, made: dict[str, Artifact], examples: list[Example], out: Path) -> None:
    """For looking: training pictures; samples of the base and, below them, of the tuned model, the same prompts."""
    learned = [pixels.read(made["buildout"].folder / "dataset" / e.file) for e in examples if e.split == "train"]
    (out / f"{name}-train.png").write_bytes(pixels.png(drawings.contact_sheet(learned[:40])))
    for who in ("base", "tuned"):
        files = sorted((made["evaluation"].folder / "pictures" / who).rglob("*.png"))[:40]
        (out / f"{name}-{who}.png").write_bytes(pixels.png(drawings.contact_sheet([pixels.read(f) for f in files])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/planted"))
    parser.add_argument("--only", nargs="+", choices=[s.name for s in SCENARIOS], help="names of scenarios")
    parser.add_argument("--again", action="store_true", help="also what was done before; sealed stages are kept")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.out = args.out.resolve()
    file = args.out / "planted.json"
    rows = json.loads(file.read_text()) if file.exists() else {}
    print(f"{'scenario':<26}{'expected':<36}{'got':<44}{'seconds':>8}")
    chosen = [s for s in SCENARIOS if not args.only or s.name in args.only]
    for scenario in chosen:
        if scenario.name not in rows or args.again:
            rows[scenario.name] = go(scenario, args.out)
            file.write_text(json.dumps(rows, indent=1) + "\n")
        row = rows[scenario.name]
        expected = row["expected"] + (f" ({' or '.join(row['guards expected'])})" if row["guards expected"] else "")
        got = row["decision"] + (f" ({', '.join(row['guards'])})" if row["guards"] else "")
        mark = "" if row["right"] else "  NOT AS PLANTED"
        print(f"{scenario.name:<26}{expected:<36}{got:<44}{row['seconds']:>8.0f}{mark}", flush=True)
    sys.exit(not all(rows[s.name]["right"] for s in chosen))


if __name__ == "__main__":
    main()
