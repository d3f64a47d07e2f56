"""The best items of each user: scores and items packed into sortable keys by a kernel, the best keys by torch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfdmc_fast.ops.triton_kernels import launch

# keys that exist at a time, 8 bytes each
_KEYS_AT_ONCE = 1 << 26


@triton.jit
def _key(b_score, b_item):
    """int64 keys that order as (score descending, item ascending) does when they are taken from the largest down.

    The bits of a float, as an integer, order as the floats do for positive ones; of negative ones all but the sign are
    turned round. 0.0 is added so that -0.0 is 0.0.
    """
    b_bits = (b_score + 0.0).to(tl.int32, bitcast=True)
    b_order = tl.where(b_bits < 0, b_bits ^ 0x7FFFFFFF, b_bits)
    return (b_order.to(tl.int64) << 32) | (0x7FFFFFFF - b_item).to(tl.int64)


@triton.jit(do_not_specialize=["n_users", "n_items"])
def _score_keys_kernel(
    p_users,  # [n_users, D]
    p_items,  # [n_items, D]
    p_item_bias,  # [n_items] or None
    p_keys,  # [n_users, n_items] out
    n_users,
    n_items,
    D: tl.constexpr,
    USERS: tl.constexpr,
    ITEMS: tl.constexpr,
    STEP: tl.constexpr,
):
    """key(z_u . z_i + b_i, i). Grid: a program takes a tile of USERS by ITEMS, STEP columns of D at a time."""
    b_user = tl.program_id(1) * USERS + tl.arange(0, USERS)
    b_item = tl.program_id(0) * ITEMS + tl.arange(0, ITEMS)
    m_user, m_item = b_user < n_users, b_item < n_items
    b_score = tl.zeros((USERS, ITEMS), dtype=tl.float32)
    for start in range(0, D, STEP):
        b_c = start + tl.arange(0, STEP)
        m_c = b_c < D
        b_one = tl.load(
            p_users + b_user.to(tl.int64)[:, None] * D + b_c[None, :], mask=m_user[:, None] & m_c[None, :], other=0.0
        )
        b_other = tl.load(
            p_items + b_item.to(tl.int64)[None, :] * D + b_c[:, None], mask=m_c[:, None] & m_item[None, :], other=0.0
        )
        # ieee: products of float32 as they are, not of their first 10 bits
        b_score = tl.dot(b_one, b_other, b_score, input_precision="ieee")
    if p_item_bias is not None:
        b_score += tl.load(p_item_bias + b_item, mask=m_item, other=0.0)[None, :]
    p_to = p_keys + b_user.to(tl.int64)[:, None] * n_items + b_item[None, :]
    tl.store(p_to, _key(b_score, b_item[None, :]), mask=m_user[:, None] & m_item[None, :])


@triton.jit(do_not_specialize=["n_items", "n_excluded"])
def _exclude_kernel(
    p_keys,  # [users, n_items] in and out
    p_rows,  # [n_excluded]
    p_excluded,  # [n_excluded] items
    n_items,
    n_excluded,
    AT_ONCE: tl.constexpr,
):
    """Gives excluded items the score -inf. Grid: a program takes AT_ONCE of them; one named twice gets the same key."""
    b_place = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    mask = b_place < n_excluded
    b_row = tl.load(p_rows + b_place, mask=mask, other=0)
    b_item = tl.load(p_excluded + b_place, mask=mask, other=0)
    b_score = tl.full((AT_ONCE,), -float("inf"), dtype=tl.float32)
    tl.store(p_keys + b_row * n_items + b_item, _key(b_score, b_item), mask=mask)


def top_items(
    user_embeddings: Tensor,
    item_embeddings: Tensor,
    item_bias: Tensor | None,
    n: int,
    *,
    exclude_offsets: Tensor | None = None,
    exclude_items: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The n best items of each user, float32; see `mfdmc_fast.ops.functional.top_items` for the contract.

    Keys are distinct, so that the order is the same on every device and run.
    """
    n_users, n_items = len(user_embeddings), len(item_embeddings)
    width = min(n, n_items)
    found = torch.empty(n_users, width, dtype=torch.int64, device=user_embeddings.device)
    scores = user_embeddings.new_empty(n_users, width)
    if not width:
        return found, scores
    users, items = user_embeddings.detach().contiguous(), item_embeddings.detach().contiguous()
    bias = None if item_bias is None else item_bias.detach().contiguous()
    at_once = max(1, _KEYS_AT_ONCE // n_items)
    tile = launch.score_tile()
    for start in range(0, n_users, at_once):
        block = users[start : start + at_once]
        keys = torch.empty(len(block), n_items, dtype=torch.int64, device=users.device)
        _score_keys_kernel[(triton.cdiv(n_items, tile.columns), triton.cdiv(len(block), tile.rows))](
            block,
            items,
            bias,
            keys,
            len(block),
            n_items,
            D=users.shape[1],
            USERS=tile.rows,
            ITEMS=tile.columns,
            STEP=16,
            **launch.options(tile.warps),
        )
        if exclude_offsets is not None and exclude_items is not None:
            offsets = exclude_offsets[start : start + len(block) + 1]
            excluded = exclude_items[offsets[0] : offsets[-1]].contiguous()
            rows = torch.arange(len(block), device=users.device).repeat_interleave(
                offsets.diff(), output_size=len(excluded)
            )
            if len(excluded):
                _exclude_kernel[(triton.cdiv(len(excluded), launch.LIST_TILE),)](
                    keys, rows, excluded, n_items, len(excluded), AT_ONCE=launch.LIST_TILE, **launch.options(4)
                )
        best = keys.topk(width, dim=1).values
        order = (best >> 32).to(torch.int32)
        bits = torch.where(order < 0, order ^ 0x7FFFFFFF, order)
        block_scores = bits.view(torch.float32)
        scores[start : start + len(block)] = block_scores
        best_items = 0x7FFFFFFF - (best & 0x7FFFFFFF)
        found[start : start + len(block)] = torch.where(block_scores == -torch.inf, -1, best_items)
    return found, scores
