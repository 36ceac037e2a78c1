"""Ray: the same training, the same endpoint on the machines of a cluster (`pip install 'dovetail[cluster]'`)."""

import contextlib
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from dovetail.errors import BadConfigError, DovetailError, EndpointError, TrainingError, first_line

Answer = TypeVar("Answer")
TRIES = 4  # of a training whose workers are lost
NAME = "dovetail"  # of the application
MOST_AT_ONCE = 1000  # requests in a replica: more than its studio lets wait, so that the studio refuses and not Ray
LOOK_SECONDS = 5.0  # between two looks whether Ray Serve is still there
HANDED_ON = ("DOVETAIL_HOME", "HF_HOME", "HF_HUB_OFFLINE")  # to replicas that other machines start


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
    _with_token()
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
        _enough(ray.cluster_resources(), workers, on_gpus, "workers", "--ray_workers")
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


def _enough(there: dict[str, float], count: int, on_gpus: bool, what: str, flag: str) -> None:
    kind = "GPU" if on_gpus else "CPU"
    if there.get(kind, 0) < count:
        raise BadConfigError(
            f"{count} {what} want a {kind} each, and the cluster has {there.get(kind, 0):g}",
            do=f"lower {flag}, or add machines (`ray start --address=...`)",
        )


def _within(error: BaseException) -> Iterator[BaseException]:
    """What Ray says went wrong, and the errors that it wraps: of its controller, or of its workers."""
    yield error
    inner = [getattr(error, "controller_failure", None), *getattr(error, "worker_failures", {}).values()]
    for one in inner:
        if isinstance(one, BaseException):
            yield from _within(one)


class Serving(Protocol):
    """What a replica holds: an ASGI application over something that paints."""

    app: Any

    @property
    def ready(self) -> bool:
        """Whether it can paint now; a replica that cannot for long is replaced."""

    def close(self) -> None:
        """Finish what is under way and end."""


