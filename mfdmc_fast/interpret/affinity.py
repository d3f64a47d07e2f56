"""How much the clusters of the two sides add to a rating where they meet: Gram matrices of the centers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mfdmc_fast.model import MFDMCModel, Side

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ViewPair:
    """A view of users and a view of items that meet in a prediction.

    With memberships w_u [K_u] and w_i [K_i] the pair of views adds Σ_kl w_uk w_il gram_kl to a rating. As memberships
    sum to 1, that is exactly mean + Σ_k w_uk user_effect_k + Σ_l w_il item_effect_l + Σ_kl w_uk w_il centered_kl.

    Attributes:
        user_view, item_view: their numbers.
        gram: [K_u, K_i] <c_k, c_l>, rating points.
        mean: Σ_kl usage_k usage_l gram_kl.
        user_effect: [K_u] what a user cluster adds on average over items, less `mean`; like a bias.
        item_effect: [K_i] the same of item clusters.
        centered: [K_u, K_i] what is left: positive where the two clusters attract each other, negative where they
            repel. Its means by usage are 0 in every row and column.
    """

    user_view: int
    item_view: int
    gram: _Array
    mean: float
    user_effect: _Array
    item_effect: _Array
    centered: _Array


def grams(model: MFDMCModel) -> list[tuple[int, int, _Array]]:
    """User view, item view and [K_u, K_i] products of their centers, for the pairs of views that meet: each view and
    its counterpart (`concat`), or every view and every other (`sum`).
    """
    users, items = (_by_view(side) for side in model.prunable_sides().values())
    views = range(model.config.n_views)
    meeting = [(v, v) for v in views] if model.config.combine == "concat" else [(v, w) for v in views for w in views]
    return [(v, w, users[v] @ items[w].T) for v, w in meeting]


def view_pairs(model: MFDMCModel) -> list[ViewPair]:
    """The pairs of views that meet, with their products centered by the usage of the clusters."""
    users, items = (usages(side) for side in model.prunable_sides().values())
    found = []
    for v, w, gram in grams(model):
        rows, columns = gram @ items[w], users[v] @ gram
        mean = float(users[v] @ rows)
        centered = gram - rows[:, None] - columns[None, :] + mean
        found.append(ViewPair(v, w, gram, mean, rows - mean, columns - mean, centered))
    return found


def usages(side: Side) -> list[_Array]:
    """Mean assignment weight of every cluster over the side's entities, one [K_v] a view; each sums to 1."""
    means = [weights.mean(0, dtype=torch.float64).cpu().numpy() for weights in side.assignment_weights()]
    # float32 weights sum to 1 up to rounding only
    return [mean / mean.sum() for mean in means]


def memberships_of(side: Side, row: int) -> list[_Array]:
    """Assignment weights of one entity, one [K_v] a view."""
    found: list[_Array] = []
    for logits in side.assignment_logits.detach()[row].double().cpu().split(side.n_clusters):
        found.append(logits.softmax(0).numpy())
    return found


def _by_view(side: Side) -> list[_Array]:
    centers: Any = side.centers.detach().double().cpu().split(side.n_clusters)
    return [view.numpy() for view in centers]
