"""What the public functions check of their arguments, so that nothing reaches a kernel unchecked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mfdmc_fast.ops.types import RowPrior, RowRatings, SideTensors


def columns_of(*sides: SideTensors) -> int:
    """The larger of the clusters of a side and the numbers of a `concat` embedding: what limits some kernels."""
    return max(max(sum(s.n_clusters), len(s.n_clusters) * s.centers.shape[1]) for s in sides)


def view_of(*sides: SideTensors) -> int:
    """Numbers in the centers of the largest view, both lengths rounded up to powers of 2: what limits others."""
    lengths = [(max(s.n_clusters), s.centers.shape[1]) for s in sides]
    return max(1 << ((k - 1).bit_length() + (d - 1).bit_length()) for k, d in lengths)


def contiguous(side: SideTensors) -> SideTensors:
    """The parameters of a side as the kernels read them: contiguous, without gradients, without `l2_scale`."""
    return SideTensors(
        side.assignment_logits.detach().contiguous(),
        side.centers.detach().contiguous(),
        side.n_clusters,
        None if side.bias is None else side.bias.detach().contiguous(),
    )


def check_rows(name: str, rows: Tensor, n: int) -> None:
    """Raise TypeError or IndexError unless `rows` is a vector of int64 in [0, n); the message has the position."""
    if rows.ndim != 1 or rows.dtype != torch.int64:
        raise TypeError(f"{name} must be a vector of int64, got {list(rows.shape)} {rows.dtype}")
    if len(rows):
        low, high = (int(x) for x in rows.aminmax())
        if low < 0 or high >= n:
            wrong = low if low < 0 else high
            position = int((rows == wrong).nonzero()[0])
            raise IndexError(f"{name}[{position}] is {wrong}, but there are {n} rows (0 to {max(n - 1, 0)})")


def check_side(name: str, side: SideTensors) -> None:
    """Raise `ValueError` or `TypeError` unless shapes, dtypes and devices of a side fit together."""
    total = sum(side.n_clusters)
    if not side.n_clusters or min(side.n_clusters) < 1:
        raise ValueError(f"{name}.n_clusters must hold at least one view and one cluster a view, got {side.n_clusters}")
    if side.assignment_logits.ndim != 2 or side.assignment_logits.shape[1] != total:
        raise ValueError(f"{name}.assignment_logits must be [n, {total}], got {list(side.assignment_logits.shape)}")
    if side.centers.ndim != 2 or len(side.centers) != total or side.centers.shape[1] < 1:
        raise ValueError(f"{name}.centers must be [{total}, d], got {list(side.centers.shape)}")
    check_vectors(name, {"bias": side.bias, "l2_scale": side.l2_scale}, len(side.assignment_logits))
    for tensor in side:
        if isinstance(tensor, Tensor) and not (
            tensor.is_floating_point() and tensor.dtype == side.centers.dtype and tensor.device == side.centers.device
        ):
            raise TypeError(
                f"tensors of {name} must share one floating dtype and device: got {tensor.dtype} on {tensor.device}"
                f" beside {side.centers.dtype} on {side.centers.device}"
            )


def check_sides(user: SideTensors, item: SideTensors, combine: str) -> None:
    """Raise unless both sides are as `check_side` wants them, fit each other, and can be combined so."""
    check_side("user", user)
    check_side("item", item)
    check_combine(combine)
    if user.centers.dtype != item.centers.dtype or user.centers.device != item.centers.device:
        raise TypeError(
            f"both sides must share dtype and device, got {user.centers.dtype} on {user.centers.device}"
            f" and {item.centers.dtype} on {item.centers.device}"
        )
    if len(user.n_clusters) != len(item.n_clusters) or user.centers.shape[1] != item.centers.shape[1]:
        raise ValueError(
            "both sides must have equally many views and the same view_dim, got"
            f" {len(user.n_clusters)} views of {user.centers.shape[1]} and"
            f" {len(item.n_clusters)} views of {item.centers.shape[1]}"
        )
    if (user.bias is None) != (item.bias is None):
        raise ValueError("give a bias on both sides or on neither")


def check_vectors(name: str, vectors: dict[str, Tensor | None], n: int) -> None:
    """Raise `ValueError` unless all vectors that are given are [n]."""
    for field, vector in vectors.items():
        if vector is not None and vector.shape != (n,):
            raise ValueError(f"{name}.{field} must be [{n}], got {list(vector.shape)}")


def check_combine(combine: str) -> None:
    """Raise `ValueError` for a way of combining views that is none."""
    if combine not in ("concat", "sum"):
        raise ValueError(f"combine must be 'concat' or 'sum', got {combine!r}")


def check_same_kind(expected: Tensor, tensors: dict[str, Tensor | None]) -> None:
    """Raise `TypeError` unless all tensors that are given have the floating dtype and the device of `expected`."""
    for name, tensor in tensors.items():
        if tensor is None or (
            tensor.is_floating_point() and tensor.dtype == expected.dtype and tensor.device == expected.device
        ):
            continue
        raise TypeError(
            f"{name} must have one floating dtype and device with the others: got {tensor.dtype} on {tensor.device}"
            f" beside {expected.dtype} on {expected.device}"
        )


def check_indices(n_users: int, n_items: int, user_idx: Tensor, item_idx: Tensor, device: torch.device) -> None:
    """Raise unless both are equally long vectors of int64 on the device, in [0, n_users) and [0, n_items)."""
    check_rows("user_idx", user_idx, n_users)
    check_rows("item_idx", item_idx, n_items)
    if user_idx.shape != item_idx.shape:
        raise ValueError(f"user_idx and item_idx must be equally long, got {len(user_idx)} and {len(item_idx)}")
    if user_idx.device != device or item_idx.device != device:
        raise ValueError(f"user_idx and item_idx must be on {device}, as the parameters are")


def check_ratings(ratings: Tensor, user_idx: Tensor, parameter: Tensor) -> None:
    """Raise `ValueError` unless ratings are [B] as `user_idx`, in dtype and device of the parameter."""
    if ratings.shape != user_idx.shape or ratings.dtype != parameter.dtype or ratings.device != parameter.device:
        raise ValueError(
            f"ratings must be [{len(user_idx)}] {parameter.dtype} on {parameter.device},"
            f" got {list(ratings.shape)} {ratings.dtype} on {ratings.device}"
        )


def check_row_problem(
    n: int,
    dim: int,
    partner_embeddings: Tensor,
    partner_bias: Tensor | None,
    own: RowRatings,
    prior: RowPrior,
    expected: Tensor,
) -> None:
    """Raise unless the arguments of `fold_in` fit n rows with embeddings of `dim` numbers, in `expected`'s dtype."""
    if partner_embeddings.ndim != 2 or partner_embeddings.shape[1] != dim:
        raise ValueError(f"partner_embeddings must be [M, {dim}], got {list(partner_embeddings.shape)}")
    check_vectors("partners", {"bias": partner_bias}, len(partner_embeddings))
    unknowns = dim + (partner_bias is not None)
    if prior.means.shape != (n, unknowns) or prior.precision.shape != (unknowns, unknowns):
        raise ValueError(
            f"prior.means must be [{n}, {unknowns}] and prior.precision [{unknowns}, {unknowns}],"
            f" got {list(prior.means.shape)} and {list(prior.precision.shape)}"
        )
    check_same_kind(
        expected,
        {
            "partner_embeddings": partner_embeddings,
            "partner_bias": partner_bias,
            "own.ratings": own.ratings,
            "prior.means": prior.means,
            "prior.precision": prior.precision,
        },
    )
    check_groups("own.partners", own.offsets.cpu().numpy(), own.partners.cpu().numpy(), len(partner_embeddings))
    if own.offsets.shape != (n + 1,) or own.ratings.shape != own.partners.shape:
        raise ValueError(
            f"own must have offsets [{n + 1}] and as many ratings as partners, got {list(own.offsets.shape)},"
            f" {list(own.ratings.shape)} and {list(own.partners.shape)}"
        )


def check_groups(name: str, offsets: npt.NDArray[np.int64], members: npt.NDArray[np.int32], n: int) -> None:
    """Raise unless `members` are int32 rows in [0, n) and group g of them is members[offsets[g] : offsets[g + 1]]."""
    for array, dtype in ((offsets, np.int64), (members, np.int32)):
        if array.ndim != 1 or array.dtype != dtype:
            raise TypeError(f"{name}: expected a vector of {dtype.__name__}, got {list(array.shape)} {array.dtype}")
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != len(members) or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"{name}: offsets must ascend from 0 to the number of members, {len(members)}")
    outside = np.flatnonzero((members < 0) | (members >= n))
    if len(outside):
        raise IndexError(f"{name}[{outside[0]}] is {members[outside[0]]}, outside [0, {n})")
