"""The report of a run: what the sealed artifacts say, in one self-contained page."""

import base64
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dovetail.config import Config
from dovetail.core import digests, pages
from dovetail.edges import settings
from dovetail.edges.folders import Artifact, Run, write_bytes
from dovetail.edges.registry import Registry, default_root
from dovetail.records import Example, Rejected, ScoredSample

SHOWN_PAIRS, SHOWN_OTHERS, SHOWN_DATA, SHOWN_REJECTED, SHOWN_COPIES, SHOWN_PARTS = 12, 8, 60, 200, 6, 40
LAYOUT = 2
PARTS_OF_A_STEP = ("data", "forward", "backward", "sync", "optimizer")


def write(config: Config, run: Run, sealed: Mapping[str, Artifact]) -> Path:
    """RUN/report.html, of the stages that are sealed; left alone where nothing changed."""
    path = run.root / "report.html"
    made_from = digests.of_data([LAYOUT, config.model_dump(mode="json"), {k: v.content for k, v in sorted(sealed.items())}])
    if path.exists() and f"made from {made_from}" in path.read_text(encoding="utf-8")[:300]:
        return path
    parts = [
        _verdict(sealed),
        _before_after(sealed),
        _copies(sealed),
        _forgotten(sealed),
        _evidence(sealed),
        _curves(sealed),
        _endpoint(sealed),
        _data(sealed),
        _rejected(sealed),
    ]
    parts.append(_reproduce(config, sealed))
    name = config.repo.name or "a run"
    subtitle = f"{config.base} base, {config.training.method} fine-tune"
    if "training" in sealed:
        subtitle += f", {_json(sealed['training'], 'training.json')['published_step']:,} steps"
    write_bytes(path, pages.page(f"Dovetail: {name}", subtitle, made_from, parts).encode())
    return path


def _uri(path: Path) -> str:
    kind = {".jpg": "jpeg", ".webp": "webp"}.get(path.suffix, "png")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _framed(path: Path, alt: str, style: str = "") -> str:
    return f'<figure style="{style}">{pages.picture(_uri(path), alt)}</figure>'


def _json(artifact: Artifact, name: str) -> Any:
    return json.loads((artifact.folder / name).read_text(encoding="utf-8"))


def _verdict(sealed: Mapping[str, Artifact]) -> str:
    """The first screen: the decision, and a row for each axis."""
    if "evaluation" not in sealed:
        return pages.paragraph("This run has no verdict yet.")
    verdict = _json(sealed["evaluation"], "verdict.json")
    asked = f"{verdict['prompts']} held-out prompts, {verdict['seeds_per_prompt']} seeds each; judge: {verdict['judge']}."
    return pages.verdict_box(verdict) + pages.axis_table(verdict["axes"], verdict["decided_by"]) + pages.paragraph(asked)


def _evidence(sealed: Mapping[str, Artifact]) -> str:
    """What lies behind the table: parts by name, what the judge showed on real pictures, the scores."""
    if "evaluation" not in sealed:
        return ""
    verdict = _json(sealed["evaluation"], "verdict.json")
    plot = _framed(sealed["evaluation"].folder / "scores.png", "scores of base and tuned model", "max-width:30rem")
    return (
        pages.section("Parts of the prompts", _parts(verdict, sealed))
        + pages.section("Can the judge tell?", _competence(verdict))
        + pages.section("Scores, paired by prompt and seed", plot)
    )


def _parts(verdict: Mapping[str, Any], sealed: Mapping[str, Artifact]) -> str:
    axis = next(a for a in verdict["axes"] if a["name"] == "parts")
    found = axis["details"].get("parts", [])
    if not found:
        return pages.paragraph(axis["sentence"])
    learned = [e.caption for e in sealed["buildout"].records(Example) if e.split == "train"]
    table = [
        (
            p["words"], p["kind"], p["prompts"], f"{p['base']:.0%}", f"{p['tuned']:.0%}", f"{p['real']:.0%}",
            "missed" if p["missed"] else "won" if p["tuned"] > p["base"] else "lost" if p["tuned"] < p["base"] else "even",
            f"in {sum(named_in(p['words'], caption) for caption in learned)} of {len(learned)} training captions",
        )
        for p in found[:SHOWN_PARTS]
    ]  # fmt: skip
    head = ("part", "kind", "prompts", "base shows it", "tuned shows it", "real pictures", "", "in the data")
    return pages.rows(head, table)


def named_in(words: str, caption: str) -> bool:
    """Whether a caption names a part: all of its words, in any order."""
    return set(words.lower().split()) <= set(re.findall(r"[\w-]+", caption.lower()))


def _competence(verdict: Mapping[str, Any]) -> str:
    said = {"held-out": "real held-out pictures", "general": "the base's own samples of general prompts"}
    table = []
    for name, found in verdict["competence"].items():
        tried = {"own caption above others": found["others"], "above the same with a word changed": found["changed"]}
        tried |= {f"{kind}s told apart": interval for kind, interval in found["kinds"].items()}
        for what, interval in tried.items():
            if interval:
                table.append(
                    (said[name], what, f"{interval['mean']:.0%}", interval["count"], "able" if found["able"] else "not able")
                )
    return pages.rows(("tried on", "what", "right (chance 50 %)", "pictures", "judge"), table) if table else ""


