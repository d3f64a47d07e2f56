"""Autograd wrappers of fused kernels: forward computes loss and gradients at once, backward only scales them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mfdmc_fast.ops import cuda_training, native, reference, triton_backend
from mfdmc_fast.ops.types import Combine, FactorTensors, LossTerms, LossWeights, SideTensors

# with the signature of `native.batch_loss_and_gradients`
_Launcher = Callable[..., tuple[LossTerms, list[dict[str, Tensor]]]]


class _FusedLoss(torch.autograd.Function):
    """Inputs: a launcher, what it takes, and the parameters once more, flat, for autograd to see."""

    @staticmethod
    def forward(ctx: Any, launcher: _Launcher, call: dict[str, Any], *parameters: Tensor) -> tuple[Tensor, ...]:
        terms, gradients = launcher(**call)
        ctx.save_for_backward(*(gradient for side in gradients for gradient in side.values()))
        ctx.mark_non_differentiable(*terms[1:])
        return tuple(terms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        return (
            None,
            None,
            *(g * grad_total if wanted else None for g, wanted in zip(ctx.saved_tensors, needed, strict=True)),
        )


def batch_loss_cpu(
    user: SideTensors,
    item: SideTensors,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    ratings: Tensor,
    *,
    combine: Combine,
    weights: LossWeights,
    spread_margin: float,
) -> LossTerms:
    """`batch_loss` in C++. Only `total` is differentiable, once."""
    batch = user_idx, item_idx, ratings
    return _batch_loss(
        native.batch_loss_and_gradients, user, item, global_mean, *batch, combine, weights, spread_margin
    )


def batch_loss_triton(
    user: SideTensors,
    item: SideTensors,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    ratings: Tensor,
    *,
    combine: Combine,
    weights: LossWeights,
    spread_margin: float,
) -> LossTerms:
    """`batch_loss` in Triton. Only `total` is differentiable, once; terms of 16-bit tables are float32."""
    batch = user_idx, item_idx, ratings
    return _batch_loss(
        triton_backend.batch_loss_and_gradients, user, item, global_mean, *batch, combine, weights, spread_margin
    )


def batch_loss_cuda(
    user: SideTensors,
    item: SideTensors,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    ratings: Tensor,
    *,
    combine: Combine,
    weights: LossWeights,
    spread_margin: float,
) -> LossTerms:
    """`batch_loss` in CUDA. Only `total` is differentiable, once."""
    batch = user_idx, item_idx, ratings
    return _batch_loss(
        cuda_training.batch_loss_and_gradients, user, item, global_mean, *batch, combine, weights, spread_margin
    )


def funkmf_loss_cpu(
    user: FactorTensors,
    item: FactorTensors,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    ratings: Tensor,
    *,
    weights: LossWeights,
) -> LossTerms:
    """`funkmf_loss` in C++. Only `total` is differentiable, once."""
    if len(ratings) == 0:
        return reference.funkmf_loss(user, item, global_mean, user_idx, item_idx, ratings, weights=weights)
    return _fused(
        native.batch_loss_and_gradients, user, item, global_mean, user_idx, item_idx, ratings, "concat", weights, 0.0
    )


def _batch_loss(
    launcher: _Launcher,
    user: SideTensors,
    item: SideTensors,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    ratings: Tensor,
    combine: Combine,
    weights: LossWeights,
    spread_margin: float,
) -> LossTerms:
    if len(ratings) == 0:
        arguments = {"combine": combine, "weights": weights, "spread_margin": spread_margin}
        return reference.batch_loss(user, item, global_mean, user_idx, item_idx, ratings, **arguments)  # type: ignore[arg-type]
    return _fused(launcher, user, item, global_mean, user_idx, item_idx, ratings, combine, weights, spread_margin)


def _fused(
    launcher: _Launcher,
    user: SideTensors | FactorTensors,
    item: SideTensors | FactorTensors,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    ratings: Tensor,
    combine: Combine,
    weights: LossWeights,
    spread_margin: float,
) -> LossTerms:
    sides = [native.SideParameters.of(side) for side in (user, item)]
    parameters = [tensor for side in sides for tensor in side.tensors().values()]
    plain = [
        native.SideParameters(
            side.table.detach().contiguous(),
            None if side.bias is None else side.bias.detach().contiguous(),
            None if side.centers is None else side.centers.detach().contiguous(),
            side.n_clusters,
            None if side.l2_scale is None else side.l2_scale.detach().contiguous(),
        )
        for side in sides
    ]
    call = {
        "user": plain[0],
        "item": plain[1],
        "global_mean": global_mean,
        "user_idx": user_idx.contiguous(),
        "item_idx": item_idx.contiguous(),
        "ratings": ratings.detach().contiguous(),
        "combine": combine,
        "weights": weights,
        "spread_margin": spread_margin,
    }
    return LossTerms(*cast(tuple[Tensor, ...], _FusedLoss.apply(launcher, call, *parameters)))  # type: ignore[no-untyped-call]
