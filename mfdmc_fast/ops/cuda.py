"""Lazy access to the CUDA module, and the one place where tensors become device pointers for it.

The compiled code knows pointers and a stream. Device, dtype, layout and sizes are checked here; indices before, in
`functional`. Kernels run on torch's current stream of the tensors' device and nothing here waits for them, but torch's
`unique` and `repeat_interleave`, whose results have sizes that the host must know.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mfdmc_fast.errors import BackendUnavailable
from mfdmc_fast.ops import native
from mfdmc_fast.ops.native import SideParameters
from mfdmc_fast.ops.types import Combine, LossTerms, LossWeights, SideTensors

# what the kernels take: clusters of a side or numbers of an embedding; columns of a table
MAX_COLUMNS = 1024

# blocks that keep the largest devices busy
_ENOUGH_BLOCKS = 512
_USERS_PER_BLOCK = _ITEMS_PER_TILE = 64  # of top_items
_MAX_INT32 = 2**31 - 1


@functools.cache
def _load() -> ModuleType | str:
    """The compiled module, or the sentence that says why it cannot be used; tried once per process."""
    loaded = native.load_compiled("_cuda", "CUDA", "MFDMC_CUDA")
    if isinstance(loaded, str):
        return loaded
    problem = loaded.device_problem()
    if problem:
        return f"the CUDA module finds no device to run on ({problem}); it needs an NVIDIA GPU and its driver"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device; install a build of torch with CUDA"
    return loaded


def _module() -> ModuleType:
    loaded = _load()
    if isinstance(loaded, str):
        raise BackendUnavailable(loaded)
    return loaded


def why_unavailable() -> str | None:
    """A sentence on why the CUDA module cannot be used and what to do about it, or None if it can."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def _stream(device: torch.device) -> tuple[int, int]:
    """Number of the device and handle of its current stream."""
    if device.type != "cuda":
        raise ValueError(f"tensors must be on a CUDA device, not on {device}")
    stream = torch.cuda.current_stream(device)
    return stream.device.index, stream.cuda_stream


class _Memory:
    """Where one call's tensors are: all on one device. What it checked lives as long as it does."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.queue = _module().Queue(*_stream(device))
        self._held: list[Tensor] = []

    def pointer(self, name: str, tensor: Tensor | None, dtype: torch.dtype, *shape: int) -> int | None:
        """Where the memory of a tensor begins, if it is what a kernel takes it for; None for None."""
        if tensor is None:
            return None
        if tensor.device != self.device:
            raise ValueError(f"{name} must be on {self.device}, not on {tensor.device}")
        if tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, not {tensor.dtype}")
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, not {list(tensor.shape)}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous")
        self._held.append(tensor)
        return tensor.data_ptr()

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A new tensor on the device."""
        return torch.empty(shape, dtype=dtype, device=self.device)