def _pictures(evaluation: Artifact, sample: ScoredSample, dataset: Path | None) -> list[tuple[str, str]]:
    shown = [
        ("base", _uri(evaluation.folder / sample.base_file)),
        ("tuned", _uri(evaluation.folder / sample.tuned_file)),
    ]
    if dataset is not None and sample.nearest_file:
        shown.append(("nearest training picture", _uri(dataset / sample.nearest_file)))
    return shown


def _scores(sample: ScoredSample) -> str:
    if sample.base_score is None or sample.tuned_score is None:
        return ""
    return f" · judge {sample.base_score:.1f} → {sample.tuned_score:.1f}"


def _copies(sealed: Mapping[str, Artifact]) -> str:
    """The samples that lie nearest to a training picture, beside it."""
    if "evaluation" not in sealed:
        return ""
    evaluation, dataset = sealed["evaluation"], sealed["buildout"].folder / "dataset"
    near = sorted((s for s in evaluation.records(ScoredSample) if s.nearest_file), key=lambda s: -s.nearest_similarity)
    items = [
        ([("sample", _uri(evaluation.folder / s.tuned_file)), ("training picture", _uri(dataset / s.nearest_file))],
         f"{s.prompt} · similarity {s.nearest_similarity:.2f}")
        for s in near[:SHOWN_COPIES]
    ]  # fmt: skip
    said = "The samples that are nearest to a training picture, nearest first." if items else ""
    return pages.section("Nearest training pictures", pages.paragraph(said) if said else "", pages.side_by_side(items))


def _before_after(sealed: Mapping[str, Artifact]) -> str:
    if "evaluation" not in sealed:
        return ""
    evaluation, dataset = sealed["evaluation"], sealed["buildout"].folder / "dataset"
    target = [s for s in evaluation.records(ScoredSample) if s.group == "held-out"]
    first_of_each = list({s.prompt: s for s in reversed(target)}.values())[::-1]
    items = [
        (
            _pictures(evaluation, s, dataset),
            f"{s.prompt} · seed {s.seed}{_scores(s)}",
        )
        for s in (first_of_each + [s for s in target if s not in first_of_each])[:SHOWN_PAIRS]
    ]
    return pages.section(
        "Before and after, same prompts, same seeds",
        pages.paragraph(_unlearnt(sealed, [s.prompt for s in target])),
        pages.side_by_side(items),
    )


def _unlearnt(sealed: Mapping[str, Artifact], prompts: list[str]) -> str:
    learnt = {e.caption for e in sealed["buildout"].records(Example) if e.split == "train"}
    again = len(set(prompts) & learnt)
    words = (
        f"; {again} of the {len(set(prompts))} captions are worded like one that was" if again else ", nor were their captions"
    )
    return f"The prompts are captions of test pictures. The pictures were not learnt from{words}."


def _forgotten(sealed: Mapping[str, Artifact]) -> str:
    if "evaluation" not in sealed:
        return ""
    evaluation = sealed["evaluation"]
    others = sorted(
        (s for s in evaluation.records(ScoredSample) if s.group == "general"),
        key=lambda s: (s.tuned_score or 0) - (s.base_score or 0),
    )
    items = [(_pictures(evaluation, s, None), f"{s.prompt}{_scores(s)}") for s in others[:SHOWN_OTHERS]]
    return pages.section(
        "Other prompts: what was forgotten",
        pages.paragraph("The prompts that lost most, worst first.") if items else "",
        pages.side_by_side(items),
    )


def _curves(sealed: Mapping[str, Artifact]) -> str:
    if "training" not in sealed:
        return ""
    folder = sealed["training"].folder
    told = _json(sealed["training"], "training.json")
    grids = [
        pages.side_by_side([([(f"after step {int(p.stem[5:])}", _uri(p))], "")], wide=True)
        for p in sorted((folder / "samples").glob("step-*.png"))
    ]
    facts = [
        (told["method"], "method"),
        (f"{told['pictures_seen']:,}", "pictures seen"),
        (f"{told['train_pictures']} + {told['rehearsal_pictures']}", "training pictures + rehearsal pictures"),
        (f"{told['learning_rate']:g}", "learning rate"),
    ]
    plot = _framed(folder / "loss.png", "loss curves")
    said = [told["outcome"]] + ([f"After the last step: {told['trend']['sentence']}"] if told["trend"] else [])
    said += [f"At {event}." for event in told["events"]]
    said += _pace(sealed["training"])
    names = "Validation prompts at fixed seeds: " + "; ".join(told["sample_prompts"])
    return pages.section("Training", pages.fact_boxes(facts), *map(pages.paragraph, said), plot, pages.paragraph(names), *grids)


