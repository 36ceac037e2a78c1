"""Dovetail: from a folder of captioned pictures to a Stable Diffusion model that is proven better, packed, and answering.

import dovetail
dovetail.run("pictures/", run="runs/televisions")        # all ten stages
dovetail.train(run="runs/televisions", steps=400)         # one stage: its keys are keyword arguments
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dovetail.library import (
        build,
        evaluate,
        gather,
        paint,
        process,
        publish,
        release,
        run,
        serve,
        source,
        status,
        train,
        wrangle,
    )

__all__ = [
    "__version__", "build", "evaluate", "gather", "paint", "process", "publish",
    "release", "run", "serve", "source", "status", "train", "wrangle",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        from dovetail import library

        return getattr(library, name)
    raise AttributeError(f"module 'dovetail' has no attribute {name!r}")
