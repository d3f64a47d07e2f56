"""One batch through all passes: loss terms, with gradients of `total` or an optimizer's step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl
from torch import Tensor

from mfdmc_fast.ops.native import SideParameters
from mfdmc_fast.ops.triton_kernels import launch
from mfdmc_fast.ops.triton_kernels.centers import add_spread, step_centers
from mfdmc_fast.ops.triton_kernels.device_code import BIAS_L2, ENTROPY, L2, PROXIMITY, SPREAD
from mfdmc_fast.ops.triton_kernels.entity_backward import Update, entity_backward
from mfdmc_fast.ops.triton_kernels.entity_forward import entity_forward
from mfdmc_fast.ops.triton_kernels.grouping import Groups, group
from mfdmc_fast.ops.triton_kernels.rating_pass import rating_pass
from mfdmc_fast.ops.types import Combine, LossTerms, LossWeights

_SUMS_AT_ONCE = 1024


@triton.jit
def _sum_rows(p_sums, n_rows, column, COLUMNS: tl.constexpr, AT_ONCE: tl.constexpr):
    """Sum of one column of [n_rows, COLUMNS], in float64."""
    b_sum = tl.zeros((AT_ONCE,), dtype=tl.float64)
    for start in range(0, n_rows, AT_ONCE):
        b_row = start + tl.arange(0, AT_ONCE)
        b_sum += tl.load(p_sums + b_row * COLUMNS + column, mask=b_row < n_rows, other=0.0).to(tl.float64)
    return tl.sum(b_sum, 0)


@triton.jit(do_not_specialize=["n_ranks", "n_squares", "n_user", "n_item", "n_user_spread", "n_item_spread"])
def _terms_kernel(
    p_offsets,  # [n_ranks + 1] of the users
    p_loss,  # loss constants
    p_squares,  # [n_squares]
    p_user,  # [n_user, 4]
    p_item,  # [n_item, 4]
    p_user_spread,  # [n_user_spread]
    p_item_spread,  # [n_item_spread]
    p_terms,  # [7] out, in the order of LossTerms
    n_ranks,
    n_squares,
    n_user,
    n_item,
    n_user_spread,
    n_item_spread,
    AT_ONCE: tl.constexpr,
):
    """Adds up what the passes' programs have left, in a fixed order. One program."""
    mse = _sum_rows(p_squares, n_squares, 0, 1, AT_ONCE) / tl.load(p_offsets + n_ranks)
    spread = _sum_rows(p_user_spread, n_user_spread, 0, 1, AT_ONCE)
    spread += _sum_rows(p_item_spread, n_item_spread, 0, 1, AT_ONCE)
    proximity = _sum_rows(p_user, n_user, 0, 4, AT_ONCE) + _sum_rows(p_item, n_item, 0, 4, AT_ONCE)
    entropy = _sum_rows(p_user, n_user, 1, 4, AT_ONCE) + _sum_rows(p_item, n_item, 1, 4, AT_ONCE)
    l2 = _sum_rows(p_user, n_user, 2, 4, AT_ONCE) + _sum_rows(p_item, n_item, 2, 4, AT_ONCE)
    bias_l2 = _sum_rows(p_user, n_user, 3, 4, AT_ONCE) + _sum_rows(p_item, n_item, 3, 4, AT_ONCE)
    total = mse + tl.load(p_loss + SPREAD) * spread + tl.load(p_loss + PROXIMITY) * proximity
    total += tl.load(p_loss + ENTROPY) * entropy + tl.load(p_loss + L2) * l2 + tl.load(p_loss + BIAS_L2) * bias_l2
    tl.store(p_terms, total)
    tl.store(p_terms + 1, mse)
    tl.store(p_terms + 2, spread)
    tl.store(p_terms + 3, proximity)
    tl.store(p_terms + 4, entropy)
    tl.store(p_terms + 5, l2)
    tl.store(p_terms + 6, bias_l2)


