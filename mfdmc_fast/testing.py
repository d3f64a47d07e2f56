"""Inputs and tolerances shared by tests and benchmarks; not part of the public interface."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mfdmc_fast.ops.types import Combine, LossWeights, SideTensors

ALL_WEIGHTS = LossWeights(spread=0.3, proximity=0.2, entropy=0.1, l2=0.05, bias_l2=0.02)


class Case(NamedTuple):
    """One input of `batch_loss`, its arguments in order; `loss_arguments` has the keyword ones."""

    user: SideTensors
    item: SideTensors
    global_mean: float
    user_idx: Tensor
    item_idx: Tensor
    ratings: Tensor

    def parameters(self) -> list[Tensor]:
        """Every tensor that takes a gradient."""
        tensors = (t for s in (self.user, self.item) for t in (s.assignment_logits, s.centers, s.bias))
        return [t for t in tensors if t is not None]

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Case:
        """The same numbers in another dtype or on another device, as leaves that require gradients."""

        def convert(side: SideTensors) -> SideTensors:
            logits, centers, bias = (
                None if t is None else t.detach().to(device, dtype).requires_grad_()
                for t in (side.assignment_logits, side.centers, side.bias)
            )
            assert logits is not None
            assert centers is not None
            l2_scale = None if side.l2_scale is None else side.l2_scale.to(device, dtype)
            return SideTensors(logits, centers, side.n_clusters, bias, l2_scale)

        return self._replace(
            user=convert(self.user),
            item=convert(self.item),
            user_idx=self.user_idx.to(device),
            item_idx=self.item_idx.to(device),
            ratings=self.ratings.to(device, dtype),
        )


def make_case(
    batch_size: int = 63,
    user_clusters: tuple[int, ...] = (5, 3, 7),
    item_clusters: tuple[int, ...] = (4, 6, 2),
    view_dim: int = 7,
    n_users: int = 11,
    n_items: int = 17,
    *,
    biases: bool = True,
    l2_scales: bool = False,
    logit_scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Case:
    """A seeded random input with repeated users and items; all parameters are leaves that require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def side(n: int, n_clusters: tuple[int, ...]) -> SideTensors:
        total = sum(n_clusters)
        bias = normal(n) * 0.3 if biases else None
        logits, centers = normal(n, total) * logit_scale, normal(total, view_dim) * 0.7
        return SideTensors(logits, centers, n_clusters, bias, normal(n).exp() if l2_scales else None)

    return Case(
        side(n_users, user_clusters),
        side(n_items, item_clusters),
        3.5 if biases else 0.0,
        torch.randint(n_users, (batch_size,), generator=generator),
        torch.randint(n_items, (batch_size,), generator=generator),
        torch.rand(batch_size, generator=generator, dtype=torch.float64) * 4 + 1,
    ).to(dtype)


def both_combines() -> tuple[Combine, Combine]:
    """The two values of `combine`, for parametrized tests."""
    return ("concat", "sum")


def data_folder() -> Path | None:
    """The folder of rating datasets (`MFDMC_DATA`, or `../shared/data` beside the checkout), or None."""
    named = os.environ.get("MFDMC_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    return folder if folder.is_dir() else None
