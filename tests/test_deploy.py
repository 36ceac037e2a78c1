"""What is handed out for deploying agrees with the package: flags, ports, paths, names of metrics, nothing secret."""

import json
import re
from typing import Any

import pytest
import yaml
from conftest import ROOT

METRICS = {
    "dovetail_row_steps_total", "dovetail_rows", "dovetail_waiting", "dovetail_running", "dovetail_wait_seconds",
    "dovetail_denoise_seconds", "dovetail_decode_seconds", "dovetail_pictures_total", "dovetail_failures_total",
    "dovetail_ready", "dovetail_resident_bytes",
}  # fmt: skip
HISTOGRAMS = ("dovetail_rows", "dovetail_wait_seconds", "dovetail_denoise_seconds", "dovetail_decode_seconds")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
MANIFEST = ROOT / "docs" / "deploy" / "kubernetes.yaml"


def _named(text: str) -> set[str]:
    """Metrics that a text speaks of; a histogram's series count as the histogram."""
    series = {f"{name}_{end}": name for name in HISTOGRAMS for end in ("bucket", "sum", "count")}
    return {series.get(name, name) for name in re.findall(r"\bdovetail_\w+", text)}


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """The manifest's objects by their kind."""
    return {part["kind"]: part for part in yaml.safe_load_all(MANIFEST.read_text())}


@pytest.fixture(scope="module")
def container(parts: dict[str, Any]) -> dict[str, Any]:
    (found,) = parts["Deployment"]["spec"]["template"]["spec"]["containers"]
    return found


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    board = json.loads((ROOT / "docs" / "deploy" / "grafana.json").read_text())
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert _named(" ".join(expressions)) == METRICS
    for name in HISTOGRAMS:  # a histogram is read by its series, and only a histogram has them
        assert not re.search(rf"\b{name}\b", " ".join(expressions))
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) and all(e.count("(") == e.count(")") for e in expressions)


def test_panels_lie_side_by_side_and_not_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads((ROOT / "docs" / "deploy" / "grafana.json").read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not taken & cells, panel["title"]
        taken |= cells


def test_metrics_that_the_pages_name_are_those_of_the_dashboard() -> None:
    assert _named((ROOT / "docs" / "deploy.md").read_text()) <= METRICS
    assert _named(MANIFEST.read_text()) <= METRICS


@pytest.mark.parametrize("place", ["image", "manifest"])
def test_what_is_started_is_a_command_with_its_flags(place: str, container: dict[str, Any]) -> None:
    from typer.main import get_command

    from dovetail.cli import app

    commands = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, flags=re.MULTILINE)
    words = json.loads(commands[-1]) if place == "image" else container["args"]
    serve = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    told = serve.make_context("serve", words[1:]).params
    assert words[0] == "serve" and (told["model"], told["host"], told["port"]) == ("embedded", "0.0.0.0", 8000)


def test_the_image_runs_without_root_downloads_no_weights_and_asks_whether_it_is_ready() -> None:
    last = DOCKERFILE.rsplit("\nFROM ", 1)[1]
    assert re.search(r"^USER 10001:10001$", last, flags=re.MULTILINE) and "HF_HUB_OFFLINE=1" in last
    assert "HEALTHCHECK" in last and "'/ready'" in last and "EXPOSE 8000" in last
    assert not re.search(r"(?i)(ENV|ARG)[^\n]*(key|token|secret)", DOCKERFILE)


def test_the_image_is_built_of_what_the_package_needs_alone() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = {word for words in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, flags=re.MULTILINE) for word in words.split()}
    assert let_in == copied and all((ROOT / name).exists() for name in copied)


def test_torch_is_of_the_versions_that_the_package_takes() -> None:
    wanted = re.search(r'"(torch[^"]*)"', (ROOT / "pyproject.toml").read_text())
    assert wanted and f'"{wanted[1]}"' in DOCKERFILE


def test_the_manifest_holds_together(parts: dict[str, Any], container: dict[str, Any]) -> None:
    deployment = parts["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels == parts["Service"]["spec"]["selector"]
    assert parts["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    scaled = parts["HorizontalPodAutoscaler"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == parts["Deployment"]["metadata"]["name"] and "replicas" not in deployment
    assert scaled["minReplicas"] > parts["PodDisruptionBudget"]["spec"]["minAvailable"]
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    assert [port["containerPort"] for port in container["ports"]] == [8000]


def test_the_manifest_gives_no_more_than_is_needed_and_holds_no_secret(
    parts: dict[str, Any], container: dict[str, Any]
) -> None:
    pod = parts["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] and container["securityContext"]["capabilities"]["drop"] == [
        "ALL"
    ]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    (keys,) = [e for e in container["env"] if e["name"] == "DOVETAIL_API_KEYS"]
    assert "secretKeyRef" in keys["valueFrom"] and "Secret" not in parts
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"/data", "/tmp"} and pod["terminationGracePeriodSeconds"] > 30 + 5
