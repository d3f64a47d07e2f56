"""Mean assignment weight of each cluster: what pruning goes by."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfdmc_fast.ops.native import SideParameters
from mfdmc_fast.ops.triton_kernels import launch
from mfdmc_fast.ops.triton_kernels.device_code import softmax_of_view
from mfdmc_fast.ops.types import SideTensors


@triton.jit(do_not_specialize=["n_rows", "n_columns", "n_views", "n_tiles", "tiles_each"])
def _cluster_usage_kernel(
    p_logits,  # [n_rows, n_columns]
    p_among,  # [n_rows]
    p_views,  # [n_views + 1]
    p_sums,  # [programs, n_columns] out, float64
    n_rows,
    n_columns,
    n_views,
    n_tiles,
    tiles_each,
    ROWS: tl.constexpr,
    KP: tl.constexpr,
    ACC: tl.constexpr,
):
    """Sums of assignment weights. Grid: a program takes tiles_each tiles of ROWS rows, view by view."""
    i_program = tl.program_id(0)
    first_tile = i_program * tiles_each
    b_k = tl.arange(0, KP)
    for v in range(0, n_views):
        first = tl.load(p_views + v)
        n_clusters = tl.load(p_views + v + 1) - first
        b_sum = tl.zeros((KP,), dtype=tl.float64)
        for i_tile in range(first_tile, tl.minimum(first_tile + tiles_each, n_tiles)):
            b_row = i_tile * ROWS + tl.arange(0, ROWS)
            m_row = b_row < n_rows
            m_row = m_row & (tl.load(p_among + b_row, mask=m_row, other=0) != 0)
            b_start = b_row.to(tl.int64) * n_columns
            _, b_w, _ = softmax_of_view(p_logits, b_start, m_row, first, n_clusters, KP, ACC)
            b_sum += tl.sum(tl.where(m_row[:, None], b_w, 0.0), 0).to(tl.float64)
        tl.store(p_sums + i_program.to(tl.int64) * n_columns + first + b_k, b_sum, mask=b_k < n_clusters)


def cluster_usage(side: SideTensors, among: Tensor) -> Tensor:
    """Mean assignment weights [S] float64; see `mfdmc_fast.ops.functional.cluster_usage` for the contract."""
    parameters = SideParameters.of(side)
    table = parameters.table
    tile = launch.usage_tile(side.n_clusters)
    n_tiles = triton.cdiv(len(table), tile.rows)
    tiles_each = max(1, triton.cdiv(n_tiles, launch.MAX_PROGRAMS))
    n_programs = triton.cdiv(n_tiles, tiles_each)
    sums = among.new_zeros(n_programs, table.shape[1], dtype=torch.float64)
    if n_programs:
        _cluster_usage_kernel[(n_programs,)](
            table,
            among.contiguous(),
            launch.view_offsets(side.n_clusters, table.device),
            sums,
            *table.shape,
            len(side.n_clusters),
            n_tiles,
            tiles_each,
            ROWS=tile.rows,
            KP=tile.columns,
            ACC=launch.language_dtype(launch.accumulator(table.dtype)),
            **launch.options(tile.warps),
        )
    return sums.sum(0) / among.sum()
