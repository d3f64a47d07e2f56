"""What concerns the centers alone: the spread term with its gradient, and their optimizer step."""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl
from torch import Tensor

from mfdmc_fast.ops.native import SideParameters
from mfdmc_fast.ops.triton_kernels import launch
from mfdmc_fast.ops.triton_kernels.device_code import (
    ADAGRAD,
    ADAM,
    CENTER_STEP,
    EPSILON,
    MARGIN,
    SPREAD,
    adam_moments,
    adam_quotient,
    store_rounded,
)
from mfdmc_fast.ops.triton_kernels.entity_backward import Update

_PAIRS_OF_A_PROGRAM = 4096
_ROWS_OF_A_PROGRAM = 16


@triton.jit(do_not_specialize=["n_views", "n_spread_views", "blocks_each"])
def _spread_kernel(
    p_centers,  # [S, D]
    p_views,  # [n_views + 1]
    p_loss,  # loss constants
    p_grad,  # [S, D] in and out
    p_terms,  # [programs] out: parts of the spread term
    n_views,
    n_spread_views,
    blocks_each,
    D: tl.constexpr,
    KB: tl.constexpr,
    KP: tl.constexpr,
    ACC: tl.constexpr,
):
    """spread = mean over views with K >= 2 of the mean over pairs k < l of max(0, margin - |c_k - c_l|)^2.

    Grid: (view, clusters in blocks of KB, blocks_each of them one after the other). A program sees each of its clusters
    with all others of the view, so that a pair is met twice and no gradient is written by two programs. Differences are
    taken column by column: the distance of two close centers would cancel in |c_k|^2 - 2 c_k c_l + |c_l|^2.
    """
    v, i_group = tl.program_id(0), tl.program_id(1)
    first = tl.load(p_views + v)
    n_clusters = tl.load(p_views + v + 1) - first
    pairs = (n_clusters * (n_clusters - 1)).to(ACC) * n_spread_views
    scale = tl.where(n_clusters > 1, 1.0 / tl.maximum(pairs, 1.0), 0.0)
    margin = tl.load(p_loss + MARGIN)
    weight = tl.load(p_loss + SPREAD)
    b_l = tl.arange(0, KP)
    m_l = b_l < n_clusters
    term = tl.zeros((), dtype=ACC)
    for block in range(i_group * blocks_each, (i_group + 1) * blocks_each):
        b_k = block * KB + tl.arange(0, KB)
        m_k = b_k < n_clusters
        m_pair = m_k[:, None] & m_l[None, :] & (b_k[:, None] != b_l[None, :])
        b_square = tl.zeros((KB, KP), dtype=ACC)
        for c in range(0, D):
            b_one = tl.load(p_centers + (first + b_k) * D + c, mask=m_k, other=0.0).to(ACC)
            b_other = tl.load(p_centers + (first + b_l) * D + c, mask=m_l, other=0.0).to(ACC)
            b_difference = b_one[:, None] - b_other[None, :]
            b_square += b_difference * b_difference
        b_distance = tl.sqrt(b_square)
        b_hinge = tl.where(m_pair, tl.maximum(margin - b_distance, 0.0), 0.0)
        term += tl.sum(b_hinge * b_hinge) * scale
        # centers that coincide have no direction to part in
        b_pull = tl.where(b_distance > 0.0, b_hinge / tl.where(b_distance > 0.0, b_distance, 1.0), 0.0)
        b_pull *= -4.0 * weight * scale
        for c in range(0, D):
            b_one = tl.load(p_centers + (first + b_k) * D + c, mask=m_k, other=0.0).to(ACC)
            b_other = tl.load(p_centers + (first + b_l) * D + c, mask=m_l, other=0.0).to(ACC)
            p_to = p_grad + (first + b_k) * D + c
            b_grad = tl.load(p_to, mask=m_k, other=0.0)
            b_grad += tl.sum(b_pull * (b_one[:, None] - b_other[None, :]), 1)
            tl.store(p_to, b_grad, mask=m_k)
    tl.store(p_terms + v * tl.num_programs(1) + i_group, term)


