"""NDCG@10 and Recall@10 of a fitted model.

For every test user, all items with a training rating by anybody, but for those that she has rated in training, are
ranked by the model's unclipped score, ties by ascending item id. Relevant are the items of her test ratings of at least
the dataset's threshold (`datasets.py`); those without any training rating cannot be ranked and count as missed. Users
without a relevant test item or without a training rating are left out; of more than 2,000 users a seeded sample is
taken. Both measures are means over the users; their formulas are in `mfdmc_fast.metrics`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.suite.models import Fitted, Scores
from mfdmc_fast.data import Ratings, Vocabulary
from mfdmc_fast.metrics import ndcg_at, recall_at

RANKS = 10
MAX_USERS = 2000
_SAMPLE_SEED = 0
# numbers in the scores of a block of users
_SCORES_PER_BLOCK = 1 << 24


def ranking_measures(
    fitted: Fitted, train: Ratings, test: Ratings, relevant_from: float, max_users: int = MAX_USERS
) -> dict[str, Any]:
    """Means over the users of `ndcg` and `recall`, and how many users there were."""
    users, items = (Vocabulary.from_values(ids) for ids in (train.users, train.items))
    test_users, test_items = users.encode(test.users), items.encode(test.items)
    relevant = (test.ratings >= relevant_from) & (test_users >= 0)
    chosen = np.unique(test_users[relevant])
    if not len(chosen):
        return {"ndcg": None, "recall": None, "ranked_users": 0}
    if len(chosen) > max_users:
        chosen = np.sort(np.random.default_rng(_SAMPLE_SEED).choice(chosen, max_users, replace=False))
    seen = _grouped(users.encode(train.users), items.encode(train.items), len(users))
    wanted = _grouped(test_users[relevant], test_items[relevant], len(users))
    hits = np.zeros((len(chosen), RANKS), dtype=bool)
    size = max(1, _SCORES_PER_BLOCK // len(items))
    for start in range(0, len(chosen), size):
        block = chosen[start : start + size]
        scores = np.array(fitted.scores(users.decode(block)))  # a copy, to write into
        for row, user in enumerate(block.tolist()):
            scores[row, seen[user]] = -np.inf
            best = top(scores[row], RANKS)
            hits[start + row, : len(best)] = np.isin(best, wanted[user])
    n_relevant = [len(wanted[user]) for user in chosen.tolist()]
    return {
        "ndcg": float(ndcg_at(hits, n_relevant, RANKS).mean()),
        "recall": float(recall_at(hits, n_relevant, RANKS).mean()),
        "ranked_users": len(chosen),
    }


def top(scores: Scores, k: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions of the k highest finite scores [N], best first, of equal ones the first."""
    k = min(k, len(scores))
    bound = np.partition(scores, len(scores) - k)[len(scores) - k]
    candidates = np.flatnonzero((scores >= bound) & (scores > -np.inf))
    best: np.ndarray[Any, np.dtype[np.int64]] = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
    return best


def _grouped(users: Any, items: Any, n_users: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """The items of every user."""
    order = np.argsort(users, kind="stable")
    return np.split(items[order], np.searchsorted(users[order], np.arange(1, n_users)))