def _pace(training: Artifact) -> list[str]:
    """How fast it went, where that is known: it stands beside the artifacts."""
    file = training.folder.parent.parent / "pace.json"
    if not file.exists():
        return []
    told = json.loads(file.read_text(encoding="utf-8"))
    split = ", ".join(f"{name} {told['shares'][name]:.0%}" for name in PARTS_OF_A_STEP if name in told["shares"])
    return [
        f"{told['pictures_a_second']:.1f} pictures a second on {told['device']}, {told['share_of_peak']:.0%} of its own bf16 "
        f"convolution peak; of a step's time: {split}; {told['peak_bytes'] / 2**30:.1f} GiB at most; "
        f"checkpoints {told['checkpoint_seconds']:.1f} s beside {told['seconds']:.0f} s of steps."
    ]


def _endpoint(sealed: Mapping[str, Artifact]) -> str:
    if "endpoint" not in sealed:
        return ""
    told = _json(sealed["endpoint"], "endpoint.json")
    figure = pages.side_by_side(
        [([("answer of the endpoint", _uri(sealed["endpoint"].folder / "picture.png"))], told["request"]["prompt"])]
    )
    model = f"{told['health']['model']} {told['version']}"
    said = f"The endpoint was started on the published model ({model}), asked over HTTP, and answered with this picture."
    released = ""
    if "production" in sealed:
        release = _json(sealed["production"], "release.json")
        released = pages.paragraph(f"Release: {'in force' if release['released'] else 'held back'}. {release['why']}")
    return pages.section("Endpoint and release", pages.paragraph(said), figure, released)


def _data(sealed: Mapping[str, Artifact]) -> str:
    if "buildout" not in sealed:
        return ""
    examples = sealed["buildout"].records(Example)
    splits = Counter(e.split for e in examples)
    groups = {s: len({e.group for e in examples if e.split == s}) for s in splits}
    table = pages.rows(
        ("split", "pictures", "groups"),
        [(s, splits[s], groups[s]) for s in ("train", "validation", "test") if s in splits],
    )
    licences = Counter((e.licence, e.author, e.origin) for e in examples)
    rights = pages.rows(("licence", "author", "origin", "pictures"), [(*k, n) for k, n in sorted(licences.items())])
    shown = pages.strip(
        [
            (_uri(sealed["buildout"].folder / "dataset" / e.file), e.caption)
            for e in examples[:SHOWN_DATA]
            if e.width * e.height <= 512 * 512
        ]
    )
    return pages.section("Data", table, "<br>" + shown, "<br>" + rights)


def _rejected(sealed: Mapping[str, Artifact]) -> str:
    if "wrangling" not in sealed:
        return ""
    rejected = sealed["wrangling"].records(Rejected, "rejected.jsonl")
    if not rejected:
        return pages.section("Rejected pictures", pages.paragraph("None: every picture could be used."))
    table = pages.rows(("picture", "reason", "detail"), [(r.name, r.reason, r.detail) for r in rejected[:SHOWN_REJECTED]])
    more = (
        pages.paragraph(f"and {len(rejected) - SHOWN_REJECTED} more, in rejected.jsonl")
        if len(rejected) > SHOWN_REJECTED
        else ""
    )
    return pages.section("Rejected pictures", table, more)


def _reproduce(config: Config, sealed: Mapping[str, Artifact]) -> str:
    table = pages.rows(
        ("stage", "content", "made", "seconds", "dovetail"),
        [
            (n, a.content[:16], a.manifest.made_at, f"{a.manifest.seconds:.1f}", a.manifest.dovetail)
            for n, a in sealed.items()
            if n != "base"
        ],
    )
    command = f"dovetail run {config.sourcing.folder} --config dovetail.toml"
    text = f"<pre>{pages.escape(command)}\n\n# dovetail.toml\n{pages.escape(settings.text(config, comments=False))}</pre>"
    base = pages.paragraph(f"Base: {config.base}, content {sealed['base'].content[:16]}." if "base" in sealed else "")
    return pages.section("How to reproduce", base, text, table)


def closing_words(sealed: Mapping[str, Artifact], run: Run, command: str) -> list[str]:
    """What the terminal says at the end: verdict, report, how to ask the model; `command` is this program as it was called."""
    told = []
    if "evaluation" in sealed:
        verdict = _json(sealed["evaluation"], "verdict.json")
        told = [verdict["headline"], verdict["sentence"]]
    told.append(f"report: {run.root / 'report.html'}")
    if "production" not in sealed:
        return told
    name = _findable(_json(sealed["production"], "release.json"))
    prompt = _json(sealed["endpoint"], "endpoint.json")["request"]["prompt"]
    body = json.dumps({"prompt": prompt, "seed": 7})
    return [
        *told,
        f"picture:  {command} paint {name} {shlex.quote(prompt)} --seed 7 --out picture.png",
        f"endpoint: {command} serve {name}    then, from elsewhere:",
        f"  curl -s http://127.0.0.1:8000/v1/images/generations -H 'Content-Type: application/json' -d {shlex.quote(body)}",
    ]


def _findable(published: Mapping[str, Any]) -> str:
    """The registry name; where the registry is not the default one, the folder."""
    place = Path(published["registry"])
    if place == default_root():
        return str(published["name"])
    return shlex.quote(str(Registry(place).version_folder(published["name"], published["version"])))