def loss_constants(
    weights: LossWeights, *, spread_margin: float, global_mean: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What is constant over an epoch, as the kernels read it: [7] in the accumulator dtype of tables of `dtype`."""
    numbers = [*weights, global_mean, spread_margin]
    return torch.tensor(numbers, dtype=launch.accumulator(dtype), device=device)


def adam_steps(
    rates: Mapping[str, npt.NDArray[np.float64]], *, betas: tuple[float, float], epsilon: float
) -> npt.NDArray[np.float64]:
    """Adam's constants for the steps of a run.

    Args:
        rates: learning rates [steps] of `assignment_logits` and `centers`, and of `biases` if there are.

    Returns:
        [steps, 9]; a row, on the device and in the accumulator dtype, is what `Update.step` holds.
    """
    t = np.arange(1, len(rates["assignment_logits"]) + 1, dtype=np.float64)
    whole = [betas[0], betas[1], 1 - betas[0], 1 - betas[1], epsilon]
    return _steps(rates, 1 - np.power(betas[0], t), 1 / np.sqrt(1 - np.power(betas[1], t)), whole)


def adagrad_steps(rates: Mapping[str, npt.NDArray[np.float64]], *, epsilon: float) -> npt.NDArray[np.float64]:
    """The same for row-wise AdaGrad."""
    ones = np.ones(len(rates["assignment_logits"]))
    return _steps(rates, ones, ones, [0.0, 0.0, 1.0, 1.0, epsilon])


def _steps(
    rates: Mapping[str, npt.NDArray[np.float64]],
    divisor: npt.NDArray[np.float64],
    inverse_root: npt.NDArray[np.float64],
    whole: list[float],
) -> npt.NDArray[np.float64]:
    none = np.zeros(len(divisor))
    sizes = [rates.get(name, none) / divisor for name in ("assignment_logits", "biases", "centers")]
    return np.stack([*sizes, inverse_root, *(np.full(len(divisor), number) for number in whole)], axis=1)


@dataclass(frozen=True)
class BatchSide:
    """One side of a batch.

    Attributes:
        parameters: contiguous, on one device; changed in place by an update.
        groups: the batch's ratings by ranks of this side.
        rows: [R] int64 distinct rows that the ranks stand for, or None: rank r is row r of the table.
        into: where gradients go or what optimizer state there is, as in `entity_backward`, and for `centers` likewise.
    """

    parameters: SideParameters
    groups: Groups
    rows: Tensor | None = None
    into: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def batch_pass(
    user: BatchSide, item: BatchSide, loss: Tensor, combine: Combine, update: Update | None = None
) -> Tensor:
    """One batch of B >= 1 ratings: loss terms, and gradients written or a step made in place.

    It never waits for the device, and all sizes follow from those of its arguments, so that it can be recorded as a
    CUDA graph.

    Args:
        user, item: the sides; both groups hold the same ratings, and partners are ranks of the other.
        loss: from `loss_constants`.
        combine: `concat` or `sum`.
        update: None writes gradients into `grad` of each side's `into`.

    Returns:
        [7] terms in the order of `LossTerms`, accumulator dtype. Deterministic: the same bits on every run.
    """
    sides = user, item
    embedded = [entity_forward(s.parameters, combine, rows=s.rows, groups=s.groups) for s in sides]
    gradients = [
        rating_pass(embedded[own], embedded[1 - own], side.groups, loss, squares=own == 0)
        for own, side in enumerate(sides)
    ]
    spread = []
    for side, z, gradient in zip(sides, embedded, gradients, strict=True):
        grad = entity_backward(
            side.parameters, combine, side.groups, z, gradient, loss, rows=side.rows, update=update, into=side.into
        )
        spread.append(add_spread(side.parameters, loss, grad))
        if update is None:
            side.into["centers"]["grad"].copy_(grad)
        else:
            step_centers(side.parameters, grad, update, side.into["centers"])
    terms = loss.new_empty(7)
    squares, sums = gradients[0].squares, [z.sums for z in embedded]
    assert squares is not None
    assert sums[0] is not None
    assert sums[1] is not None
    _terms_kernel[(1,)](
        user.groups.offsets,
        loss,
        squares,
        *sums,
        *spread,
        terms,
        user.groups.n_ranks,
        len(squares),
        len(sums[0]),
        len(sums[1]),
        len(spread[0]),
        len(spread[1]),
        AT_ONCE=_SUMS_AT_ONCE,
        **launch.options(4),
    )
    return terms


def batch_loss_and_gradients(
    user: SideParameters,
    item: SideParameters,
    global_mean: float,
    user_idx: Tensor,
    item_idx: Tensor,
    ratings: Tensor,
    *,
    combine: Combine,
    weights: LossWeights,
    spread_margin: float,
) -> tuple[LossTerms, list[dict[str, Tensor]]]:
    """Loss terms of B >= 1 ratings and the gradients of `total`.

    Tables with no more rows than the batch has ratings are worked on whole, larger ones by their distinct rows.

    Returns:
        Terms as scalars of the accumulator dtype, and for each side the gradients by the names of
        `SideParameters.tensors()`, in the dtype of the parameters.
    """
    table = user.table
    loss = loss_constants(
        weights, spread_margin=spread_margin, global_mean=global_mean, dtype=table.dtype, device=table.device
    )
    rows: list[Tensor | None] = []
    ranks = []
    for side, idx in ((user, user_idx), (item, item_idx)):
        if len(side.table) <= len(ratings):
            rows.append(None)
            ranks.append(idx)
        else:
            distinct, inverse = torch.unique(idx, return_inverse=True)
            rows.append(distinct)
            ranks.append(inverse)
    sides, gradients = [], []
    for own, side in enumerate((user, item)):
        chosen = rows[own]
        new = torch.empty_like if chosen is None else torch.zeros_like
        gradients.append({name: new(tensor) for name, tensor in side.tensors().items()})
        n_ranks = len(side.table) if chosen is None else len(chosen)
        groups = group(ranks[own], n_ranks, ranks[1 - own], ratings)
        sides.append(BatchSide(side, groups, chosen, {name: {"grad": g} for name, g in gradients[own].items()}))
    terms = batch_pass(sides[0], sides[1], loss, combine)
    return LossTerms(*terms.unbind()), gradients
