"""Entity pass, forward: assignment weights, embeddings and the entity terms of the loss, once per distinct entity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from mfdmc_fast.ops.native import SideParameters
from mfdmc_fast.ops.triton_kernels import launch
from mfdmc_fast.ops.triton_kernels.device_code import (
    centers_of_view,
    entropy_scale,
    rows_by_centers,
    rows_of_tile,
    softmax_of_view,
)
from mfdmc_fast.ops.triton_kernels.grouping import Groups
from mfdmc_fast.ops.types import Combine


@triton.jit(do_not_specialize=["n_rows", "n_columns", "n_views", "views_each"])
def _entity_forward_kernel(
    p_logits,  # [n, n_columns]
    p_centers,  # [n_columns, D]
    p_bias,  # [n] or None
    p_l2_scale,  # [n] or None
    p_rows,  # [n_rows] or None: rank r is row r
    p_offsets,  # [n_rows + 1], or None: embeddings of all ranks and no terms
    p_views,  # [n_views + 1]
    p_z,  # [n_rows, STRIDE] out
    p_z_bias,  # [n_rows] out, or None
    p_sums,  # [programs, 4] out, or None: proximity, entropy, l2, bias_l2
    n_rows,
    n_columns,
    n_views,
    views_each,
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    SUM_VIEWS: tl.constexpr,
    ROWS: tl.constexpr,
    KP: tl.constexpr,
    DP: tl.constexpr,
    USE_DOT: tl.constexpr,
    ACC: tl.constexpr,
):
    """z_v = sum_k w_k c_k (Eq. 2 of the paper), and the rows' parts of the entity terms times their shares.

    Grid: a program takes ROWS ranks and views_each views. Nothing is kept for the backward pass but z, as computing the
    softmax again costs less than writing and reading weights. Ranks without ratings are neither read nor written.
    """
    i_tile, i_group = tl.program_id(0), tl.program_id(1)
    b_rank, b_row, _m_exists, m_active, b_share = rows_of_tile(p_rows, p_offsets, i_tile, n_rows, ROWS, ACC)
    b_start = b_row * n_columns
    b_c = tl.arange(0, DP)
    p_to = p_z + b_rank.to(tl.int64)[:, None] * STRIDE + b_c[None, :]
    m_z = m_active[:, None] & (b_c < D)[None, :]
    b_proximity = tl.zeros((ROWS,), dtype=ACC)
    b_entropy = tl.zeros((ROWS,), dtype=ACC)
    b_square = tl.zeros((ROWS,), dtype=ACC)
    b_combined = tl.zeros((ROWS, DP), dtype=ACC)
    first_view = i_group * views_each
    for v in range(first_view, tl.minimum(first_view + views_each, n_views)):
        first = tl.load(p_views + v)
        n_clusters = tl.load(p_views + v + 1) - first
        _, b_w, b_log_w = softmax_of_view(p_logits, b_start, m_active, first, n_clusters, KP, ACC)
        b_centers = centers_of_view(p_centers, first, n_clusters, D, KP, DP, ACC)
        b_z = rows_by_centers(b_w, b_centers, USE_DOT)
        b_length = tl.sum(b_z * b_z, 1)
        b_norms = tl.sum(b_centers * b_centers, 1)
        b_proximity += tl.sum(b_w * b_norms[None, :], 1) - b_length
        b_entropy -= tl.sum(b_w * b_log_w, 1) * entropy_scale(n_clusters, n_views, ACC)
        if SUM_VIEWS:
            b_combined += b_z
        else:
            tl.store(p_to + v * D, b_z, mask=m_z)
            b_square += b_length
    if SUM_VIEWS:
        tl.store(p_to, b_combined, mask=m_z)
        b_square = tl.sum(b_combined * b_combined, 1)

    b_bias = tl.zeros((ROWS,), dtype=ACC)
    if p_z_bias is not None:
        if i_group == 0:
            b_bias = tl.load(p_bias + b_row, mask=m_active, other=0.0).to(ACC)
            tl.store(p_z_bias + b_rank, b_bias, mask=m_active)
    if p_sums is not None:
        if p_l2_scale is not None:
            b_square *= tl.load(p_l2_scale + b_row, mask=m_active, other=0.0).to(ACC)
        p_own = p_sums + (i_tile * tl.num_programs(1) + i_group) * 4
        # shares are 0 where there is no rank
        tl.store(p_own, tl.sum(b_share * b_proximity, 0) / n_views)
        tl.store(p_own + 1, tl.sum(b_share * b_entropy, 0))
        tl.store(p_own + 2, tl.sum(b_share * b_square, 0))
        tl.store(p_own + 3, tl.sum(b_share * b_bias * b_bias, 0))


@dataclass(frozen=True)
class Embedded:
    """What the forward pass makes of R ranks, in the accumulator dtype; unwritten where a rank has no ratings.

    Attributes:
        z: [R, padded(D)], views combined; only the first D columns are written.
        bias: [R] or None.
        sums: [programs, 4] parts of proximity, entropy, l2, bias_l2, or None without groups.
        dim: D.
    """

    z: Tensor
    bias: Tensor | None
    sums: Tensor | None
    dim: int


def entity_forward(
    side: SideParameters, combine: Combine, *, rows: Tensor | None = None, groups: Groups | None = None
) -> Embedded:
    """Embeddings of a side, and its entity terms where groups are given.

    Args:
        side: contiguous; table [n, S] float32, float64, bfloat16 or float16.
        combine: `concat` or `sum`.
        rows: [R] int64 rows of the table, or None for all.
        groups: the batch's ratings by rank; None: embed every rank, without terms.

    Returns:
        New tensors. Deterministic.
    """
    if side.centers is None:
        raise TypeError("entity_forward needs centers")
    n_views, view_dim = len(side.n_clusters), side.centers.shape[1]
    n_rows = len(side.table) if rows is None else len(rows)
    acc = launch.accumulator(side.table.dtype)
    tile = launch.entity_tile(side.n_clusters, view_dim, side.table.dtype)
    n_tiles = triton.cdiv(n_rows, tile.rows)
    views_each = n_views if combine == "sum" else launch.views_of_a_program(n_views, n_tiles)
    grid = n_tiles, triton.cdiv(n_views, views_each)
    dim = view_dim * (n_views if combine == "concat" else 1)

    def new(*shape: int) -> Tensor:
        return side.table.new_empty(shape, dtype=acc)

    z = new(n_rows, launch.padded(dim))
    bias = None if side.bias is None else new(n_rows)
    sums = None if groups is None else new(grid[0] * grid[1], 4)
    if n_rows:
        _entity_forward_kernel[grid](
            side.table,
            side.centers,
            side.bias,
            side.l2_scale,
            rows,
            None if groups is None else groups.offsets,
            launch.view_offsets(side.n_clusters, side.table.device),
            z,
            bias,
            sums,
            n_rows,
            side.table.shape[1],
            n_views,
            views_each,
            **entity_constants(side, tile, combine),
            **launch.options(tile.warps),
        )
    return Embedded(z, bias, sums, dim)


def entity_constants(side: SideParameters, tile: launch.EntityTile, combine: Combine) -> dict[str, Any]:
    """The constants that all entity kernels are compiled with."""
    assert side.centers is not None
    view_dim = side.centers.shape[1]
    return {
        "D": view_dim,
        "STRIDE": launch.padded(view_dim * (len(side.n_clusters) if combine == "concat" else 1)),
        "SUM_VIEWS": combine == "sum",
        "ROWS": tile.rows,
        "KP": tile.clusters,
        "DP": tile.dim,
        "USE_DOT": tile.use_dot,
        "ACC": launch.language_dtype(launch.accumulator(side.table.dtype)),
    }
