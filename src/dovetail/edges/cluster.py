"""Ray: the same training on the machines of a cluster (`pip install 'dovetail[cluster]'`)."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dovetail.errors import BadConfigError, DovetailError, TrainingError, first_line

TRIES = 4  # of a training whose workers are lost


def together(
    work: Callable[..., object], told: tuple[Any, ...], workers: int, on_gpus: bool, folder: Path, say: Callable[[str], None]
) -> None:
    """Call `work(*told)` in `workers` processes that know of each other as torchrun's do, one GPU each where asked.

    Joins the cluster of `RAY_ADDRESS`, else starts one on this machine. Where a process is lost (its machine went away, say)
    all begin again, on the machines that are left or came, and `work` goes on from what it left. `folder`, on a disk that all
    machines share, takes Ray's own notes. Raises what `work` raised, where that is a DovetailError; TrainingError for what
    else went wrong.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    try:
        import ray
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError as error:
        raise BadConfigError(
            "Ray is not installed", do="pip install 'dovetail[cluster]', or leave --ray_workers out"
        ) from error
    started = not ray.is_initialized()
    if started:
        ray.init(address=os.environ.get("RAY_ADDRESS"), logging_level=logging.ERROR)
    try:
        _enough(ray.cluster_resources(), workers, on_gpus)
        for left in reversed(range(TRIES)):
            try:
                TorchTrainer(
                    _one,
                    train_loop_config={"work": work, "told": told},
                    scaling_config=ScalingConfig(num_workers=workers, use_gpu=on_gpus),
                    torch_config=TorchConfig(backend="nccl" if on_gpus else "gloo"),
                    run_config=RunConfig(storage_path=str(folder / "ray")),
                ).fit()
                return
            except Exception as error:
                within = list(_within(error))
                ours = next((e for e in within if isinstance(e, DovetailError)), None)
                if ours is not None:
                    raise ours from error
                if left == 0 or any(type(e).__module__.partition(".")[0] != "ray" for e in within):
                    raise TrainingError(f"the workers failed: {first_line(within[-1])}", do="see the lines above") from error
                say(f"a worker is lost ({first_line(within[-1])}): all begin again from the newest checkpoint")
    finally:
        if started:
            ray.shutdown()


def _one(told: dict[str, Any]) -> None:
    """What each process does."""
    logging.getLogger().setLevel(logging.WARNING)  # Ray's workers hear everything, libvips' chatter too
    told["work"](*told["told"])


def _enough(there: dict[str, float], workers: int, on_gpus: bool) -> None:
    kind = "GPU" if on_gpus else "CPU"
    if there.get(kind, 0) < workers:
        raise BadConfigError(
            f"{workers} workers want a {kind} each, and the cluster has {there.get(kind, 0):g}",
            do="lower --ray_workers, or add machines (`ray start --address=...`)",
        )


def _within(error: BaseException) -> Iterator[BaseException]:
    """What Ray says went wrong, and the errors that it wraps: of its controller, or of its workers."""
    yield error
    inner = [getattr(error, "controller_failure", None), *getattr(error, "worker_failures", {}).values()]
    for one in inner:
        if isinstance(one, BaseException):
            yield from _within(one)
