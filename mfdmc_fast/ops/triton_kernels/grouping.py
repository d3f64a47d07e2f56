"""Ratings of a batch in the order of one side's rows, their segments cut into chunks; never waits for the device.

Every size follows from the number of rows and ratings, so that a step can be recorded as a CUDA graph: what is not
needed is marked by rank R, which no kernel works on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# ratings that a program of the rating pass takes at most, so that a popular item does not keep one program busy
CHUNK = 256


@dataclass(frozen=True)
class Groups:
    """The B ratings of a batch, grouped by the R ranks of one side.

    A rank is a position among the rows that a batch works on: of a list of rows, or of the table itself.

    Attributes:
        offsets: [R + 1] int32; ratings of rank r are offsets[r] up to offsets[r + 1]. The last is the batch size.
        chunk_offsets: [R + 1] int32; its chunks likewise.
        chunk_ranks: [C] int32, rank of each chunk; R where there is no further chunk.
        partners: [B] int32, ranks of the other side, in this order.
        ratings: [B], in this order.
    """

    offsets: Tensor
    chunk_offsets: Tensor
    chunk_ranks: Tensor
    partners: Tensor
    ratings: Tensor

    @property
    def n_ranks(self) -> int:
        """R."""
        return len(self.offsets) - 1


def group(ranks: Tensor, n_ranks: int, partners: Tensor, ratings: Tensor) -> Groups:
    """Group a batch by the ranks of one side.

    Args:
        ranks: [B] integers of this side; n_ranks marks a place of the batch that holds no rating.
        n_ranks: R.
        partners: [B] integers, ranks of the other side.
        ratings: [B], accumulator dtype or that of the tables.

    Returns:
        On the device of the arguments. Within a rank ratings keep the batch's order, so that sums are deterministic.
    """
    ordered, order = ranks.to(torch.int32).sort(stable=True)
    return group_ordered(ordered, n_ranks, partners.to(torch.int32)[order], ratings[order])


def group_ordered(ordered: Tensor, n_ranks: int, partners: Tensor, ratings: Tensor) -> Groups:
    """The same for a batch that is in the order of its ranks, without sorting.

    Args:
        ordered: [B] int32, ascending; n_ranks, as before, marks places without a rating.
        n_ranks: R.
        partners: [B] int32, in this order.
        ratings: [B], in this order.
    """
    device = ordered.device
    every_rank = torch.arange(n_ranks + 1, dtype=torch.int32, device=device)
    offsets = torch.searchsorted(ordered, every_rank, out_int32=True)  # [R + 1]
    chunk_offsets = torch.zeros(n_ranks + 1, dtype=torch.int32, device=device)
    torch.cumsum((offsets.diff() + (CHUNK - 1)) // CHUNK, 0, dtype=torch.int32, out=chunk_offsets[1:])
    # every rank with ratings may have a chunk that is not full
    most = min(n_ranks, len(ordered)) + len(ordered) // CHUNK
    every_chunk = torch.arange(most, dtype=torch.int32, device=device)
    chunk_ranks = torch.searchsorted(chunk_offsets[1:], every_chunk, right=True, out_int32=True)
    return Groups(offsets, chunk_offsets, chunk_ranks, partners, ratings)
