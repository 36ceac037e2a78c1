"""Stage 2, data gathering: bring the bytes home, under their SHA-256."""

from pathlib import Path

from dovetail.config import Gathering
from dovetail.edges.folders import Artifact, Desk, write_records
from dovetail.records import Gathered, Lead, Rejected


def gather(leads: Artifact, config: Gathering, desk: Desk) -> None:
    """Leads -> haul: every picture's bytes among the run's objects, and its key."""
    haul: list[Gathered] = []
    rejected: list[Rejected] = []
    found = leads.records(Lead)
    for lead in desk.show.track(found, "gathering", len(found)):
        outcome = _bring_home(lead, config, desk)
        (haul if isinstance(outcome, Gathered) else rejected).append(outcome)  # type: ignore[arg-type]
    write_records(desk.folder / "records.jsonl", haul)
    write_records(desk.folder / "rejected.jsonl", [*leads.records(Rejected, "rejected.jsonl"), *rejected])


def _bring_home(lead: Lead, config: Gathering, desk: Desk) -> Gathered | Rejected:
    if lead.size_bytes > config.max_bytes:
        detail = f"{lead.size_bytes:,} bytes, at most {config.max_bytes:,} are taken"
        return Rejected(name=lead.name, reason="file too large", detail=detail)
    try:
        data = Path(lead.place).read_bytes()
    except OSError as error:
        return Rejected(name=lead.name, reason="cannot be read", detail=error.strerror or str(error))
    if not data:
        return Rejected(name=lead.name, reason="empty file", detail="it holds no byte")
    return Gathered(
        key=desk.run.put(data),
        name=lead.name,
        caption=lead.caption,
        licence=lead.licence,
        author=lead.author,
        origin=lead.origin,
        group=lead.group,
        size_bytes=len(data),
    )
