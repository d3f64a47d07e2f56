"""Optimizer and learning-rate schedules."""

from __future__ import annotations

import math

import torch

from mfdmc_fast.errors import ConfigError
from mfdmc_fast.model import RatingModel


def make_optimizer(model: RatingModel) -> torch.optim.Optimizer:
    """Adam (0.9, 0.999) over the model's parameter groups; one fused sweep per tensor."""
    return torch.optim.Adam(model.parameter_groups(), fused=True)


def make_scheduler(
    optimizer: torch.optim.Optimizer, schedule: str, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Scale the learning rate of every group by `rate_factor` after each step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(schedule, step, total_steps))


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
