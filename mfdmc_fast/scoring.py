"""Predictions for row indices of which some may be unknown: the one place that says what an unknown entity gets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from mfdmc_fast.model import RatingModel

# pairs scored at a time: bounds the memory of the gathered embeddings
_PAIRS_PER_BLOCK = 1 << 20


def predict_rows(
    model: RatingModel,
    user_idx: npt.NDArray[np.int64],
    item_idx: npt.NDArray[np.int64],
    scale: tuple[float, float] | None = None,
) -> npt.NDArray[np.float32]:
    """Predicted ratings of index pairs; -1 marks an unknown user or item.

    An unknown user gets global mean + item bias, an unknown item global mean + user bias, both unknown the global mean.
    A model without biases gives the mean training rating for every pair with an unknown side.

    Args:
        model: trained parameters.
        user_idx, item_idx: [N] int64 in [-1, n).
        scale: lowest and highest rating to clip to, or None.

    Returns:
        [N] float32, rating points.
    """
    known_user, known_item = user_idx >= 0, item_idx >= 0
    known = known_user & known_item
    out = np.full(len(user_idx), model.train_mean, dtype=np.float32)
    for bias, rows, usable in (
        (model.bias("user"), user_idx, known_user & ~known_item),
        (model.bias("item"), item_idx, known_item & ~known_user),
    ):
        if bias is not None:
            out[usable] += bias.cpu().numpy()[rows[usable]]
    positions = np.flatnonzero(known)
    device = next(model.parameters()).device
    for block in np.array_split(positions, -(-len(positions) // _PAIRS_PER_BLOCK) or 1):
        scores = model.score_pairs(
            torch.from_numpy(user_idx[block]).to(device), torch.from_numpy(item_idx[block]).to(device)
        )
        out[block] = scores.float().cpu().numpy()
    return out if scale is None else out.clip(*scale)
