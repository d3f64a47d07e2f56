"""Ratings that stay on the device, dealt into the batches of an epoch in the order of users and in that of items.

The batches are those of `mfdmc_fast.data.batches.deal`: of every run of n_batches consecutive ratings in (user, item)
order each batch gets one, by a permutation that a hash of (seed, epoch, position) decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mfdmc_fast.ops.triton_kernels import launch

# more batches are dealt by torch: a run's permutation is kept in registers, and its cost per rating grows with the run
MAX_BATCHES_OF_KERNEL = 64
# rows of batches begin at multiples of this many numbers, so that every batch is read with the same alignment
_ALIGNMENT = 32
_NO_BATCH = 255
# of SplitMix64, as 64 signed bits for torch
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
_SHIFTS = (30, 27, 31)


@triton.jit
def _mix(x):
    """The finalizer of SplitMix64 on uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit(do_not_specialize=["n_ratings", "n_runs", "n_batches", "stride", "n_users"])
def _deal_kernel(
    p_users,  # [n_ratings]
    p_items,  # [n_ratings]
    p_ratings,  # [n_ratings]
    p_stream,  # [1] int64: where the epoch's random numbers begin
    p_to_users,  # [n_batches, stride] out
    p_to_items,
    p_to_ratings,
    p_batch_of,  # [n_ratings] uint8 out: the batch of every rating
    n_ratings,
    n_runs,
    n_batches,
    stride,
    n_users,
    RUNS: tl.constexpr,
    NP: tl.constexpr,
):
    """Deals runs, keeping the order of users in every batch.

    Grid: a program takes RUNS runs; permutations [RUNS, NP] by Fisher and Yates stay in registers. The place of a
    rating that the last run does not have gets user n_users.
    """
    b_run = tl.program_id(0) * RUNS + tl.arange(0, RUNS)
    b_slot = tl.arange(0, NP)
    stream = tl.load(p_stream).to(tl.uint64)
    b_first = b_run.to(tl.int64) * n_batches
    b_permutation = tl.zeros((RUNS, NP), dtype=tl.int32)
    for k in range(0, n_batches):
        b_counter = (b_first + (k + 1)).to(tl.uint64)
        b_high = _mix(stream + b_counter * 0x9E3779B97F4A7C15) >> 32
        b_j = ((b_high * (k + 1)) >> 32).to(tl.int32)[:, None]  # uniform in 0 .. k
        b_there = tl.sum(tl.where(b_slot[None, :] == b_j, b_permutation, 0), 1)
        b_permutation = tl.where(b_slot[None, :] == k, b_there[:, None], b_permutation)
        b_permutation = tl.where(b_slot[None, :] == b_j, k, b_permutation)
    b_from = b_first[:, None] + b_permutation
    m_place = (b_run < n_runs)[:, None] & (b_slot < n_batches)[None, :]
    m_rating = m_place & (b_from < n_ratings)
    b_to = b_slot.to(tl.int64)[None, :] * stride + b_run[:, None]
    tl.store(p_to_users + b_to, tl.load(p_users + b_from, mask=m_rating, other=n_users), mask=m_place)
    tl.store(p_to_items + b_to, tl.load(p_items + b_from, mask=m_rating, other=0), mask=m_place)
    tl.store(p_to_ratings + b_to, tl.load(p_ratings + b_from, mask=m_rating, other=0.0), mask=m_place)
    b_batch = tl.zeros((RUNS, NP), dtype=tl.int32) + b_slot[None, :]
    tl.store(p_batch_of + b_from, b_batch.to(tl.uint8), mask=m_rating)


@triton.jit(do_not_specialize=["n_ratings", "n_batches", "n_tiles"])
def _count_kernel(
    p_order,  # [n_ratings]: place in (user, item) order of each rating in item order
    p_batch_of,  # [n_ratings] uint8, in (user, item) order
    p_batch,  # [n_ratings] uint8 out, in item order
    p_counts,  # [n_batches, n_tiles] out: ratings of each batch in each tile
    n_ratings,
    n_batches,
    n_tiles,
    TILE: tl.constexpr,
    NP: tl.constexpr,
    NONE: tl.constexpr,
):
    """First half of a stable partition by batch. Grid: a program takes TILE ratings in item order."""
    i_tile = tl.program_id(0)
    b_at = i_tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    m_at = b_at < n_ratings
    b_place = tl.load(p_order + b_at, mask=m_at, other=0).to(tl.int64)
    b_batch = tl.load(p_batch_of + b_place, mask=m_at, other=NONE)
    tl.store(p_batch + b_at, b_batch, mask=m_at)
    b_slot = tl.arange(0, NP)
    b_count = tl.sum((b_batch.to(tl.int32)[:, None] == b_slot[None, :]).to(tl.int32), 0)
    tl.store(p_counts + b_slot.to(tl.int64) * n_tiles + i_tile, b_count, mask=b_slot < n_batches)


