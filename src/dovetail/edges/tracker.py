"""Numbers of a training as it runs, to whichever trackers accelerate knows; a local file of JSON lines always."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers, on_main_process
from accelerate.utils import ProjectConfiguration

from dovetail.errors import BadConfigError

FILE = "metrics.jsonl"


class Local(GeneralTracker):
    """One JSON object a step in a file; steps done again after a kill stand there twice."""

    name = "local"
    requires_logging_directory = False

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.file = folder / FILE

    @property
    def tracker(self) -> Path:
        """Where the numbers are."""
        return self.file

    @on_main_process
    def store_init_configuration(self, values: dict) -> None:
        """What was asked for, beside the numbers."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        (self.file.parent / "asked.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")

    @on_main_process
    def log(self, values: dict, step: int | None = None, **more: Any) -> None:
        """Append one line."""
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")


class Tracker:
    """The trackers of one run."""

    def __init__(self, names: str | None, folder: Path, project: str, asked: Mapping[str, Any]) -> None:
        """`names`: one that accelerate knows, "all", "none", or None for tensorboard where it is installed.

        Raises BadConfigError for one that is not installed.
        """
        installed = [str(n) for n in get_available_trackers()]
        if names is None:
            names = "tensorboard" if "tensorboard" in installed else "none"
        wanted = installed if names == "all" else [] if names == "none" else [names]
        for name in wanted:
            if name not in LOGGER_TYPE_TO_CLASS:
                known = ", ".join(sorted(map(str, LOGGER_TYPE_TO_CLASS)))
                raise BadConfigError(f"there is no tracker {name}", do=f"name one of {known}, all or none")
            if name not in installed:
                raise BadConfigError(f"the tracker {name} is not installed", do=f"pip install {name}, or --report_to=none")
        os.environ.setdefault("WANDB_SILENT", "true")
        place = ProjectConfiguration(project_dir=str(folder.parent), logging_dir=str(folder))
        self.accelerator = Accelerator(log_with=[*wanted, Local(folder)], project_config=place)
        plain = {k: v if isinstance(v, (str, int, float, bool)) else json.dumps(v) for k, v in asked.items()}
        self.accelerator.init_trackers(project, plain)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """The numbers of one optimizer step."""
        self.accelerator.log(dict(numbers), step=step)

    def close(self) -> None:
        """Write out what is still in memory."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
