"""Optimizers, learning-rate schedules, and what a diverged run probably suffers from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import torch

from mfdmc_fast.errors import ConfigError
from mfdmc_fast.model import RatingModel

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
ADAGRAD_EPSILON = 1e-8


class OptimizerState(Protocol):
    """What pruning and diagnosis need of an optimizer; every torch optimizer has it.

    Attributes:
        param_groups: groups with `params`, `name` and `lr`.
        state: parameter → named tensors, of which those with its shape, and those with one number for each of its rows,
            are compacted along with it.
    """

    param_groups: list[dict[str, Any]]
    state: Any


class RowAdaGrad(torch.optim.Optimizer):
    """Row-wise AdaGrad, `EXACT_ROWWISE_ADAGRAD` of FBGEMM (github.com/pytorch/FBGEMM, fbgemm_gpu) without weight decay.

    For a row x of d numbers with gradient g: row_sum += mean(g²); x -= lr * g / (sqrt(row_sum) + eps). A row of
    assignment logits or factors is an entity's, a bias [n] has n rows of one number, a row of centers is one center.
    A row whose gradient is 0 stays where it is, whatever it did before.

    State of a parameter [n, d] or [n]: `row_sum` [n] in its dtype. So an entity has 8 bytes of float32 state, 4 for its
    row and 4 for its bias, where Adam has 8 for every number.

    Args:
        params: parameters or groups of them, as `torch.optim` takes them.
        lr: learning rate of groups that do not say their own.
        eps: keeps the first step of a row finite.
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.01, eps: float = ADAGRAD_EPSILON) -> None:
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step on all parameters that have a gradient; there is no use for a closure."""
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["row_sum"] = parameter.new_zeros(len(parameter))  # [n]
                columns = gradient.unsqueeze(-1).flatten(1)  # [n, d]; a bias is [n, 1]
                row_sum = state["row_sum"].add_(columns.square().mean(1))
                scale = 1 / (row_sum.sqrt() + group["eps"])  # [n]
                parameter.addcmul_(gradient, scale if gradient.dim() == 1 else scale[:, None], value=-group["lr"])


def make_optimizer(model: RatingModel) -> torch.optim.Optimizer:
    """The optimizer of the model's settings over its parameter groups; Adam is torch's, one fused sweep per tensor."""
    if model.config.optimizer == "adagrad":
        return RowAdaGrad(model.parameter_groups())
    return torch.optim.Adam(model.parameter_groups(), betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=True)


def likely_cause(scale: tuple[float, float], optimizer: OptimizerState) -> str:
    """Why a loss has probably become NaN or infinite, and what to try.

    Args:
        scale: lowest and highest rating, NaN where one is NaN.
        optimizer: of the run.
    """
    largest_rating = float(np.abs(scale).max())
    if math.isnan(largest_rating):
        return "ratings hold NaN; remove them"
    if largest_rating > 1e4:
        return f"ratings reach {largest_rating:g}; rescale them to a few points around 0 or set a rating scale"
    extremes = {}
    for group in optimizer.param_groups:
        values = torch.cat([p.detach().abs().flatten() for p in group["params"]])
        extremes[group["name"]] = (math.inf if not values.isfinite().all() else float(values.max()), group["lr"])
    # where several are infinite, the fastest is the likeliest culprit
    name, (size, rate) = max(extremes.items(), key=lambda entry: entry[1])
    return (
        f"{name} reach {size:g} at a learning rate of {rate:g}, which is probably too high."
        " Try a tenth of it, or smaller loss weights"
    )


def rate_factor(schedule: str, step: int, total_steps: int) -> float:
    """Factor on the learning rates at a step (the first is 0).

    `cosine` falls from 1 to 0 over the run; `one-cycle` rises from 1/25 to 1 over the first 30 % of the steps and then
    falls to 0, both as half cosines; `constant` is 1.
    """
    if schedule == "constant":
        return 1.0
    progress = min(1.0, step / max(1, total_steps))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "one-cycle":
        warm_up = 0.3
        if progress < warm_up:
            return 1 / 25 + (1 - 1 / 25) * 0.5 * (1 - math.cos(math.pi * progress / warm_up))
        return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))
    raise ConfigError(f"learning_rate_schedule = {schedule!r}: must be cosine, constant or one-cycle")
