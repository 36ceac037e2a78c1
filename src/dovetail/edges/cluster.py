"""Ray: the same training on the machines of a cluster (`pip install 'dovetail[cluster]'`)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dovetail.errors import BadConfigError, DovetailError, TrainingError, first_line

TRIES = 3  # times that lost workers are replaced


def together(work: Callable[..., object], told: tuple[Any, ...], workers: int, on_gpus: bool, folder: Path) -> None:
    """Call `work(*told)` in `workers` processes that know of each other as torchrun's do, one GPU each where asked.

    Joins the cluster of `RAY_ADDRESS`, else starts one on this machine. Processes that are lost (a machine that goes away) are
    replaced, all begin again, and `work` goes on from what it left. `folder`, on a disk that all machines share, takes Ray's
    own notes. Raises what `work` raised, where that is a DovetailError; TrainingError for what else went wrong.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise BadConfigError(
            "Ray is not installed", do="pip install 'dovetail[cluster]', or leave --ray_workers out"
        ) from error
    started = not ray.is_initialized()
    if started:
        ray.init(address=os.environ.get("RAY_ADDRESS"), logging_level="error", log_to_driver=True)
    try:
        _enough(ray.cluster_resources(), workers, on_gpus)
        TorchTrainer(
            _one,
            train_loop_config={"work": work, "told": told},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpus),
            torch_config=TorchConfig(backend="nccl" if on_gpus else "gloo"),
            run_config=RunConfig(storage_path=str(folder), name="ray", failure_config=FailureConfig(max_failures=TRIES)),
        ).fit()
    except DovetailError:
        raise
    except Exception as error:
        raise _cause(error) from error
    finally:
        if started:
            ray.shutdown()


def _one(told: dict[str, Any]) -> None:
    """What each process does."""
    told["work"](*told["told"])


def _enough(there: dict[str, float], workers: int, on_gpus: bool) -> None:
    kind = "GPU" if on_gpus else "CPU"
    if there.get(kind, 0) < workers:
        raise BadConfigError(
            f"{workers} workers want a {kind} each, and the cluster has {there.get(kind, 0):g}",
            do="lower --ray_workers, or add machines (`ray start --address=...`)",
        )


def _cause(error: BaseException) -> DovetailError:
    """The worker's own error, where it is one of ours, out of what Ray wrapped around it."""
    seen, found = [error], 0
    while found < len(seen):
        one = seen[found]
        if isinstance(one, DovetailError):
            return one
        inner = [one.__cause__, one.__context__, getattr(one, "cause", None), *getattr(one, "worker_failures", {}).values()]
        seen += [e for e in inner if isinstance(e, BaseException) and all(e is not s for s in seen)]
        found += 1
    return TrainingError(f"the workers failed: {first_line(error)}", do="see the lines above; the same command goes on")
