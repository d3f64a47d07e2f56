"""Predictions of index pairs, without gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfdmc_fast.ops.native import SideParameters
from mfdmc_fast.ops.triton_kernels import launch
from mfdmc_fast.ops.triton_kernels.entity_forward import Embedded, entity_forward
from mfdmc_fast.ops.types import Combine, SideTensors


@triton.jit(do_not_specialize=["n_pairs"])
def _score_pairs_kernel(
    p_user_z,  # [users, STRIDE]
    p_item_z,  # [items, STRIDE]
    p_user_bias,  # [users] or None
    p_item_bias,  # [items] or None
    p_user_ranks,  # [n_pairs]
    p_item_ranks,  # [n_pairs]
    p_mean,  # [1]
    p_to,  # [n_pairs] out
    n_pairs,
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    PAIRS: tl.constexpr,
    DP: tl.constexpr,
):
    """z_u . z_i + global mean + biases. Grid: a program takes PAIRS pairs."""
    b_pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    m_pair = b_pair < n_pairs
    b_user = tl.load(p_user_ranks + b_pair, mask=m_pair, other=0).to(tl.int64)
    b_item = tl.load(p_item_ranks + b_pair, mask=m_pair, other=0).to(tl.int64)
    b_c = tl.arange(0, DP)
    mask = m_pair[:, None] & (b_c < D)[None, :]
    b_user_z = tl.load(p_user_z + b_user[:, None] * STRIDE + b_c[None, :], mask=mask, other=0.0)
    b_item_z = tl.load(p_item_z + b_item[:, None] * STRIDE + b_c[None, :], mask=mask, other=0.0)
    b_score = tl.sum(b_user_z * b_item_z, 1) + tl.load(p_mean)
    if p_user_bias is not None:
        b_score += tl.load(p_user_bias + b_user, mask=m_pair, other=0.0)
        b_score += tl.load(p_item_bias + b_item, mask=m_pair, other=0.0)
    tl.store(p_to + b_pair, b_score.to(p_to.dtype.element_ty), mask=m_pair)


def score_pairs(
    user: SideTensors, item: SideTensors, global_mean: float, user_idx: Tensor, item_idx: Tensor, *, combine: Combine
) -> Tensor:
    """Predictions [B]; see `mfdmc_fast.ops.functional.score_pairs` for the contract.

    A side with no more rows than there are pairs is embedded whole, a larger one by its distinct rows. Every output
    depends on its own inputs alone.
    """
    table = user.assignment_logits
    scores = table.new_empty(len(user_idx))
    if not len(user_idx):
        return scores
    embedded, ranks = [], []
    for side, idx in ((user, user_idx), (item, item_idx)):
        rows = None
        if len(side.assignment_logits) > len(idx):
            rows, idx = torch.unique(idx, return_inverse=True)
        embedded.append(entity_forward(SideParameters.of(side), combine, rows=rows))
        ranks.append(idx)
    mean = torch.full((1,), global_mean, dtype=embedded[0].z.dtype, device=table.device)
    score_embedded(embedded[0], embedded[1], ranks[0], ranks[1], mean, scores)
    return scores


def score_embedded(
    users: Embedded, items: Embedded, user_ranks: Tensor, item_ranks: Tensor, mean: Tensor, scores: Tensor
) -> None:
    """Predictions of pairs of ranks, for callers that have embedded both sides.

    Args:
        users, items: from `entity_forward` without groups.
        user_ranks, item_ranks: [B] int32 or int64, B >= 1; not checked.
        mean: [1], added to every prediction, accumulator dtype.
        scores: [B] floating, overwritten.
    """
    tile = launch.pair_tile(users.dim)
    _score_pairs_kernel[(triton.cdiv(len(scores), tile.rows),)](
        users.z,
        items.z,
        users.bias,
        items.bias,
        user_ranks,
        item_ranks,
        mean,
        scores,
        len(scores),
        D=users.dim,
        STRIDE=users.z.shape[1],
        PAIRS=tile.rows,
        DP=tile.columns,
        **launch.options(tile.warps),
    )
