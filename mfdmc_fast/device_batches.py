"""Batches of an epoch on a device: dealt there from ratings that stay there, or copied while another is at work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mfdmc_fast.data.batches import Batch, BatchIterator, deal_stream
from mfdmc_fast.data.dataset import RatingsDataset
from mfdmc_fast.ops.triton_kernels.deal import Columns, Dealer
from mfdmc_fast.ops.triton_kernels.grouping import Groups, group, group_ordered

# of the memory that is free when training starts; the rest is for the passes and for sorting
_SHARE_OF_MEMORY = 0.5


class DeviceBatches(Protocol):
    """The batches of `BatchIterator`, grouped by user and by item; ranks are rows of the tables.

    Attributes:
        static: whether the batches of every epoch lie in the same memory.
    """

    static: bool

    def prepare(self, epoch: int) -> None:
        """Before `groups` of an epoch; the first is 1."""

    def groups(self) -> Iterator[tuple[Groups, Groups]]:
        """Each batch of the prepared epoch by users and by items."""

    def sizes(self) -> Tensor:
        """[n_batches] int64 ratings of the batches that `groups` gave, on the device."""


def make_device_batches(
    batches: BatchIterator, n_users: int, n_items: int, device: torch.device, memory_bytes: int | None = None
) -> DeviceBatches:
    """Resident batches where all ratings find room, else streamed ones.

    Args:
        batches: of the run; its dataset and seed count, not its device.
        n_users, n_items: rows of the tables.
        device: where the batches go.
        memory_bytes: what the ratings may take; None: half of what is free on a GPU, anything elsewhere.
    """
    needed = len(batches.dataset) * Dealer.BYTES_PER_RATING
    if memory_bytes is None and device.type == "cuda":
        memory_bytes = int(torch.cuda.mem_get_info(device)[0] * _SHARE_OF_MEMORY)
    if memory_bytes is not None and needed > memory_bytes:
        return StreamedBatches(batches, n_users, n_items, device)
    return ResidentBatches(batches, n_users, n_items, device)


class ResidentBatches:
    """All ratings on the device, in both orders; `Dealer.BYTES_PER_RATING` with the batches of an epoch."""

    static = True

    def __init__(self, batches: BatchIterator, n_users: int, n_items: int, device: torch.device) -> None:
        dataset = batches.dataset
        assert isinstance(dataset, RatingsDataset)  # those on disk are the native engine's
        columns = Columns(
            *(torch.from_numpy(column).to(device) for column in (dataset.user_idx, dataset.item_idx, dataset.ratings))
        )
        self._seed, self._device = batches.seed, device
        self._n_users, self._n_items = n_users, n_items
        self._dealer = Dealer(columns, n_users, n_items, batches.n_batches)

    def prepare(self, epoch: int) -> None:
        stream = deal_stream(self._seed, np.array([epoch])).view(np.int64)
        self._dealer.deal(torch.from_numpy(stream).to(self._device))

    def groups(self) -> Iterator[tuple[Groups, Groups]]:
        by_user, by_item = self._dealer.by_user, self._dealer.by_item
        for batch in range(len(by_user.users)):
            yield (
                group_ordered(by_user.users[batch], self._n_users, by_user.items[batch], by_user.ratings[batch]),
                group_ordered(by_item.items[batch], self._n_items, by_item.users[batch], by_item.ratings[batch]),
            )

    def sizes(self) -> Tensor:
        return self._dealer.sizes()


class StreamedBatches:
    """For ratings beyond the device's memory: the host forms each batch, and its copy overlaps the batch before it."""

    static = False

    def __init__(self, batches: BatchIterator, n_users: int, n_items: int, device: torch.device) -> None:
        self._batches = BatchIterator(batches.dataset, batches.batch_size, batches.seed)
        self._n_users, self._n_items, self._device = n_users, n_items, device
        self._epoch = 1
        self._sizes: list[int] = []

    def prepare(self, epoch: int) -> None:
        self._epoch = epoch

    def groups(self) -> Iterator[tuple[Groups, Groups]]:
        self._sizes = []
        for batch in _ahead(self._batches.epoch(self._epoch), self._device):
            self._sizes.append(len(batch.ratings))
            yield (
                group_ordered(batch.user_idx, self._n_users, batch.item_idx, batch.ratings),
                group(batch.item_idx, self._n_items, batch.user_idx, batch.ratings),
            )

    def sizes(self) -> Tensor:
        return torch.tensor(self._sizes, device=self._device)


def _ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on the device with int32 rows; each is handed out when the copy of the next one is under way."""
    on_gpu = device.type == "cuda"
    copies = torch.cuda.Stream(device) if on_gpu else None
    waiting: tuple[Batch, torch.cuda.Event | None] | None = None
    for batch in batches:
        narrow = Batch(batch.user_idx.to(torch.int32), batch.item_idx.to(torch.int32), batch.ratings)
        if copies is None:
            coming: tuple[Batch, torch.cuda.Event | None] = Batch(*(t.to(device) for t in narrow)), None
        else:
            with torch.cuda.stream(copies):
                moved = Batch(*(t.pin_memory().to(device, non_blocking=True) for t in narrow))
                coming = moved, copies.record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = coming
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(batch: Batch, copied: torch.cuda.Event | None) -> Batch:
    """The batch, once the work that follows on the current stream may read it."""
    if copied is not None:
        current = torch.cuda.current_stream(batch.ratings.device)
        current.wait_event(copied)
        for tensor in batch:
            tensor.record_stream(current)
    return batch
