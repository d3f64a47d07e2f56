"""The estimators in the tools of other libraries.

Surprise: `SurpriseMFDMC`, `SurpriseFunkMF` and `SurpriseBayesianMF` are algorithms of that library, for its
`cross_validate`, `GridSearchCV` and `dump`. They take the settings of the estimator of that name as keyword arguments.
Surprise is imported when one of them is first asked for.

>>> from mfdmc_fast.adapters import SurpriseMFDMC  # doctest: +SKIP
>>> surprise.model_selection.cross_validate(SurpriseMFDMC(n_views=4), data, cv=5)  # doctest: +SKIP
>>> surprise.model_selection.GridSearchCV(SurpriseMFDMC, {"n_views": [4, 8]}).fit(data)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from mfdmc_fast.estimator import MFDMC, BayesianMF, FunkMF, RatingEstimator

_SURPRISE = {f"Surprise{kind.__name__}": kind for kind in (MFDMC, FunkMF, BayesianMF)}


@cache
def surprise_algorithm(kind: type[RatingEstimator]) -> type[Any]:
    """The class of Surprise algorithms that an estimator class becomes.

    An instance has its unfitted estimator in `estimator`, and from `fit` on the fitted one, on raw ids: `recommend`,
    `clusters` and `save` are there. Unknown users and items get what `RatingEstimator.predict` gives them.

    Args:
        kind: such as `MFDMC`.

    Raises:
        ImportError: Surprise is not installed (`pip install scikit-surprise`).
    """
    from surprise import AlgoBase, Prediction

    class Algorithm(AlgoBase):  # type: ignore[misc]
        def __init__(self, **settings: Any) -> None:
            AlgoBase.__init__(self)
            self.estimator = kind(**settings)

        def fit(self, trainset: Any) -> Any:
            AlgoBase.fit(self, trainset)
            users, items, ratings = zip(*trainset.all_ratings(), strict=True)
            raw_users = [trainset.to_raw_uid(user) for user in users]
            raw_items = [trainset.to_raw_iid(item) for item in items]
            self.estimator.fit((raw_users, raw_items, list(ratings)), rating_scale=trainset.rating_scale)
            return self

        def estimate(self, user: Any, item: Any) -> float:
            knows_user, knows_item = self.trainset.knows_user(user), self.trainset.knows_item(item)
            raw_user = self.trainset.to_raw_uid(user) if knows_user else None
            raw_item = self.trainset.to_raw_iid(item) if knows_item else None
            return float(self.estimator.predict([raw_user], [raw_item])[0])

        def test(self, testset: Sequence[tuple[Any, Any, float]], verbose: bool = False) -> list[Any]:
            # all pairs at once: a call of predict costs far more than a pair
            if not testset:
                return []
            users, items, ratings = zip(*testset, strict=True)
            estimates = self.estimator.predict(list(users), list(items)).tolist()
            rows = zip(users, items, ratings, estimates, strict=True)
            predictions = [Prediction(*row, {"was_impossible": False}) for row in rows]
            if verbose:
                print(*predictions, sep="\n")
            return predictions

    Algorithm.__doc__ = f"{kind.__name__} as an algorithm of Surprise; takes the same settings as keyword arguments."
    # so that pickle, which Surprise uses, finds the class in this module
    Algorithm.__module__, Algorithm.__name__ = __name__, f"Surprise{kind.__name__}"
    Algorithm.__qualname__ = Algorithm.__name__
    return Algorithm


def __getattr__(name: str) -> Any:
    if name in _SURPRISE:
        return surprise_algorithm(_SURPRISE[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_SURPRISE]
