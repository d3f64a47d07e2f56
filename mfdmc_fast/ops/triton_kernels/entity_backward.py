"""Entity pass, backward: gradients of logits and biases, written or applied at once, and those of the centers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from mfdmc_fast.ops.native import SideParameters
from mfdmc_fast.ops.triton_kernels import launch
from mfdmc_fast.ops.triton_kernels.device_code import (
    ADAGRAD,
    ADAM,
    BIAS_L2,
    BIAS_STEP,
    ENTROPY,
    EPSILON,
    L2,
    NONE,
    PROXIMITY,
    TABLE_STEP,
    adam_moments,
    adam_quotient,
    centers_of_view,
    entropy_scale,
    rows_by_centers,
    rows_by_transposed_centers,
    rows_of_tile,
    softmax_of_view,
    store_rounded,
    sum_over_rows,
)
from mfdmc_fast.ops.triton_kernels.entity_forward import Embedded, entity_constants
from mfdmc_fast.ops.triton_kernels.grouping import Groups
from mfdmc_fast.ops.triton_kernels.rating_pass import RatingGradients
from mfdmc_fast.ops.types import Combine


@triton.jit
def _gradient_of_view(
    p_logits,
    p_centers,
    p_l2_scale,
    p_chunk_offsets,
    p_views,
    p_z,
    p_grad_z,
    p_loss,
    b_rank,
    b_row,
    m_load,
    m_active,
    b_share,
    n_columns,
    n_views,
    v,
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    SUM_VIEWS: tl.constexpr,
    ROWS: tl.constexpr,
    KP: tl.constexpr,
    DP: tl.constexpr,
    USE_DOT: tl.constexpr,
    ACC: tl.constexpr,
):
    """Logits, weights and gradient at the logits [ROWS, KP] of one view; h [ROWS, DP] and 2 a [ROWS] for the centers.

    With g the gradient at z_v from ratings and l2, a = share * weight_proximity / V and h = g - 2 a z_v:
        q_k = h . c_k + a |c_k|^2 - share * weight_entropy * ln w_k / (V ln K)
        gradient at logit k = w_k (q_k - sum_j w_j q_j), at center k = sum over rows of w_k h + 2 a w_k c_k
    """
    first = tl.load(p_views + v)
    n_clusters = tl.load(p_views + v + 1) - first
    b_logits, b_w, b_log_w = softmax_of_view(p_logits, b_row * n_columns, m_load, first, n_clusters, KP, ACC)
    b_centers = centers_of_view(p_centers, first, n_clusters, D, KP, DP, ACC)

    b_c = tl.arange(0, DP)
    column = 0 if SUM_VIEWS else v * D
    m_z = m_active[:, None] & (b_c < D)[None, :]
    b_z = tl.load(p_z + b_rank.to(tl.int64)[:, None] * STRIDE + column + b_c[None, :], mask=m_z, other=0.0)
    b_l2 = 2.0 * tl.load(p_loss + L2) * b_share
    if p_l2_scale is not None:
        b_l2 *= tl.load(p_l2_scale + b_row, mask=m_active, other=0.0).to(ACC)
    b_g = b_l2[:, None] * b_z
    b_chunk = tl.load(p_chunk_offsets + b_rank, mask=m_active, other=0)
    b_n_chunks = tl.load(p_chunk_offsets + b_rank + 1, mask=m_active, other=0) - b_chunk
    for j in range(0, tl.max(b_n_chunks, 0)):
        b_g += tl.load(
            p_grad_z + (b_chunk + j).to(tl.int64)[:, None] * STRIDE + column + b_c[None, :],
            mask=(j < b_n_chunks)[:, None] & m_z,
            other=0.0,
        )
    if SUM_VIEWS:
        b_z = tl.where(m_z, rows_by_centers(b_w, b_centers, USE_DOT), 0.0)
    b_a = b_share * tl.load(p_loss + PROXIMITY) / n_views
    b_h = b_g - 2.0 * b_a[:, None] * b_z

    b_q = rows_by_transposed_centers(b_h, b_centers, USE_DOT)
    b_q += b_a[:, None] * tl.sum(b_centers * b_centers, 1)[None, :]
    b_entropy = b_share * tl.load(p_loss + ENTROPY) * entropy_scale(n_clusters, n_views, ACC)
    # the entropy's gradient at a logit is -scale w (ln w + H): as if the one at w were -scale ln w
    b_q -= b_entropy[:, None] * b_log_w
    # relative to the heaviest cluster, so that nothing cancels where one weight is almost 1
    m_heaviest = b_w == tl.max(b_w, 1)[:, None]
    b_q -= tl.max(tl.where(m_heaviest, b_q, -float("inf")), 1)[:, None]
    b_grad = b_w * (b_q - tl.sum(b_w * b_q, 1)[:, None])
    return b_logits, b_w, b_grad, b_h, 2.0 * b_a


@triton.jit
def _bias_gradient(p_bias, p_grad_bias, p_chunk_offsets, p_loss, b_rank, b_row, m_load, m_active, b_share, ACC):
    """Biases [ROWS] and their gradients."""
    b_bias = tl.load(p_bias + b_row, mask=m_load, other=0.0).to(ACC)
    b_grad = 2.0 * tl.load(p_loss + BIAS_L2) * b_share * tl.where(m_active, b_bias, 0.0)
    b_chunk = tl.load(p_chunk_offsets + b_rank, mask=m_active, other=0)
    b_n_chunks = tl.load(p_chunk_offsets + b_rank + 1, mask=m_active, other=0) - b_chunk
    for j in range(0, tl.max(b_n_chunks, 0)):
        b_grad += tl.load(p_grad_bias + b_chunk + j, mask=j < b_n_chunks, other=0.0)
    return b_bias, b_grad


@triton.jit(do_not_specialize=["n_rows", "n_columns", "n_views"])
def _row_squares_kernel(
    p_logits,
    p_centers,
    p_l2_scale,
    p_rows,
    p_offsets,
    p_chunk_offsets,
    p_views,
    p_z,
    p_grad_z,
    p_loss,
    p_row_sum,  # [n] in and out
    n_rows,
    n_columns,
    n_views,
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    SUM_VIEWS: tl.constexpr,
    ROWS: tl.constexpr,
    KP: tl.constexpr,
    DP: tl.constexpr,
    USE_DOT: tl.constexpr,
    ACC: tl.constexpr,
):
    """row_sum += mean over the columns of the squared gradient: what row-wise AdaGrad divides a row by.

    Grid: a program takes ROWS ranks and all their views. By itself, because a row's step needs all views first, and the
    order of launches is the only one between the threads of all programs.
    """
    b_rank, b_row, _m_exists, m_active, b_share = rows_of_tile(p_rows, p_offsets, tl.program_id(0), n_rows, ROWS, ACC)
    b_squares = tl.zeros((ROWS,), dtype=ACC)
    for v in range(0, n_views):
        _, _, b_grad, _, _ = _gradient_of_view(
            p_logits, p_centers, p_l2_scale, p_chunk_offsets, p_views, p_z, p_grad_z, p_loss,
            b_rank, b_row, m_active, m_active, b_share, n_columns, n_views, v,
            D, STRIDE, SUM_VIEWS, ROWS, KP, DP, USE_DOT, ACC,
        )  # fmt: skip
        b_squares += tl.sum(b_grad * b_grad, 1)
    b_sum = tl.load(p_row_sum + b_row, mask=m_active, other=0.0)
    tl.store(p_row_sum + b_row, b_sum + b_squares / n_columns, mask=m_active)


@triton.jit(do_not_specialize=["n_rows", "n_columns", "n_views", "views_each", "n_tiles", "tiles_each"])
def _entity_backward_kernel(
    p_logits,  # [n, n_columns]; in place with an optimizer
    p_centers,  # [n_columns, D]
    p_bias,  # [n] or None; in place with an optimizer
    p_l2_scale,  # [n] or None
    p_rows,  # [n_rows] or None: rank r is row r
    p_offsets,  # [n_rows + 1]
    p_chunk_offsets,  # [n_rows + 1]
    p_views,  # [n_views + 1]
    p_z,  # [n_rows, STRIDE]
    p_grad_z,  # [chunks, STRIDE]
    p_grad_bias,  # [chunks] or None
    p_loss,  # loss constants
    p_step,  # constants of the step, or None
    p_seed,  # [1], or None: of the rounding of 16-bit tables
    p_to_logits,  # [n, n_columns]: gradient (NONE), first moment (ADAM)
    p_to_logits_v,  # [n, n_columns]: second moment (ADAM)
    p_to_bias,  # [n]: the same, or row_sum (ADAGRAD), or None
    p_to_bias_v,  # [n] (ADAM)
    p_row_sum,  # [n] of the logits, after _row_squares_kernel (ADAGRAD)
    p_center_sums,  # [programs, n_columns, D] out
    n_rows,
    n_columns,
    n_views,
    views_each,
    n_tiles,
    tiles_each,
    OPTIMIZER: tl.constexpr,
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    SUM_VIEWS: tl.constexpr,
    ROWS: tl.constexpr,
    KP: tl.constexpr,
    DP: tl.constexpr,
    USE_DOT: tl.constexpr,
    ACC: tl.constexpr,
):
    """Gradients at logits and biases, written (NONE) or applied, and each program's part of the centers' gradient.

    Grid: a program takes tiles_each tiles of ROWS ranks, for views_each views one after the other, so that its part of
    a view's center gradients stays in registers. With a list of rows only these are written. Without one, NONE writes
    and ADAM moves every row of the table, as torch's do, also those without ratings, whose gradient is 0; ADAGRAD
    leaves these alone, which is the same for it.
    """
    i_program, i_group = tl.program_id(0), tl.program_id(1)
    first_tile = i_program * tiles_each
    last_tile = tl.minimum(first_tile + tiles_each, n_tiles)
    first_view = i_group * views_each
    b_k = tl.arange(0, KP)
    b_c = tl.arange(0, DP)
    for v in range(first_view, tl.minimum(first_view + views_each, n_views)):
        first = tl.load(p_views + v)
        n_clusters = tl.load(p_views + v + 1) - first
        b_center_sum = tl.zeros((KP, DP), dtype=ACC)
        b_pull = tl.zeros((KP,), dtype=ACC)
        for i_tile in range(first_tile, last_tile):
            b_rank, b_row, m_exists, m_active, b_share = rows_of_tile(p_rows, p_offsets, i_tile, n_rows, ROWS, ACC)
            m_write = m_active
            if p_rows is None and OPTIMIZER != ADAGRAD:
                m_write = m_exists
            b_logits, b_w, b_grad, b_h, b_twice_a = _gradient_of_view(
                p_logits, p_centers, p_l2_scale, p_chunk_offsets, p_views, p_z, p_grad_z, p_loss,
                b_rank, b_row, m_write, m_active, b_share, n_columns, n_views, v,
                D, STRIDE, SUM_VIEWS, ROWS, KP, DP, USE_DOT, ACC,
            )  # fmt: skip
            b_center_sum += sum_over_rows(b_w, b_h, USE_DOT)
            b_pull += tl.sum(b_w * b_twice_a[:, None], 0)
            b_at = (b_row * n_columns)[:, None] + (first + b_k)[None, :]
            mask = m_write[:, None] & (b_k < n_clusters)[None, :]
            if OPTIMIZER == NONE:
                tl.store(p_to_logits + b_at, b_grad.to(p_to_logits.dtype.element_ty), mask=mask)
            elif OPTIMIZER == ADAM:
                b_m, b_v = adam_moments(p_to_logits + b_at, p_to_logits_v + b_at, mask, b_grad, p_step)
                b_new = b_logits - tl.load(p_step + TABLE_STEP) * adam_quotient(b_m, b_v, p_step)
                store_rounded(p_logits + b_at, b_new, mask, p_seed, b_at)
            else:
                b_root = tl.sqrt(tl.load(p_row_sum + b_row, mask=m_write, other=0.0)) + tl.load(p_step + EPSILON)
                b_new = b_logits - tl.load(p_step + TABLE_STEP) * b_grad / b_root[:, None]
                store_rounded(p_logits + b_at, b_new, mask, p_seed, b_at)
        b_centers = centers_of_view(p_centers, first, n_clusters, D, KP, DP, ACC)
        b_at = (i_program.to(tl.int64) * n_columns + first + b_k)[:, None] * D + b_c[None, :]
        mask = (b_k < n_clusters)[:, None] & (b_c < D)[None, :]
        tl.store(p_center_sums + b_at, b_center_sum + b_pull[:, None] * b_centers, mask=mask)

    if p_bias is not None:
        if i_group == 0:
            for i_tile in range(first_tile, last_tile):
                b_rank, b_row, m_exists, m_active, b_share = rows_of_tile(p_rows, p_offsets, i_tile, n_rows, ROWS, ACC)
                m_write = m_active
                if p_rows is None and OPTIMIZER != ADAGRAD:
                    m_write = m_exists
                b_bias, b_grad = _bias_gradient(
                    p_bias, p_grad_bias, p_chunk_offsets, p_loss, b_rank, b_row, m_write, m_active, b_share, ACC
                )
                if OPTIMIZER == NONE:
                    tl.store(p_to_bias + b_row, b_grad.to(p_to_bias.dtype.element_ty), mask=m_write)
                elif OPTIMIZER == ADAM:
                    b_m, b_v = adam_moments(p_to_bias + b_row, p_to_bias_v + b_row, m_write, b_grad, p_step)
                    b_new = b_bias - tl.load(p_step + BIAS_STEP) * adam_quotient(b_m, b_v, p_step)
                    store_rounded(p_bias + b_row, b_new, m_write, p_seed, b_row)
                else:
                    b_sum = tl.load(p_to_bias + b_row, mask=m_write, other=0.0) + b_grad * b_grad
                    tl.store(p_to_bias + b_row, b_sum, mask=m_write)
                    b_root = tl.sqrt(b_sum) + tl.load(p_step + EPSILON)
                    b_new = b_bias - tl.load(p_step + BIAS_STEP) * b_grad / b_root
                    store_rounded(p_bias + b_row, b_new, m_write, p_seed, b_row)


@dataclass(frozen=True)
class Update:
    """An optimizer's step, in place; `device_code.py` has the order of its constants.

    Attributes:
        optimizer: `adam` or `adagrad`.
        step: constants of this step, from `adam_steps` or `adagrad_steps`, on the device.
        seed: [1] int64 on the device; with the place of a number in its table it decides how a 16-bit table rounds.
            Give every step another.
    """

    optimizer: str
    step: Tensor
    seed: Tensor


def entity_backward(
    side: SideParameters,
    combine: Combine,
    groups: Groups,
    embedded: Embedded,
    gradients: RatingGradients,
    loss: Tensor,
    *,
    rows: Tensor | None = None,
    update: Update | None = None,
    into: Mapping[str, Mapping[str, Tensor]],
) -> Tensor:
    """Gradients of the logits and biases of one side, written or applied, and the ratings' part of the centers'.

    Args:
        side: as in `entity_forward`; its table and bias change with an `update`.
        groups, embedded, gradients: of this side, from `group`, `entity_forward` and `rating_pass`.
        loss: constants as from `loss_constants`.
        rows: as in `entity_forward`.
        update: None writes gradients.
        into: by the names of `side.tensors()`; without an update `grad`, of the parameter's shape and dtype; for Adam
            `exp_avg` and `exp_avg_sq`, for AdaGrad `row_sum`, in the accumulator dtype. Without `rows` all of `grad` is
            written, and Adam moves every row; else only the rows with ratings.

    Returns:
        [S, d] gradient of the centers without the spread term, accumulator dtype. Deterministic.
    """
    if side.centers is None:
        raise TypeError("entity_backward needs centers")
    n_views, view_dim = len(side.n_clusters), side.centers.shape[1]
    tile = launch.entity_tile(side.n_clusters, view_dim, side.table.dtype)
    n_tiles = triton.cdiv(groups.n_ranks, tile.rows)
    tiles_each = triton.cdiv(n_tiles, launch.MAX_PROGRAMS)
    n_programs = triton.cdiv(n_tiles, tiles_each)
    views_each = launch.views_of_a_program(n_views, n_programs)
    constants = entity_constants(side, tile, combine)
    optimizer = "none" if update is None else update.optimizer
    first, second = {"none": ("grad", ""), "adam": ("exp_avg", "exp_avg_sq"), "adagrad": ("row_sum", "")}[optimizer]
    row_sum = into["table"].get("row_sum")
    inputs = side.table, side.centers
    numbers = groups.n_ranks, side.table.shape[1], n_views
    views = launch.view_offsets(side.n_clusters, side.table.device)
    if row_sum is not None:
        _row_squares_kernel[(n_tiles,)](
            *inputs,
            side.l2_scale,
            rows,
            groups.offsets,
            groups.chunk_offsets,
            views,
            embedded.z,
            gradients.z,
            loss,
            row_sum,
            *numbers,
            **constants,
            **launch.backward_options(tile),
        )
    center_sums = embedded.z.new_empty(n_programs, *side.centers.shape)
    of_bias: Mapping[str, Any] = into.get("bias", {})
    _entity_backward_kernel[(n_programs, triton.cdiv(n_views, views_each))](
        *inputs,
        side.bias,
        side.l2_scale,
        rows,
        groups.offsets,
        groups.chunk_offsets,
        views,
        embedded.z,
        gradients.z,
        gradients.bias,
        loss,
        None if update is None else update.step,
        None if update is None else update.seed,
        None if optimizer == "adagrad" else into["table"][first],
        into["table"].get(second),
        of_bias.get(first),
        of_bias.get(second),
        row_sum,
        center_sums,
        *numbers,
        views_each,
        n_tiles,
        tiles_each,
        OPTIMIZER={"none": NONE, "adam": ADAM, "adagrad": ADAGRAD}[optimizer].value,
        **constants,
        **launch.backward_options(tile),
    )
    # torch adds up in a fixed order
    return center_sums.sum(0)