class Crew:
    """Equal processes of a cluster that answer at one address (Ray Serve)."""

    def __init__(self, ray: Any, serve: Any, count: int) -> None:
        there = ray.cluster_resources()
        self._ray, self._serve, self._begun = ray, serve, False
        self.count = count
        said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        self.threads = int(said) if said.isdecimal() else max(1, _cores(there) // count)
        beside = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
        self._each = {
            "num_cpus": 1, "num_gpus": 1 if there.get("GPU") else 0,
            "runtime_env": {"env_vars": beside | {"OMP_NUM_THREADS": str(self.threads), "GRPC_VERBOSITY": "ERROR"}},
        }  # fmt: skip

    def ask(self, work: Callable[..., Answer], *told: Any) -> Answer:
        """What `work(*told)` gives in a process like the replicas' own. Raises what it raised."""
        from ray.exceptions import RayTaskError

        try:
            answer: Answer = self._ray.get(self._ray.remote(max_calls=1, **self._each)(work).remote(*told))
        except RayTaskError as error:
            raise _told(error) from error
        return answer

    def stand(self, make: Callable[[], Serving], host: str, port: int, grace_seconds: float) -> None:
        """Have each replica answer with what it makes of `make`; returns when all do. Raises EndpointError."""
        quiet = {"log_level": "ERROR", "enable_access_log": False}
        options = {"host": host, "port": port, "keep_alive_timeout_s": 90}
        deployment = self._serve.deployment(
            self._serve.ingress(_application)(_Replica), name=NAME, num_replicas=self.count, ray_actor_options=self._each,
            max_ongoing_requests=MOST_AT_ONCE, graceful_shutdown_wait_loop_s=0.2, graceful_shutdown_timeout_s=grace_seconds,
            health_check_period_s=5, max_constructor_retry_count=1, logging_config=quiet,
        )  # fmt: skip
        self._begun = True
        try:
            self._serve.start(http_options=options, logging_config=quiet)
            self._serve.run(deployment.bind(make), name=NAME, logging_config=quiet)
        except (RuntimeError, TimeoutError) as error:
            raise EndpointError(f"the replicas did not start: {self._why() or first_line(error)}") from error

    def _why(self) -> str:
        """What a replica that could not start raised: the last line of what Serve tells of it."""
        application = self._serve.status().applications.get(NAME)
        told = [d.message for d in application.deployments.values()] if application else []
        lines = [
            line.strip() for text in told for line in text.splitlines() if re.match(r"[\w.]+(Error|Exception): ", line.strip())
        ]
        return re.sub(r"^[\w.]+: ", "", lines[-1]) if lines else ""

    def wait(self) -> None:
        """Until Ctrl-C or SIGTERM, as KeyboardInterrupt. Raises EndpointError where Ray Serve has ended by itself."""
        while self._serve.status().applications:
            time.sleep(LOOK_SECONDS)
        raise EndpointError("Ray Serve has ended", do="look at the lines above and run the same command again")

    def dismiss(self, all_of_serve: bool) -> None:
        """No more requests are let in, what is under way is finished within the grace, and the replicas end."""
        if self._begun:
            self._begun = False
            self._serve.delete(NAME)
            if all_of_serve:
                self._serve.shutdown()


@contextlib.contextmanager
def crew(count: int) -> Iterator[Crew]:
    """`count` processes that are to answer, a GPU each where there are any; at the end they are dismissed.

    Joins the cluster of `RAY_ADDRESS`, else starts one on this machine, on its loopback as far as Ray lets it be there. Raises
    BadConfigError where Ray is not there or too small, EndpointError where the cluster serves already.
    """
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")  # its own logs lie below /tmp/ray
    _with_token()
    own = not os.environ.get("RAY_ADDRESS")
    if own:  # Ray asks no key of those who reach it
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise BadConfigError(
            "Ray Serve is not installed", do="pip install 'dovetail[cluster]', or leave --replicas out"
        ) from error
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    started = not ray.is_initialized()
    if started:
        _begin(ray, own)
    try:
        _enough(ray.cluster_resources(), count, bool(ray.cluster_resources().get("GPU")), "replicas", "--replicas")
        if serve.status().proxies:
            raise EndpointError("Ray Serve runs on this cluster already", do="end it with `serve shutdown`, or take another")
        made = Crew(ray, serve, count)
        try:
            yield made
        finally:
            made.dismiss(all_of_serve=not (own and started))  # a cluster of our own ends with it
    finally:
        if started:
            ray.shutdown()


def _begin(ray: Any, own: bool) -> None:
    """Ray takes SIGTERM for itself; it stays with whoever had it."""
    before = signal.getsignal(signal.SIGTERM)
    beside = {"include_dashboard": False} if own else {}
    address = "local" if own else os.environ["RAY_ADDRESS"]
    try:
        ray.init(address=address, logging_level=logging.ERROR, **beside)
    except ConnectionError as error:
        raise EndpointError(
            f"cannot join the Ray cluster {address}", do="see whether it runs, and whether its token is in ~/.ray/auth_token"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _with_token() -> None:
    """Where this account has a token `ray start` asks for it; who joins shows it only if told so before Ray is imported."""
    told = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if os.environ.get("RAY_ADDRESS") and (told or (Path.home() / ".ray" / "auth_token").exists()):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _cores(there: dict[str, float]) -> int:
    return min(int(there.get("CPU", 1)), len(os.sched_getaffinity(0)))


def _told(error: Any) -> Exception:
    """What went wrong in another process, in one line."""
    if isinstance(error.cause, DovetailError):
        return error.cause
    return EndpointError(f"the replicas cannot start: {first_line(error.cause)}", do="see the lines above")


_held: list[Serving] = []  # by the replica that this process is: Serve asks for its application by a plain function


def _application() -> Any:
    app = _held[-1].app

    async def answering(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":  # Serve gave the request its id, and says it itself
                message["headers"] = [pair for pair in message["headers"] if pair[0].lower() != b"x-request-id"]
            await send(message)

        await app(scope, receive, sending)

    return answering


class _Replica:
    """What Ray Serve makes in each process."""

    def __init__(self, make: Callable[[], Serving]) -> None:
        _held.append(make())

    def check_health(self) -> None:
        if not _held[-1].ready:
            raise RuntimeError("it cannot paint")

    def __del__(self) -> None:
        while _held:
            _held.pop().close()