@triton.jit(do_not_specialize=["n_ratings", "n_batches", "n_tiles", "stride"])
def _place_kernel(
    p_users,  # [n_ratings], in item order, as the next two
    p_items,
    p_ratings,
    p_batch,  # [n_ratings] uint8
    p_firsts,  # [n_batches, n_tiles]: where in its batch each tile begins
    p_to_users,  # [n_batches, stride] out
    p_to_items,
    p_to_ratings,
    n_ratings,
    n_batches,
    n_tiles,
    stride,
    TILE: tl.constexpr,
    NP: tl.constexpr,
    NONE: tl.constexpr,
):
    """Second half: every rating goes behind those of its batch before it. Grid: as `_count_kernel`."""
    i_tile = tl.program_id(0)
    b_at = i_tile.to(tl.int64) * TILE + tl.arange(0, TILE)
    m_at = b_at < n_ratings
    b_batch = tl.load(p_batch + b_at, mask=m_at, other=NONE).to(tl.int32)
    b_slot = tl.arange(0, NP)
    m_hit = b_batch[:, None] == b_slot[None, :]
    b_hit = m_hit.to(tl.int32)
    b_first = tl.load(p_firsts + b_slot.to(tl.int64) * n_tiles + i_tile, mask=b_slot < n_batches, other=0)
    b_place = tl.sum(tl.where(m_hit, tl.cumsum(b_hit, 0) - b_hit + b_first[None, :], 0), 1)
    b_to = b_batch.to(tl.int64) * stride + b_place
    tl.store(p_to_users + b_to, tl.load(p_users + b_at, mask=m_at, other=0), mask=m_at)
    tl.store(p_to_items + b_to, tl.load(p_items + b_at, mask=m_at, other=0), mask=m_at)
    tl.store(p_to_ratings + b_to, tl.load(p_ratings + b_at, mask=m_at, other=0.0), mask=m_at)


@dataclass(frozen=True)
class Columns:
    """Ratings in some order, [N], or dealt, [n_batches, B].

    Attributes:
        users: int32.
        items: int32.
        ratings: float32.
    """

    users: Tensor
    items: Tensor
    ratings: Tensor

    def take(self, order: Tensor) -> Columns:
        """Those at the given places, [M] integers."""
        return Columns(self.users[order], self.items[order], self.ratings[order])

    def put(self, places: Tensor, columns: Columns) -> None:
        """Overwrite the numbers at places, counted over all batches."""
        self.users.view(-1)[places] = columns.users
        self.items.view(-1)[places] = columns.items
        self.ratings.view(-1)[places] = columns.ratings


