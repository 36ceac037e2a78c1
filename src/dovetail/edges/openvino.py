"""The fast engine on a CPU: the U-Net compiled by OpenVINO, in bf16 where there is that (the extra `dovetail[openvino]`)."""

import contextlib
import gc
import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dovetail.errors import ModelError


def installed() -> bool:
    """Whether the extra is there."""
    return importlib.util.find_spec("openvino") is not None


class _Plain(torch.nn.Module):
    """A U-Net with positional arguments and a tensor for an answer, as a tracer likes it."""

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        answer: Tensor = self.unet(latents, timesteps, encoder_hidden_states=states, return_dict=False)[0]
        return answer


class _Shifted(_Plain):
    """The same of a U-Net that is told how much more of its LoRA each row has."""

    def forward(self, latents: Tensor, timesteps: Tensor, states: Tensor, shift: Tensor) -> Tensor:  # type: ignore[override]
        answer: Tensor = self.unet(latents, timesteps, encoder_hidden_states=states, return_dict=False, lora_shift=shift)[0]
        return answer


def version() -> str:
    """Of the library; empty where it is not installed."""
    return importlib.metadata.version("openvino") if installed() else ""


def keep(unet: Any, tokens: int, file: Path, shifted: bool = False) -> None:
    """Write a U-Net as OpenVINO has it (`file` is an .xml; its weights lie beside it), so that it need not be made again.

    One that is `shifted` is called with `lora_shift`, float32 (b,), too.
    """
    import openvino

    with _both(file) as temporary:
        openvino.save_model(_converted(unet, tokens, shifted), temporary, compress_to_fp16=False)


def put(xml: str, constants: bytes | bytearray, file: Path) -> None:
    """Write what `keep` would have written, from its parts."""
    with _both(file) as temporary:
        temporary.with_suffix(".bin").write_bytes(constants)
        temporary.write_text(xml, encoding="utf-8")


@contextlib.contextmanager
def _both(file: Path) -> Iterator[Path]:
    """A name to write to; then both files get their own, the one that is looked for last."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"making-{os.getpid()}.xml")
    yield temporary
    temporary.with_suffix(".bin").rename(file.with_suffix(".bin"))
    temporary.rename(file)


def _converted(unet: Any, tokens: int, shifted: bool) -> Any:
    import openvino

    side = int(unet.config.sample_size)
    example = (
        torch.zeros(2, unet.config.in_channels, side, side),
        torch.zeros(2),  # some solvers stand between two timesteps
        torch.zeros(2, tokens, unet.config.cross_attention_dim),
    ) + ((torch.zeros(2),) if shifted else ())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks on shapes that never change
        traced = torch.jit.trace((_Shifted if shifted else _Plain)(unet), example, check_trace=False)
        model = openvino.convert_model(traced, example_input=example)
    del traced
    _forget_traces()
    return model


def _forget_traces() -> None:
    """PyTorch keeps every traced module, weights and all, in registries that it has no public way to empty."""
    with contextlib.suppress(AttributeError):
        torch.jit._state._clear_class_state()
        torch._C._jit_clear_class_registry()
        torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()
    gc.collect()


class CompiledUNet:
    """Called like the U-Net it was made from: latents (b, c, h, w), timestep, states (b, tokens, width) -> prediction."""

    def __init__(self, unet: Any, tokens: int, threads: int = 0, shifted: bool = False) -> None:
        """Of a U-Net (`shifted`: see `keep`), or of the file that `keep` wrote. `threads` 0 means all cores.

        Raises ModelError where OpenVINO is not installed.
        """
        if not installed():
            raise ModelError("OpenVINO is not installed", do="pip install 'dovetail[openvino]', or choose the torch engine")
        import openvino

        core = openvino.Core()
        model = core.read_model(unet) if isinstance(unet, Path) else _converted(unet, tokens, shifted)
        # It looks at the processor itself, and asks of oneDNN what that was told to leave.
        half = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") and os.environ.get("DOVETAIL_CPU") != "avx2"
        precision = "bf16" if half else "f32"
        told = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        self._compiled = core.compile_model(model, "CPU", {k: v for k, v in told.items() if v})

    def __call__(
        self, latents: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = False,
        lora_shift: Tensor | None = None,
    ) -> tuple[Tensor]:  # fmt: skip
        """The prediction, float32 (b, c, h, w)."""
        steps = np.broadcast_to(np.atleast_1d(np.asarray(timestep, np.float32)), (len(latents),))
        told = [latents.numpy(), np.ascontiguousarray(steps), encoder_hidden_states.numpy()]
        answer = self._compiled(told if lora_shift is None else [*told, lora_shift.numpy()])[0]
        return (torch.from_numpy(np.asarray(answer).copy()),)
