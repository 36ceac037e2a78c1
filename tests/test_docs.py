"""The documentation says what is there, and its links lead somewhere."""

import re
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

from dovetail.config import Config
from dovetail.pipeline import STAGES
from dovetail.records import STAGE_NAMES

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "recipes").rglob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")


def _prose(page: Path) -> str:
    return re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)


def _slugs(page: Path) -> set[str]:
    headings = re.findall(r"^#+\s+(.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in _slugs(place), f"{target}: no such heading"


def test_the_readme_shows_the_two_commands_and_make_knows_them() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in readme and re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("stage", STAGE_NAMES)
def test_every_stage_has_a_page_that_names_its_verb(stage: str) -> None:
    text = (ROOT / "docs" / f"{stage}.md").read_text()
    verb = next(s.verb for s in STAGES if s.name == stage)
    assert text.startswith("# ") and re.search(rf"\b{verb}\b", text) and f"({stage}.md)" not in text


def test_commands_in_the_readme_exist() -> None:
    from typer.main import get_command

    from dovetail.cli import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    said = set(re.findall(r"(?:^|/|`)dovetail ([a-z]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    assert said and said <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_keys_that_the_pages_name_as_table_and_key_exist(page: Path) -> None:
    for table, key in re.findall(r"`\[(\w+)\] (\w+)", page.read_text()):
        if table in STAGE_NAMES:
            assert key in type(getattr(Config(), table)).model_fields, f"[{table}] {key}"
    for table, key in re.findall(r"`([a-z]+)\.([a-z_]+)(?: ?=[^`]*)?`", page.read_text()):
        if table in STAGE_NAMES and key not in ("py", "md", "json", "jsonl"):
            assert key in type(getattr(Config(), table)).model_fields, f"{table}.{key}"
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(), flags=re.DOTALL):
        Config.model_validate(tomllib.loads(block))


def test_the_licence_is_there_and_is_the_one_of_the_package() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"