class Dealer:
    """The ratings in both orders, and the batches of the epoch that was dealt last, in memory that never moves.

    Attributes:
        by_user, by_item: [n_batches, B]; a row is a batch in the order of users, of items. A batch with B - 1 ratings
            ends with user n_users and item n_items. B is the larger of the two sizes.

    Args:
        ratings: [N] in (user, item) order, on the device.
        n_users, n_items: rows of the two sides.
        n_batches: of an epoch, 1 or more.
    """

    # resident in both orders with the order itself, dealt in both orders, and the batch of each rating twice
    BYTES_PER_RATING = 12 + 12 + 4 + 12 + 12 + 1 + 1

    def __init__(self, ratings: Columns, n_users: int, n_items: int, n_batches: int) -> None:
        n_ratings = len(ratings.ratings)
        self._ratings, self._n_batches = ratings, n_batches
        self._n_users, self._n_items = n_users, n_items
        order = ratings.items.sort(stable=True).indices
        self._item_order = ratings.take(order)
        self._order = order if n_ratings >= 1 << 31 else order.to(torch.int32)
        self.batch_size = triton.cdiv(n_ratings, n_batches)
        self._stride = triton.cdiv(self.batch_size, _ALIGNMENT) * _ALIGNMENT
        self._dealt_users, self._dealt_items = self._new_batches(), self._new_batches()
        self.by_user, self.by_item = self._rows(self._dealt_users), self._rows(self._dealt_items)

    def deal(self, stream: Tensor) -> None:
        """Deal an epoch; never waits for the device. Deterministic.

        Args:
            stream: [1] int64 on the device, the bits of `data.batches.deal_stream` of the epoch.
        """
        # where a batch has one rating less; overwritten where it has not
        for column, nothing in (
            (self.by_item.users, 0),
            (self.by_item.items, self._n_items),
            (self.by_item.ratings, 0),
        ):
            column[:, -1] = nothing
        if self._n_batches <= MAX_BATCHES_OF_KERNEL:
            self._deal_by_kernels(stream)
        else:
            self._deal_by_torch(stream)

    def sizes(self) -> Tensor:
        """[n_batches] int64 ratings of the batches, on the device."""
        short = self.by_user.users[:, -1] == self._n_users
        return torch.where(short, self.batch_size - 1, self.batch_size)

    def _new_batches(self) -> Columns:
        whole, shape = self._ratings, (self._n_batches, self._stride)
        return Columns(*(c.new_empty(shape) for c in (whole.users, whole.items, whole.ratings)))

    def _rows(self, batches: Columns) -> Columns:
        return Columns(*(c[:, : self.batch_size] for c in (batches.users, batches.items, batches.ratings)))

    def _deal_by_kernels(self, stream: Tensor) -> None:
        whole, n_ratings, n_batches = self._ratings, len(self._ratings.ratings), self._n_batches
        tile = launch.deal_tile(n_batches)
        batch_of, batch = (torch.empty(n_ratings, dtype=torch.uint8, device=stream.device) for _ in range(2))
        to = self._dealt_users
        _deal_kernel[(triton.cdiv(self.batch_size, tile.rows),)](
            whole.users,
            whole.items,
            whole.ratings,
            stream,
            to.users,
            to.items,
            to.ratings,
            batch_of,
            n_ratings,
            self.batch_size,
            n_batches,
            self._stride,
            self._n_users,
            RUNS=tile.rows,
            NP=tile.columns,
            **launch.options(tile.warps),
        )
        tile = launch.partition_tile(n_batches)
        n_tiles = triton.cdiv(n_ratings, tile.rows)
        counts = torch.empty(n_batches, n_tiles, dtype=torch.int32, device=stream.device)
        constants = {"TILE": tile.rows, "NP": tile.columns, "NONE": _NO_BATCH, **launch.options(tile.warps)}
        _count_kernel[(n_tiles,)](self._order, batch_of, batch, counts, n_ratings, n_batches, n_tiles, **constants)
        firsts = counts.cumsum(1, dtype=torch.int32) - counts
        whole, to = self._item_order, self._dealt_items
        _place_kernel[(n_tiles,)](
            whole.users,
            whole.items,
            whole.ratings,
            batch,
            firsts,
            to.users,
            to.items,
            to.ratings,
            n_ratings,
            n_batches,
            n_tiles,
            self._stride,
            **constants,
        )

    def _deal_by_torch(self, stream: Tensor) -> None:
        n_ratings, n_batches, n_runs = len(self._ratings.ratings), self._n_batches, self.batch_size
        every = torch.arange(n_runs, device=stream.device)
        sources = (every[:, None] * n_batches + _permutations(stream, n_runs, n_batches)).T.contiguous()
        exists = sources < n_ratings  # [n_batches, n_runs]
        taken = self._ratings.take(sources.clamp(max=n_ratings - 1))
        self.by_user.users.copy_(taken.users.where(exists, self._n_users))
        self.by_user.items.copy_(taken.items.where(exists, 0))
        self.by_user.ratings.copy_(taken.ratings.where(exists, 0.0))

        batches = torch.arange(n_batches, dtype=torch.int32, device=stream.device)
        batch_of = torch.empty(n_runs * n_batches, dtype=torch.int32, device=stream.device)
        batch_of[sources.view(-1)] = batches.repeat_interleave(n_runs)
        batch, order = batch_of[self._order].sort(stable=True)
        firsts = torch.searchsorted(batch, batches)
        places = batch.long() * self._stride + torch.arange(n_ratings, device=stream.device) - firsts[batch]
        self._dealt_items.put(places, self._item_order.take(order))


def _permutations(stream: Tensor, n_runs: int, n_batches: int) -> Tensor:
    """[n_runs, n_batches] int64, as `data.batches.deal`; 64-bit integers wrap around in torch as unsigned ones do."""
    mixed = stream + torch.arange(1, n_runs * n_batches + 1, device=stream.device) * _GOLDEN
    for shift, factor in zip(_SHIFTS, (*_FACTORS, 1), strict=True):
        mixed = (mixed ^ ((mixed >> shift) & ((1 << (64 - shift)) - 1))) * factor
    high = ((mixed >> 32) & 0xFFFFFFFF).view(n_runs, n_batches)
    uniform = (high * torch.arange(1, n_batches + 1, device=stream.device)) >> 32
    permutation = torch.zeros_like(uniform)
    for k in range(n_batches):
        j = uniform[:, k : k + 1]
        permutation[:, k : k + 1] = permutation.gather(1, j)
        permutation.scatter_(1, j, k)
    return permutation
