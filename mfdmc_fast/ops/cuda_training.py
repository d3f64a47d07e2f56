"""The passes of `batch_loss` on the CUDA module, one after the other; csrc/cuda/batch_loss.cu has the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mfdmc_fast.ops.cuda import Memory, compiled, entities_of
from mfdmc_fast.ops.native import SideParameters
from mfdmc_fast.ops.types import Combine, LossTerms, LossWeights


class _SideOfBatch:
    """One side of a batch: its distinct rows, and its ratings row by row.

    Attributes:
        rows: [R] distinct rows. position: [B] of each rating among them. order: [B] ratings row by row.
        entities, embeddings: the compiled handle of the rows, and their embeddings [R, D].
        bias: [R] or None.
    """

    def __init__(
        self, memory: Memory, name: str, side: SideParameters, idx: Tensor, combine: Combine, dim: int
    ) -> None:
        assert side.centers is not None
        self.side = side
        self.rows, self.position, counts = torch.unique(idx, return_inverse=True, return_counts=True)
        self.order = torch.argsort(self.position, stable=True)
        self.offsets = _offsets(counts)  # [R + 1]
        n_chunks = (counts + compiled().CHUNK - 1) // compiled().CHUNK
        self.chunk_offsets = _offsets(n_chunks)  # [R + 1]
        self.chunk_row = torch.repeat_interleave(n_chunks).int()  # [chunks]
        self.entities = entities_of(
            memory, name, side.table, side.centers, side.n_clusters, side.bias, self.rows, combine
        )
        self.embeddings = memory.empty(len(self.rows), dim)
        self.bias = None if side.bias is None else side.bias.index_select(0, self.rows)

    def batch(self, memory: Memory, other: _SideOfBatch, ratings: Tensor) -> Any:
        """The compiled handle of the batch as this side sees it."""
        n_ratings, n_rows, n_chunks = len(ratings), len(self.rows), len(self.chunk_row)
        partner, sorted_ratings = other.position[self.order], ratings[self.order]
        return compiled().SideBatch(
            row_offsets=memory.pointer("row_offsets", self.offsets, torch.int64, n_rows + 1),
            chunk_offsets=memory.pointer("chunk_offsets", self.chunk_offsets, torch.int64, n_rows + 1),
            chunk_row=memory.pointer("chunk_row", self.chunk_row, torch.int32, n_chunks),
            partner=memory.pointer("partner", partner, torch.int64, n_ratings),
            ratings=memory.pointer("ratings", sorted_ratings, torch.float32, n_ratings),
            l2_scale=memory.pointer("l2_scale", self.side.l2_scale, torch.float32, len(self.side.table)),
            n_ratings=n_ratings,
            n_chunks=n_chunks,
        )


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


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
    """Loss terms of B >= 1 ratings and the gradients of `total`; as `native.batch_loss_and_gradients`.

    Deterministic: every sum is taken in an order that depends on the batch alone.
    """
    module = compiled()
    assert user.centers is not None
    memory = Memory(user.centers.device)
    dim = user.centers.shape[1] * (len(user.n_clusters) if combine == "concat" else 1)
    sides = [
        _SideOfBatch(memory, name, side, idx, combine, dim)
        for name, side, idx in (("user", user, user_idx), ("item", item, item_idx))
    ]
    batches = [mine.batch(memory, other, ratings) for mine, other in ((sides[0], sides[1]), (sides[1], sides[0]))]
    term_parts = []
    for side, batch in zip(sides, batches, strict=True):
        parts = memory.empty(side.entities.forward_blocks, 4)
        module.entity_forward(
            side.entities,
            batch,
            embeddings=side.embeddings.data_ptr(),
            terms=parts.data_ptr(),
            queue=memory.queue,
        )
        term_parts.append(parts)
    gradients, spread_parts = [], []
    squares = memory.empty(len(sides[0].chunk_row))
    for number, (side, batch) in enumerate(zip(sides, batches, strict=True)):
        found, spreads = _gradients_of_side(
            memory,
            side,
            sides[1 - number],
            batch,
            global_mean,
            squares if number == 0 else None,
            weights,
            spread_margin,
        )
        gradients.append(found)
        spread_parts.append(spreads)
    mse = squares.double().sum() / len(ratings)
    spread = torch.cat(spread_parts).double().sum()
    proximity, entropy, l2, bias_l2 = torch.cat(term_parts).double().sum(0).unbind()
    total = mse + sum(
        weight * term for weight, term in zip(weights, (spread, proximity, entropy, l2, bias_l2), strict=True)
    )
    terms = torch.stack([total, mse, spread, proximity, entropy, l2, bias_l2]).float()
    return LossTerms(*terms.unbind()), gradients


def _gradients_of_side(
    memory: Memory,
    side: _SideOfBatch,
    other: _SideOfBatch,
    batch: Any,
    global_mean: float,
    squares: Tensor | None,  # [chunks], filled with sums of squared errors
    weights: LossWeights,
    spread_margin: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients by the names of `SideParameters.tensors()`, and parts of the spread [S]."""
    module = compiled()
    n_chunks, dim = len(side.chunk_row), side.embeddings.shape[1]
    chunk_gradients = memory.empty(n_chunks, dim + 1)
    module.rating_pass(
        batch,
        own=side.embeddings.data_ptr(),
        other=other.embeddings.data_ptr(),
        own_bias=memory.pointer("bias", side.bias, torch.float32, len(side.rows)),
        other_bias=memory.pointer("bias", other.bias, torch.float32, len(other.rows)),
        dim=dim,
        global_mean=global_mean,
        gradients=chunk_gradients.data_ptr(),
        squares=memory.pointer("squares", squares, torch.float32, n_chunks),
        queue=memory.queue,
    )
    gradients = {name: torch.zeros_like(tensor) for name, tensor in side.side.tensors().items()}
    total, view_dim = gradients["centers"].shape
    parts = memory.empty(side.entities.backward_blocks, total, view_dim + 1)
    module.entity_backward(
        side.entities,
        batch,
        chunk_gradients=chunk_gradients.data_ptr(),
        proximity=weights.proximity,
        entropy=weights.entropy,
        l2=weights.l2,
        bias_l2=weights.bias_l2,
        logits=gradients["table"].data_ptr(),
        bias=gradients["bias"].data_ptr() if "bias" in gradients else None,
        center_parts=parts.data_ptr(),
        queue=memory.queue,
    )
    sums, spreads = memory.empty(total, view_dim + 1), memory.empty(total)
    module.center_gradients(
        side.entities,
        parts=parts.data_ptr(),
        n_parts=len(parts),
        spread=weights.spread,
        margin=spread_margin,
        sums=sums.data_ptr(),
        gradients=gradients["centers"].data_ptr(),
        spread_parts=spreads.data_ptr(),
        queue=memory.queue,
    )
    return gradients, spreads
