"""Cards written from facts: the dataset's and the model's."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dovetail.records import Example

# Statements people make of rights, and the identifiers that a hub knows.
HUB_LICENCES = {
    "apache-2.0": "apache-2.0", "mit": "mit", "cc-by-4.0": "cc-by-4.0", "cc-by-sa-4.0": "cc-by-sa-4.0", "cc0-1.0": "cc0-1.0",
    "creativeml-openrail-m": "creativeml-openrail-m", "openrail++": "openrail++",
}  # fmt: skip


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def licence_rows(examples: Sequence[Example]) -> list[tuple[str, str, int]]:
    """(licence, author, pictures), most pictures first."""
    counts = Counter((e.licence, e.author) for e in examples)
    return [(licence, author, n) for (licence, author), n in sorted(counts.items(), key=lambda x: (-x[1], x[0]))]


def one_licence(statements: Sequence[str]) -> str:
    """The hub's identifier where all agree on a known one, else 'other'."""
    distinct = {s.lower() for s in statements}
    return HUB_LICENCES.get(distinct.pop(), "other") if len(distinct) == 1 else "other"


def dataset_card(examples: Sequence[Example], rejected: Mapping[str, int]) -> str:
    """README.md of a dataset: front matter, splits, licences, what was left out."""
    splits = [s for s in ("train", "validation", "test") if any(e.split == s for e in examples)]
    head = [
        "---",
        f"license: {one_licence([e.licence for e in examples])}",
        "task_categories:",
        "- text-to-image",
        "configs:",
        "- config_name: default",
        "  data_files:",
        *(line for s in splits for line in (f"  - split: {s}", f"    path: {s}/*")),
        "---",
    ]
    rows = []
    for s in splits:
        chosen = [e for e in examples if e.split == s]
        rows.append((s, len(chosen), len({e.group for e in chosen})))
    parts = [
        "\n".join(head),
        "# Captioned pictures, split and checked",
        'Open with `datasets.load_dataset("imagefolder", data_dir=...)`; the caption is in the column `text`.',
        "## Splits",
        "Pictures that belong together (near-duplicates, or the same `group`) stand on one side only.",
        table(("split", "pictures", "groups"), rows),
        "## Licences",
        table(("licence", "author", "pictures"), licence_rows(examples)),
        "## Left out",
        table(("reason", "pictures"), sorted(rejected.items())) if rejected else "Nothing was left out.",
    ]
    return "\n\n".join(parts) + "\n"


def _model_head(facts: Mapping[str, Any]) -> list[str]:
    """Front matter of a model card; JSON's strings are YAML's too."""
    licence = one_licence([facts["base_licence"], *(e.licence for e in facts["examples"])])
    return [
        "---",
        f"license: {licence}",
        *(["license_name: see-below"] if licence == "other" else []),
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        f"base_model: {json.dumps(facts['base'], ensure_ascii=False)}",
        f"base_model_relation: {'finetune' if facts['training']['method'] == 'full' else 'adapter'}",
        "tags:",
        "- stable-diffusion",
        "- dovetail",
        "---",
    ]


def model_card(facts: Mapping[str, Any]) -> str:
    """README.md of a model repository, from facts alone.

    `facts`: name, base, base_licence, method, training, verdict, examples, rejected, picture (file of the before/after
    grid), versions (library -> version).
    """
    examples: Sequence[Example] = facts["examples"]
    verdict, training = facts["verdict"], facts["training"]
    train = [e for e in examples if e.split == "train"]
    training_rows = [
        ("method", training["method"]),
        ("optimizer steps", training["steps"]),
        ("pictures seen", training["pictures_seen"]),
        ("learning rate", f"{training['learning_rate']:g}"),
        ("training pictures", training["train_pictures"]),
        ("rehearsal pictures painted by the base", training["rehearsal_pictures"]),
        ("digest of the trained weights", f"`{training['weights_digest'][:16]}`"),
        *((f"{name} version", version) for name, version in facts["versions"].items()),
    ]
    parts = [
        "\n".join(_model_head(facts)),
        f"# {facts['name']}",
        f"**{verdict['headline']}** {verdict['sentence']}",
        f"![The same prompts and seeds: base above, tuned below]({facts['picture']})",
        "## Use",
        "```python\nfrom diffusers import StableDiffusionPipeline\n"
        'pipe = StableDiffusionPipeline.from_pretrained("this folder")\n'
        f"pipe({train[0].caption!r}).images[0]\n```"
        if train
        else "",
        "## Evaluation",
        f"The tuned model against its base on {verdict['prompts']} held-out prompts, {verdict['seeds_per_prompt']} seeds each, "
        f"judged by {verdict['judge']} (`eval/verdict.json` has all figures).",
        table(("axis", "outcome", "what it says"), [(a["name"], a["outcome"], a["sentence"]) for a in verdict["axes"]]),
        "## Training",
        table(("", ""), training_rows),
        "## Data and licences",
        f"The base's licence: {facts['base_licence']}. The licences of the {len(examples)} pictures:",
        table(("licence", "author", "pictures"), licence_rows(examples)),
        "## Limits",
        f"Tuned on {len(train)} pictures, so it knows what they show and little beside. "
        "There is no safety checker in this folder.",
    ]
    return "\n\n".join(p for p in parts if p) + "\n"
