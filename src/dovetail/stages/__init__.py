"""What happens: one module a stage, artifact in, artifact out. A stage is imported when it is first named."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dovetail.stages import (
        buildout,
        endpoint,
        evaluation,
        gathering,
        processing,
        production,
        repo,
        sourcing,
        training,
        wrangling,
    )

__all__ = [
    "buildout", "endpoint", "evaluation", "gathering", "processing",
    "production", "repo", "sourcing", "training", "wrangling",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"dovetail.stages.{name}")
    raise AttributeError(name)
