"""The fast engine on a CPU: the U-Net compiled by OpenVINO in bf16 (the extra `dovetail[openvino]`)."""

import contextlib
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


def version() -> str:
    """Of the library; empty where it is not installed."""
    return importlib.metadata.version("openvino") if installed() else ""


def keep(unet: Any, tokens: int, file: Path) -> None:
    """Write a U-Net as OpenVINO has it (`file` is an .xml; its weights lie beside it), so that it need not be made again."""
    import openvino

    with _both(file) as temporary:
        openvino.save_model(_converted(unet, tokens), temporary, compress_to_fp16=False)


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


def _converted(unet: Any, tokens: int) -> Any:
    import openvino

    side = int(unet.config.sample_size)
    example = (
        torch.zeros(2, unet.config.in_channels, side, side),
        torch.zeros(2),  # some solvers stand between two timesteps
        torch.zeros(2, tokens, unet.config.cross_attention_dim),
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks on shapes that never change
        traced = torch.jit.trace(_Plain(unet), example, check_trace=False)
        return openvino.convert_model(traced, example_input=example)


class CompiledUNet:
    """Called like the U-Net it was made from: latents (b, c, h, w), timestep, states (b, tokens, width) -> prediction."""

    def __init__(self, unet: Any, tokens: int, threads: int = 0) -> None:
        """Of a U-Net, or of the file that `keep` wrote. `threads` 0 means all cores.

        Raises ModelError where OpenVINO is not installed.
        """
        if not installed():
            raise ModelError("OpenVINO is not installed", do="pip install 'dovetail[openvino]', or choose the torch engine")
        import openvino

        core = openvino.Core()
        model = core.read_model(unet) if isinstance(unet, Path) else _converted(unet, tokens)
        told = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        self._compiled = core.compile_model(model, "CPU", {k: v for k, v in told.items() if v})

    def __call__(
        self, latents: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """The prediction, float32 (b, c, h, w)."""
        steps = np.broadcast_to(np.atleast_1d(np.asarray(timestep, np.float32)), (len(latents),))
        answer = self._compiled([latents.numpy(), np.ascontiguousarray(steps), encoder_hidden_states.numpy()])[0]
        return (torch.from_numpy(np.asarray(answer).copy()),)
