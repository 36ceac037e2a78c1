"""Plots (matplotlib), as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

INK, WARM, COOL, PALE = "#2b2f36", "#d1603d", "#2f6f9f", "#b9c0c9"
STRONG = {"train": COOL, "validation": WARM}


def _finish(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def loss_curves(curve: Sequence[dict[str, Any]], held_out: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    """Two panels: the step loss (and its running mean), and held-out losses, (step, share of the base's) by name.

    `train` and `validation` are drawn strong, any other name thin.
    """
    steps = [row for row in curve if "loss" in row]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
    if steps:
        x, y = np.array([r["step"] for r in steps]), np.array([r["loss"] for r in steps])
        left.plot(x, y, color=PALE, lw=1, label="each batch")
        width = max(1, len(y) // 10)
        smooth = np.convolve(np.pad(y, (width // 2, width - 1 - width // 2), mode="edge"), np.ones(width) / width, "valid")
        left.plot(x, smooth, color=INK, lw=2, label="running mean")
        left.legend(frameon=False)
    left.set(title="Step loss", xlabel="optimizer step", ylim=(0, None))
    thin = dict(zip([name for name in held_out if name not in STRONG], ((0, (1, 1)), (0, (3, 2)), (0, (6, 2))), strict=False))
    for name, points in held_out.items():
        look: dict[str, Any] = (
            {"color": STRONG[name], "lw": 2, "marker": "o", "ms": 4}
            if name in STRONG
            else {"color": WARM, "lw": 1, "ls": thin.get(name, "-")}
        )
        right.plot(*zip(*points, strict=True), label=name, **look)
    right.axhline(1, color=PALE, lw=1)
    right.set(title="Held-out loss, base = 1 (fixed noise)", xlabel="optimizer step")
    if right.lines[:-1]:
        right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return _finish(figure)


def paired_scores(target: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]], unit: str) -> bytes:
    """Every prompt and seed as a point: the base's score across, the tuned model's up; above the line is better."""
    figure, axes = plt.subplots(figsize=(4.4, 4.2), layout="constrained")
    for points, colour, name in ((other, PALE, "other prompts"), (target, WARM, "held-out prompts")):
        if points:
            across, up = zip(*points, strict=True)
            axes.scatter(across, up, s=18, color=colour, label=name, edgecolors="none", alpha=0.85)
    ends = [*axes.get_xlim(), *axes.get_ylim()]
    line = [min(ends), max(ends)]
    axes.plot(line, line, color=INK, lw=1)
    axes.set(title="Each point one prompt and seed", xlabel=f"base ({unit})", ylabel=f"tuned ({unit})", xlim=line, ylim=line)
    if target or other:
        axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return _finish(figure)