@functools.lru_cache(maxsize=64)
def _layout(n_clusters: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Offsets of the views [V + 1] and the view of each cluster [S], int32."""
    counts = torch.tensor(n_clusters)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    view_of = torch.repeat_interleave(torch.arange(len(n_clusters)), counts)
    return offsets.int().to(device), view_of.int().to(device)


def _entities(
    memory: _Memory,
    name: str,
    logits: Tensor,  # [n, S]
    centers: Tensor,  # [S, d]
    n_clusters: tuple[int, ...],
    bias: Tensor | None,  # [n]
    rows: Tensor,  # [R]
    combine: Combine,
) -> Any:
    """The compiled module's handle of some rows of a side."""
    total, view_dim = sum(n_clusters), centers.shape[1]
    offsets, view_of = _layout(n_clusters, memory.device)
    return _module().Entities(
        assignment_logits=memory.pointer(f"{name}.assignment_logits", logits, torch.float32, len(logits), total),
        centers=memory.pointer(f"{name}.centers", centers, torch.float32, total, view_dim),
        bias=memory.pointer(f"{name}.bias", bias, torch.float32, len(logits)),
        view_offsets=memory.pointer("view_offsets", offsets, torch.int32, len(n_clusters) + 1),
        view_of=memory.pointer("view_of", view_of, torch.int32, total),
        rows=memory.pointer("rows", rows, torch.int64, len(rows)),
        n_rows=len(rows),
        total_clusters=total,
        n_views=len(n_clusters),
        view_dim=view_dim,
        sum_views=combine == "sum",
    )


def score_pairs(
    user: SideTensors,
    item: SideTensors,
    global_mean: float,
    user_idx: Tensor,  # [B]
    item_idx: Tensor,  # [B]
    *,
    combine: Combine,
) -> Tensor:  # [B]
    """Predictions of B pairs, float32; see `mfdmc_fast.ops.functional.score_pairs` for the contract."""
    module = _module()
    memory = _Memory(user.centers.device)
    n_pairs = len(user_idx)
    predictions = memory.empty(n_pairs)
    if n_pairs == 0:
        return predictions
    dim = user.centers.shape[1] * (len(user.n_clusters) if combine == "concat" else 1)
    pointers: dict[str, int | None] = {}
    for side_name, table, side, idx in (("user", "users", user, user_idx), ("item", "items", item, item_idx)):
        rows, position = torch.unique(idx, return_inverse=True)
        entities = _entities(
            memory, side_name, side.assignment_logits, side.centers, side.n_clusters, None, rows, combine
        )
        embeddings = memory.empty(len(rows), dim)
        pointers[table] = memory.pointer(table, embeddings, torch.float32, len(rows), dim)
        module.embed(entities, pointers[table], memory.queue)
        bias = None if side.bias is None else side.bias.index_select(0, rows)
        pointers[f"{side_name}_bias"] = memory.pointer("bias", bias, torch.float32, len(rows))
        pointers[f"{side_name}_position"] = memory.pointer("position", position, torch.int64, n_pairs)
    module.score_pairs(
        **pointers,
        n_pairs=n_pairs,
        dim=dim,
        global_mean=global_mean,
        predictions=predictions.data_ptr(),
        queue=memory.queue,
    )
    return predictions


class _SideOfBatch:
    """One side of a batch: its distinct rows, and its ratings row by row.

    Attributes:
        rows: [R] distinct rows. position: [B] of each rating among them. order: [B] ratings row by row.
        entities, embeddings: the compiled handle of the rows, and their embeddings [R, D].
        bias: [R] or None.
    """

    def __init__(
        self, memory: _Memory, name: str, side: SideParameters, idx: Tensor, combine: Combine, dim: int
    ) -> None:
        assert side.centers is not None
        self.side = side
        self.rows, self.position, counts = torch.unique(idx, return_inverse=True, return_counts=True)
        self.order = torch.argsort(self.position, stable=True)
        self.offsets = _offsets(counts)  # [R + 1]
        n_chunks = (counts + _module().CHUNK - 1) // _module().CHUNK
        self.chunk_offsets = _offsets(n_chunks)  # [R + 1]
        self.chunk_row = torch.repeat_interleave(n_chunks).int()  # [chunks]
        self.entities = _entities(
            memory, name, side.table, side.centers, side.n_clusters, side.bias, self.rows, combine
        )
        self.embeddings = memory.empty(len(self.rows), dim)
        self.bias = None if side.bias is None else side.bias.index_select(0, self.rows)

    def batch(self, memory: _Memory, other: _SideOfBatch, ratings: Tensor) -> Any:
        """The compiled handle of the batch as this side sees it."""
        n_ratings, n_rows, n_chunks = len(ratings), len(self.rows), len(self.chunk_row)
        partner, sorted_ratings = other.position[self.order], ratings[self.order]
        return _module().SideBatch(
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
    module = _module()
    assert user.centers is not None
    memory = _Memory(user.centers.device)
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
    memory: _Memory,
    side: _SideOfBatch,
    other: _SideOfBatch,
    batch: Any,
    global_mean: float,
    squares: Tensor | None,  # [chunks], filled with sums of squared errors
    weights: LossWeights,
    spread_margin: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients by the names of `SideParameters.tensors()`, and parts of the spread [S]."""
    module = _module()
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


def compact_columns(table: Tensor, keep: Tensor) -> Tensor:
    """Keep some columns of a float32 table in its own memory; see `functional.compact_columns` for the contract."""
    n_rows, columns = table.shape
    compacted = table.view(-1)[: n_rows * len(keep)].view(n_rows, len(keep))
    if compacted.numel() == 0:
        return compacted
    memory = _Memory(table.device)
    compaction = _module().Compaction(
        table=memory.pointer("table", table, torch.float32, n_rows, columns),
        keep=memory.pointer("keep", keep, torch.int64, len(keep)),
        n_rows=n_rows,
        columns=columns,
        kept=len(keep),
    )
    progress = torch.zeros(1 + compaction.tiles, dtype=torch.int32, device=table.device)
    compaction.run(progress.data_ptr(), memory.queue)
    return compacted


def top_items(
    user_embeddings: Tensor,  # [U, D]
    item_embeddings: Tensor,  # [M, D]
    item_bias: Tensor | None,  # [M]
    n: int,
    *,
    exclude_offsets: Tensor | None = None,  # [U + 1]
    exclude_items: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # [U, min(n, M)], [U, min(n, M)]
    """The n best items of each user, float32; see `mfdmc_fast.ops.functional.top_items` for the contract.

    A pass over all scores finds `MOST_LISTED` items of each user.
    """
    module = _module()
    device = user_embeddings.device
    (n_users, dim), n_items = user_embeddings.shape, len(item_embeddings)
    width = min(n, n_items)
    found = torch.empty(n_users, width, dtype=torch.int64, device=device)
    scores = torch.empty(n_users, width, device=device)
    if found.numel() == 0:
        return found, scores
    if n_items > _MAX_INT32:
        raise ValueError(f"the CUDA module takes at most {_MAX_INT32} items, not {n_items}")
    users, items = user_embeddings.contiguous(), item_embeddings.contiguous()
    bias = None if item_bias is None else item_bias.contiguous()
    excluded = None
    if exclude_offsets is not None and exclude_items is not None:
        exclude_offsets = exclude_offsets.contiguous()
        # one key for user and item: ascending items for each user, so that a kernel passes them once
        owner = torch.repeat_interleave(exclude_offsets.diff())
        excluded = ((owner * n_items + exclude_items).sort().values % n_items).int()
    blocks = -(-n_users // _USERS_PER_BLOCK)
    splits = max(1, min(_ENOUGH_BLOCKS // blocks, -(-n_items // (4 * _ITEMS_PER_TILE))))
    listed = min(width, module.MOST_LISTED)
    memory = _Memory(device)
    part_scores = memory.empty(n_users, splits, listed)
    part_items = memory.empty(n_users, splits, listed, dtype=torch.int32)
    for first in range(0, width, listed):
        module.top_items(
            users=memory.pointer("user_embeddings", users, torch.float32, n_users, dim),
            items=memory.pointer("item_embeddings", items, torch.float32, n_items, dim),
            item_bias=memory.pointer("item_bias", bias, torch.float32, n_items),
            exclude_offsets=memory.pointer("exclude_offsets", exclude_offsets, torch.int64, n_users + 1),
            exclude_items=memory.pointer(
                "exclude_items", excluded, torch.int32, 0 if excluded is None else len(excluded)
            ),
            n_users=n_users,
            n_items=n_items,
            dim=dim,
            n=width,
            first=first,
            last=min(first + listed, width),
            splits=splits,
            part_scores=part_scores.data_ptr(),
            part_items=part_items.data_ptr(),
            found=found.data_ptr(),
            scores=scores.data_ptr(),
            queue=memory.queue,
        )
    return found, scores
