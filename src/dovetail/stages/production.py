"""Stage 10, production: release a published model, if the proof allows it; the endpoint follows."""

import json
from dataclasses import asdict
from pathlib import Path

from dovetail.config import Production
from dovetail.edges.folders import Artifact, Desk, write_json
from dovetail.edges.registry import Registry


def release(repo: Artifact, verdict: Artifact, endpoint: Artifact, config: Production, desk: Desk) -> None:
    """Append to the model's release record, unless the verdict forbids it or the version is in force already."""
    published = json.loads((repo.folder / "published.json").read_text())
    answer = json.loads((verdict.folder / "verdict.json").read_text())
    registry = Registry(Path(published["registry"]))
    name, version = published["name"], published["version"]
    registry.add(name, version, repo.folder / "model")
    if config.promote == "never" or (config.promote == "if better" and answer["decision"] != "promote"):
        outcome = {
            "released": False,
            "why": f"[production] promote is {config.promote!r} and the verdict is: {answer['headline']}",
        }
    elif registry.current(name) == version:
        outcome = {"released": True, "why": "this version is in force already"}
    else:
        overruled = f"overrules the verdict ({answer['headline']}) " if answer["decision"] != "promote" else ""
        made = registry.promote(name, version, overruled + (config.reason or answer["sentence"]))
        outcome = {
            "released": True,
            "why": made.reason,
            "release": {k: v for k, v in asdict(made).items() if k != "at"},
        }
    write_json(desk.folder / "release.json", published | outcome)
