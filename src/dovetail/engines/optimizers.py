"""The optimizer; and how it can step within the backward pass, so that no two gradients need to be there at once."""

from typing import Any

import torch

from dovetail.config import Training
from dovetail.errors import BadConfigError


def adamw(parameters: list[torch.nn.Parameter], config: Training) -> torch.optim.Optimizer:
    """AdamW; the learning rate is set anew at each step."""
    told: dict[str, Any] = {
        "lr": 1.0, "betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon,
        "weight_decay": config.weight_decay,
    }  # fmt: skip
    if not config.use_8bit_adam:
        return torch.optim.AdamW(parameters, fused=True, **told)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise BadConfigError("8-bit Adam needs bitsandbytes", do="pip install bitsandbytes, or leave use_8bit_adam") from error
    return AdamW8bit(parameters, **told)


class Within:
    """Each weight is updated as soon as its gradient is whole, which is then given back (Lv et al. 2023, LOMO, sec. 3.1)."""

    def __init__(self, parameters: list[torch.nn.Parameter], optimizer: Any) -> None:
        self.optimizer, self.on = optimizer, False
        self.squares = torch.zeros((), device=parameters[0].device)
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._update)

    @property
    def begun(self) -> bool:
        """Whether any weight was updated since the norm was last asked for."""
        return bool(self.squares > 0)

    def norm(self) -> float:
        """Of all gradients since it was last asked for."""
        found = float(self.squares.sqrt())
        self.squares.zero_()
        return found

    def _update(self, parameter: torch.Tensor) -> None:
        if not self.on or parameter.grad is None:
            return
        self.squares += torch.linalg.vector_norm(parameter.grad).float().square()
        (group,) = self.optimizer.param_groups
        every, group["params"] = group["params"], [parameter]  # others may have gradients of micro-batches before
        self.optimizer.step()
        group["params"], parameter.grad = every, None
