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
from mfdmc_fast.ops.types import Combine, SideTensors

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


def compiled() -> ModuleType:
    """The compiled module; raises BackendUnavailable where it cannot be used."""
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


class Memory:
    """Where one call's tensors are: all on one device. What it checked lives as long as it does."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.queue = compiled().Queue(*_stream(device))
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


def entities_of(
    memory: Memory,
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
    return compiled().Entities(
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


def cluster_usage(side: SideTensors, among: Tensor) -> Tensor:  # [S]
    """Mean assignment weights; see `mfdmc_fast.ops.functional.cluster_usage` for the contract."""
    module = compiled()
    memory = Memory(side.centers.device)
    rows = among.nonzero().squeeze(1)
    entities = entities_of(memory, "side", side.assignment_logits, side.centers, side.n_clusters, None, rows, "concat")
    parts = memory.empty(module.USAGE_PARTS, sum(side.n_clusters), dtype=torch.float64)
    module.cluster_usage(entities, parts.data_ptr(), memory.queue)
    return parts.sum(0) / len(rows)


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
    module = compiled()
    memory = Memory(user.centers.device)
    n_pairs = len(user_idx)
    predictions = memory.empty(n_pairs)
    if n_pairs == 0:
        return predictions
    dim = user.centers.shape[1] * (len(user.n_clusters) if combine == "concat" else 1)
    pointers: dict[str, int | None] = {}
    for side_name, table, side, idx in (("user", "users", user, user_idx), ("item", "items", item, item_idx)):
        rows, position = torch.unique(idx, return_inverse=True)
        entities = entities_of(
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


def compact_columns(table: Tensor, keep: Tensor) -> Tensor:
    """Keep some columns of a float32 table in its own memory; see `functional.compact_columns` for the contract."""
    n_rows, columns = table.shape
    compacted = table.view(-1)[: n_rows * len(keep)].view(n_rows, len(keep))
    if compacted.numel() == 0:
        return compacted
    memory = Memory(table.device)
    compaction = compiled().Compaction(
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
    module = compiled()
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
    memory = Memory(device)
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
