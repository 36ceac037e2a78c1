"""The fast engine on a CPU: the U-Net compiled by OpenVINO in bf16 (the extra `dovetail[openvino]`)."""

import importlib.util
import warnings
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


class CompiledUNet:
    """Called like the U-Net it was made from: latents (b, c, h, w), timestep, states (b, tokens, width) -> prediction."""

    def __init__(self, unet: Any, tokens: int, threads: int = 0) -> None:
        """Raises ModelError where OpenVINO is not installed. `threads` 0 means all cores."""
        if not installed():
            raise ModelError("OpenVINO is not installed", do="pip install 'dovetail[openvino]', or choose the torch engine")
        import openvino

        self.config: Any = unet.config
        side = int(self.config.sample_size)
        example = (
            torch.zeros(2, self.config.in_channels, side, side),
            torch.zeros(2, dtype=torch.long),
            torch.zeros(2, tokens, self.config.cross_attention_dim),
        )
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's remarks on shapes that never change
            traced = openvino.convert_model(_Plain(unet), example_input=example)
        told = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        self._compiled = openvino.Core().compile_model(traced, "CPU", {k: v for k, v in told.items() if v})

    def __call__(
        self, latents: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = False
    ) -> tuple[Tensor]:
        """The prediction, float32 (b, c, h, w)."""
        steps = np.broadcast_to(np.atleast_1d(np.asarray(timestep, np.int64)), (len(latents),))
        answer = self._compiled([latents.numpy(), np.ascontiguousarray(steps), encoder_hidden_states.numpy()])[0]
        return (torch.from_numpy(np.asarray(answer).copy()),)
