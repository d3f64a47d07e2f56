"""How much memory training takes, how much there is, and whether ratings should stay on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mfdmc_fast.config import FunkMFConfig, MFDMCConfig, TrainingConfig
from mfdmc_fast.data.batches import default_batch_size
from mfdmc_fast.data.dataset import RatingsDataset
from mfdmc_fast.data.store import DEALT_AT_ONCE, Store, StreamedRatings
from mfdmc_fast.errors import ConfigError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
# numbers of a rating in memory, and of one that is dealt: user, item, rating
_LOADED_BYTES = _DEALT_BYTES = 12
# at most, of a dealt rating: what several processes tell each other of how often batches have each item
_COUNT_BYTES = 16
# two batches grouped by item (12 bytes each), and the errors of one
_BATCH_BYTES = 28
# of one rating more while a store is loaded: its code
_LOADING_BYTES = 1
# temporaries of a few megabytes here and there
_SLACK_BYTES = 64 << 20
# other programs want some of what is free at the moment
_SHARE_OF_FREE = 0.8


def parse_size(size: int | str) -> int:
    """Bytes of a size such as 2147483648, "2GiB", "1.5 GB" or "800M"; ConfigError for anything else."""
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", str(size).lower())
    if isinstance(size, str) and found and found[2] in _UNITS and float(found[1]) > 0:
        return int(float(found[1]) * _UNITS[found[2]])
    raise ConfigError(f"memory limit {size!r}: write a number of bytes, or with a unit, such as 2GiB or 800MB")


def show_size(n_bytes: float) -> str:
    """A size for people: "1.5 GiB"."""
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def resident_bytes() -> int:
    """Memory of this process at the moment; 0 where the system does not say."""
    return _from_table(Path("/proc/self/status"), "VmRSS:") or 0


def free_bytes() -> int | None:
    """Memory that programs can still have without swapping, also by the limit of a container; None where unknown."""
    found = [_from_table(Path("/proc/meminfo"), "MemAvailable:")]
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such container, or "max"
            continue
    return min((n for n in found if n is not None), default=None)


def _from_table(path: Path, key: str) -> int | None:
    """Bytes in a line such as "VmRSS:  1024 kB"; None where there is none."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), None)


@dataclass(frozen=True)
class TrainingMemory:
    """What training takes beside what the process has already, in bytes.

    Attributes:
        tables: parameters, the optimizer's state and what is computed for every entity.
        batch: for the batches at work.
        ratings: for all ratings in memory, loading included.
        smallest_dealt: for the fewest ratings that can be dealt at a time, those of a batch.
    """

    tables: int
    batch: int
    ratings: int
    smallest_dealt: int

    @property
    def streamed(self) -> int:
        """At least, with the ratings on disk."""
        return self.tables + self.batch + self.smallest_dealt + _SLACK_BYTES

    def loaded(self, n_ratings: int) -> int:
        """With the ratings in memory."""
        dealt = max(self.smallest_dealt, _DEALT_BYTES * min(DEALT_AT_ONCE, n_ratings))
        return self.tables + self.batch + dealt + self.ratings + _SLACK_BYTES


def training_memory(
    config: TrainingConfig, n_users: int, n_items: int, n_ratings: int, n_processes: int = 1
) -> TrainingMemory:
    """Estimate for the native engine; an upper bound in all that `benchmarks.ingest` measures.

    Args:
        config: of the model.
        n_users, n_items, n_ratings: of all.
        n_processes: that share users and ratings; the estimate is for one of them.
    """
    if isinstance(config, MFDMCConfig):
        width = config.n_views * config.n_clusters
        length = config.view_dim * (config.n_views if config.combine == "concat" else 1)
    else:
        assert isinstance(config, FunkMFConfig)
        width = length = config.n_factors
    copies = (3 if config.optimizer == "adam" else 1) + (config.keep == "best")
    # embeddings and their gradients, a byte a number for the check of parameters, biases, row sums and the like
    per_entity = 4 * copies * (width + 1) + 8 * length + width + 64
    batch_size = min(config.batch_size or default_batch_size(n_ratings), n_ratings)
    own_users, own_ratings, own_batch = (-(-n // n_processes) for n in (n_users, n_ratings, batch_size))
    tables, dealt = per_entity * (own_users + n_items), _DEALT_BYTES * own_batch
    if n_processes > 1:
        # the whole table before training and after it; messages about items in both directions
        tables += 4 * (width + 1) * n_users + 16 * (length + 1) * n_items
        dealt += _COUNT_BYTES * own_batch
    return TrainingMemory(
        tables=tables,
        batch=_BATCH_BYTES * own_batch,
        ratings=(_LOADED_BYTES + _LOADING_BYTES) * own_ratings,
        smallest_dealt=dealt,
    )


def load_or_stream(
    store: Store, config: TrainingConfig, limit: int | None, n_processes: int = 1
) -> RatingsDataset | StreamedRatings:
    """The ratings of a store in memory where that suffices, else checked and to be streamed.

    Where several processes train they are always streamed, so that each reads its own alone.

    Args:
        store: the ratings.
        config: of the model that is to be trained on them.
        limit: bytes of memory that the process may have in all, without the system's cache of files; None: what is
            free, of which a part is left alone.
        n_processes: that train together.

    Raises:
        ConfigError: not even streaming keeps within the limit; says what would.
        DataError: the store is damaged.
    """
    needed = training_memory(config, store.n_users, store.n_items, len(store), n_processes)
    held = resident_bytes()
    free = free_bytes()
    allowed = limit - held if limit is not None else None if free is None else int(_SHARE_OF_FREE * free)
    if n_processes == 1 and (allowed is None or needed.loaded(len(store)) <= allowed):
        return store.load()
    if limit is not None and allowed is not None and needed.streamed > allowed:
        least = held + needed.streamed
        without_batch = held + needed.tables + _SLACK_BYTES
        largest = (limit - without_batch) // (_BATCH_BYTES + _DEALT_BYTES)
        smaller = f", or batches of at most {largest:,} ratings (batch_size)" if largest >= 1024 else ""
        raise ConfigError(
            f"training needs about {show_size(least)}, of which {show_size(needed.tables)} for the tables of"
            f" {store.n_users:,} users and {store.n_items:,} items and {show_size(held)} that the process has already;"
            f" the memory limit is {show_size(limit)}. Raise it{smaller}, or choose a smaller model"
        )
    # with less than that, a store is gone through more often
    store.check()
    if n_processes > 1 and limit is None:  # what is free is for all processes of a machine
        return StreamedRatings(store)
    assert allowed is not None
    spare = (allowed - needed.streamed + needed.smallest_dealt) // (_DEALT_BYTES + (n_processes > 1) * _COUNT_BYTES)
    return StreamedRatings(store, max(1, min(spare, len(store))))
