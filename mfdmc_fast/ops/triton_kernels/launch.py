"""What all launchers share: tile sizes by shape, view offsets on the device, and the interpreter's one repair.

Tiles are chosen from shapes alone, never by timing or by the device, so that sums are taken in the same order
everywhere. Triton decides when a kernel is defined whether it is interpreted; `INTERPRETED` keeps that decision.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)

# of entity_backward: bounds the partial sums of the centers' gradient, and how long adding them up takes
MAX_PROGRAMS = 512
# of a list, taken by one program
LIST_TILE = 1024
# programs of entity kernels from which on they do all views of their rows: a row is then read by one program only
_ENOUGH_PROGRAMS = 1024


def _let_interpreted_loops_end() -> None:
    """Triton 3.6 with numpy 2.4 or later cannot turn an interpreted scalar into the bound of a loop; later ones can."""
    import triton.runtime.interpreter as interpreter

    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_with_index


if INTERPRETED and triton.__version__.startswith("3.6."):
    _let_interpreted_loops_end()


class EntityTile(NamedTuple):
    """How entity kernels cut a side: constants of their compilation and the number of warps.

    Attributes:
        rows: entities of a tile.
        clusters, dim: largest view and view_dim, rounded up to powers of 2.
        use_dot: contract by `tl.dot`, for views with many numbers; else by products and a sum.
        warps: of 32 threads.
    """

    rows: int
    clusters: int
    dim: int
    use_dot: bool
    warps: int


class RatingTile(NamedTuple):
    """How the rating pass is cut: chunks of a program, ratings of a chunk taken at once, padded embedding, warps."""

    chunks: int
    step: int
    dim: int
    warps: int


class Tile(NamedTuple):
    """Rows and columns of a tile, powers of 2, and warps."""

    rows: int
    columns: int
    warps: int


def power_of_2(n: int) -> int:
    """The least power of 2 that is n or more."""
    return 1 << max(0, n - 1).bit_length()


def entity_tile(n_clusters: tuple[int, ...], view_dim: int, dtype: torch.dtype) -> EntityTile:
    """Tile of the entity kernels of a side; `benchmarks.triton_resources` writes down what registers they take."""
    clusters, dim = power_of_2(max(n_clusters)), power_of_2(view_dim)
    # operands of a dot go through shared memory, of which 16 rows of a larger view would take more than some GPUs have
    use_dot = dim >= 16 and clusters <= 256 and accumulator(dtype) == torch.float32
    if use_dot:
        clusters = max(16, clusters)
        warps = 4 if clusters * dim <= 2048 else 8
        return EntityTile(256 if INTERPRETED else 16, clusters, dim, True, warps)
    elements = clusters * dim
    if INTERPRETED:
        return EntityTile(max(1, min(1024, (1 << 20) // elements)), clusters, dim, False, 4)
    # 8 numbers of the three-dimensional products in each thread
    rows = max(1, min(16, 2048 // elements))
    return EntityTile(rows, clusters, dim, False, max(1, min(8, rows * elements // 256)))


def rating_tile(embedding_dim: int) -> RatingTile:
    """Tile of the rating pass: one warp a chunk, about 16 numbers of partners in each of its threads."""
    dim = power_of_2(embedding_dim)
    if INTERPRETED:
        return RatingTile(512, 16, dim, 4)
    return RatingTile(1, max(2, min(32, 512 // dim)), dim, 1 if dim <= 256 else 4)


def pair_tile(embedding_dim: int) -> Tile:
    """Pairs at a time and padded embedding of `score_pairs`: 16 numbers of either side in a thread."""
    dim = power_of_2(embedding_dim)
    if INTERPRETED:
        return Tile(4096, dim, 4)
    return Tile(max(1, 2048 // dim), dim, 4)


def usage_tile(n_clusters: tuple[int, ...]) -> Tile:
    """Rows and clusters at a time of `cluster_usage`."""
    clusters = power_of_2(max(n_clusters))
    return Tile(max(1, (65_536 if INTERPRETED else 1024) // clusters), clusters, 4)


def deal_tile(n_batches: int) -> Tile:
    """Runs of ratings at a time and padded batches of dealing: 8 places of permutations in a thread."""
    batches = power_of_2(n_batches)
    return Tile(4096 if INTERPRETED else max(32, 2048 // batches), batches, 8)


def partition_tile(n_batches: int) -> Tile:
    """Ratings at a time and padded batches of the partition by batch."""
    batches = power_of_2(n_batches)
    return Tile(max(128, ((1 << 17) if INTERPRETED else 4096) // batches), batches, 4)


def score_tile() -> Tile:
    """Users and items at a time of `top_items`."""
    return Tile(256, 1024, 4) if INTERPRETED else Tile(32, 64, 4)


def options(warps: int) -> dict[str, Any]:
    """What a kernel is compiled with besides its constants; Triton 3.9 warns where the fusing is left to it."""
    return {"num_warps": warps, "enable_fp_fusion": True}


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Where kernels have to be launched that work on this device: Triton takes torch's current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def backward_options(tile: EntityTile) -> dict[str, Any]:
    """The same for the kernels with the most values at a time.

    ptxas would rather spill a few bytes in their loops than let fewer programs share a processor. So many registers,
    for 5 programs of 4 warps or 3 of 8, are enough for all architectures and optimizers; larger views take what they
    need.
    """
    if tile.clusters * tile.dim > 512:
        return options(tile.warps)
    return options(tile.warps) | {"maxnreg": 96 if tile.warps <= 4 else 80}


def views_of_a_program(n_views: int, n_tiles: int) -> int:
    """Views that one program works on: all where the tiles alone keep a device busy, else one."""
    return n_views if INTERPRETED or n_tiles >= _ENOUGH_PROGRAMS else 1


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Of arithmetic on tables of a dtype: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def language_dtype(dtype: torch.dtype) -> Any:
    """Triton's name of an accumulator."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@functools.lru_cache(maxsize=256)
def view_offsets(n_clusters: tuple[int, ...], device: torch.device) -> Tensor:
    """[V + 1] int32: columns of view v are offsets[v] up to offsets[v + 1]."""
    offsets = [0]
    for clusters in n_clusters:
        offsets.append(offsets[-1] + clusters)
    return torch.tensor(offsets, dtype=torch.int32, device=device)


def padded(embedding_dim: int) -> int:
    """Distance of two embeddings in memory: a multiple of 4, so that they are read four numbers at a time."""
    return -(-embedding_dim // 4) * 4