@triton.jit(do_not_specialize=["n_clusters"])
def _step_centers_kernel(
    p_centers,  # [n_clusters, D] in and out
    p_grad,  # [n_clusters, D]
    p_step,  # constants of the step
    p_seed,  # [1]
    p_state,  # [n_clusters, D] first moment (ADAM), or [n_clusters] row_sum (ADAGRAD); in and out
    p_state_v,  # [n_clusters, D] second moment (ADAM)
    n_clusters,
    OPTIMIZER: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    DP: tl.constexpr,
    ACC: tl.constexpr,
):
    """One optimizer step of the centers. Grid: a program takes ROWS clusters."""
    b_k = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b_c = tl.arange(0, DP)
    m_k = b_k < n_clusters
    b_at = b_k[:, None] * D + b_c[None, :]
    mask = m_k[:, None] & (b_c < D)[None, :]
    b_x = tl.load(p_centers + b_at, mask=mask, other=0.0).to(ACC)
    b_grad = tl.load(p_grad + b_at, mask=mask, other=0.0)
    size = tl.load(p_step + CENTER_STEP)
    if OPTIMIZER == ADAM:
        b_m, b_v = adam_moments(p_state + b_at, p_state_v + b_at, mask, b_grad, p_step)
        b_x -= size * adam_quotient(b_m, b_v, p_step)
    else:
        b_sum = tl.load(p_state + b_k, mask=m_k, other=0.0) + tl.sum(b_grad * b_grad, 1) / D
        tl.store(p_state + b_k, b_sum, mask=m_k)
        b_x -= size * b_grad / (tl.sqrt(b_sum) + tl.load(p_step + EPSILON))[:, None]
    store_rounded(p_centers + b_at, b_x, mask, p_seed, b_at.to(tl.int64))


def add_spread(side: SideParameters, loss: Tensor, grad: Tensor) -> Tensor:
    """Add the spread term's gradient to that of the centers.

    Args:
        loss: constants as from `loss_constants`.
        grad: [S, d] accumulator dtype, changed in place.

    Returns:
        [programs] parts of the unweighted spread term. Deterministic.
    """
    assert side.centers is not None
    n_views, view_dim = len(side.n_clusters), side.centers.shape[1]
    clusters = launch.power_of_2(max(side.n_clusters))
    block = max(1, min(clusters, _PAIRS_OF_A_PROGRAM // clusters))
    n_blocks = triton.cdiv(max(side.n_clusters), block)
    blocks_each = n_blocks if launch.INTERPRETED else 1
    grid = n_views, n_blocks // blocks_each
    terms = grad.new_empty(grid)
    _spread_kernel[grid](
        side.centers,
        launch.view_offsets(side.n_clusters, grad.device),
        loss,
        grad,
        terms,
        n_views,
        sum(k > 1 for k in side.n_clusters),
        blocks_each,
        D=view_dim,
        KB=block,
        KP=clusters,
        ACC=launch.language_dtype(grad.dtype),
        **launch.options(max(1, min(4, block * clusters // 512))),
    )
    return terms.view(-1)


def step_centers(side: SideParameters, grad: Tensor, update: Update, state: Mapping[str, Tensor]) -> None:
    """Move the centers by one step of the optimizer, in place.

    Args:
        grad: [S, d] whole gradient, accumulator dtype.
        state: `exp_avg` and `exp_avg_sq` [S, d], or `row_sum` [S], accumulator dtype, changed in place.
    """
    assert side.centers is not None
    n_clusters, view_dim = side.centers.shape
    adam = update.optimizer == "adam"
    dim = launch.power_of_2(view_dim)
    rows = max(1, min(_ROWS_OF_A_PROGRAM, 4096 // dim))
    if launch.INTERPRETED:
        rows = launch.power_of_2(n_clusters)
    _step_centers_kernel[(triton.cdiv(n_clusters, rows),)](
        side.centers,
        grad,
        update.step,
        update.seed,
        state["exp_avg" if adam else "row_sum"],
        state["exp_avg_sq"] if adam else None,
        n_clusters,
        OPTIMIZER=(ADAM if adam else ADAGRAD).value,
        D=view_dim,
        ROWS=rows,
        DP=dim,
        ACC=launch.language_dtype(grad.dtype),
        **launch.options(4 if rows * dim > 512 else 1),
    )
