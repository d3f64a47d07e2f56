"""The estimator of the paper's model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

from mfdmc_fast.bayesian import SideFeatures
from mfdmc_fast.checkpoints import Checkpoints, digest
from mfdmc_fast.config import MFDMCConfig, WeightSchedule, config_from_dict, preset
from mfdmc_fast.data import Features, RatingsDataset, StreamedRatings, Vocabulary, read_features
from mfdmc_fast.distributed import Processes, alone
from mfdmc_fast.errors import ConfigError
from mfdmc_fast.estimator.base import RatingEstimator
from mfdmc_fast.estimator.teachers import PAIRS, check_lessons, lessons, teacher_identity, teacher_name, uses_features
from mfdmc_fast.history import TrainingHistory
from mfdmc_fast.interpret.affinity import view_pairs
from mfdmc_fast.interpret.cards import ClusterCards, cluster_cards
from mfdmc_fast.interpret.explain import Explanation, explain_rows
from mfdmc_fast.interpret.profile import Profile, profile_row
from mfdmc_fast.model import SIDES, MFDMCModel, SideName
from mfdmc_fast.serialization import FittedState
from mfdmc_fast.training import Callback, digest_of


class MFDMC(RatingEstimator):
    """Matrix factorization with dynamic multi-view clustering (MFDMC, arXiv:2504.14565) for explicit ratings.
    Every user and item is, in each of `n_views` views, a softmax-weighted mix of `n_clusters` learnable centers (Eq. 2
    of the paper); a rating is the dot product of two embeddings. The loss is squared error plus the paper's spread,
    proximity and entropy terms; from epoch `prune_start` on, clusters whose mean weight is under `prune_threshold` are
    removed. Biases, L2 terms, the exact form of the three terms and all default values are this project's, because the
    paper leaves them open; see README.md.

    All settings are keyword arguments; their meaning and defaults are those of `mfdmc_fast.config.MFDMCConfig`.

    >>> model = MFDMC(seed=1).fit("ratings.csv")  # doctest: +SKIP
    >>> model.recommend(user=42, n=5).items  # doctest: +SKIP
    """

    _config_class = MFDMCConfig
    _model_class = MFDMCModel

    def __init__(
        self,
        *,
        n_views: int = MFDMCConfig.n_views,
        n_clusters: int = MFDMCConfig.n_clusters,
        view_dim: int = MFDMCConfig.view_dim,
        combine: Literal["concat", "sum"] = MFDMCConfig.combine,
        biases: bool = MFDMCConfig.biases,
        center_scale: float = MFDMCConfig.center_scale,
        logit_scale: float = MFDMCConfig.logit_scale,
        epochs: int = MFDMCConfig.epochs,
        batch_size: int | None = MFDMCConfig.batch_size,
        optimizer: Literal["adam", "adagrad"] = MFDMCConfig.optimizer,
        learning_rate: float | None = MFDMCConfig.learning_rate,
        learning_rate_centers: float | None = MFDMCConfig.learning_rate_centers,
        learning_rate_biases: float | None = MFDMCConfig.learning_rate_biases,
        learning_rate_schedule: Literal["cosine", "constant", "one-cycle"] = MFDMCConfig.learning_rate_schedule,
        weight_spread: WeightSchedule = MFDMCConfig.weight_spread,
        spread_margin: float = MFDMCConfig.spread_margin,
        weight_proximity: WeightSchedule = MFDMCConfig.weight_proximity,
        weight_entropy: WeightSchedule = MFDMCConfig.weight_entropy,
        weight_l2: WeightSchedule | None = MFDMCConfig.weight_l2,
        rating_unit: float | None = MFDMCConfig.rating_unit,
        l2_count_power: float = MFDMCConfig.l2_count_power,
        weight_bias_l2: WeightSchedule = MFDMCConfig.weight_bias_l2,
        teacher: Any = MFDMCConfig.teacher,
        pairs_per_rating: float = MFDMCConfig.pairs_per_rating,
        pair_smoothing: float = MFDMCConfig.pair_smoothing,
        prune: bool = MFDMCConfig.prune,
        prune_start: int = MFDMCConfig.prune_start,
        prune_threshold: float = MFDMCConfig.prune_threshold,
        min_clusters: int = MFDMCConfig.min_clusters,
        dtype: Literal["float32", "bfloat16", "float16"] = MFDMCConfig.dtype,
        validation_fraction: float = MFDMCConfig.validation_fraction,
        patience: int | None = MFDMCConfig.patience,
        keep: Literal["last", "best"] = MFDMCConfig.keep,
        seed: int = MFDMCConfig.seed,
        backend: str = MFDMCConfig.backend,
        device: str = MFDMCConfig.device,
    ) -> None:
        self.n_views = n_views
        self.n_clusters = n_clusters
        self.view_dim = view_dim
        self.combine = combine
        self.biases = biases
        self.center_scale = center_scale
        self.logit_scale = logit_scale
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.learning_rate_centers = learning_rate_centers
        self.learning_rate_biases = learning_rate_biases
        self.learning_rate_schedule = learning_rate_schedule
        self.weight_spread = weight_spread
        self.spread_margin = spread_margin
        self.weight_proximity = weight_proximity
        self.weight_entropy = weight_entropy
        self.weight_l2 = weight_l2
        self.rating_unit = rating_unit
        self.l2_count_power = l2_count_power
        self.weight_bias_l2 = weight_bias_l2
        self.teacher = teacher
        self.pairs_per_rating = pairs_per_rating
        self.pair_smoothing = pair_smoothing
        self.prune = prune
        self.prune_start = prune_start
        self.prune_threshold = prune_threshold
        self.min_clusters = min_clusters
        self.dtype = dtype
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.keep = keep
        self.seed = seed
        self.backend = backend
        self.device = device

    @classmethod
    def preset(cls, name: str, **settings: Any) -> Self:
        """An estimator with named settings: `fast` (the defaults), `accurate`, `balanced` or `interpretable`.

        `fast` trains on the ratings, the others learn from a Bayesian teacher: `accurate` for the lowest RMSE,
        `balanced` and `interpretable` with sharp assignments, in 16 views and in 10.

        Args:
            name: of the preset.
            settings: win over those of the preset.
        """
        return cls(**{**preset(name), **settings})

    def clusters(self, side: SideName, *, top: int = 5, users: Any = None, items: Any = None) -> ClusterCards:
        """Cards of the surviving clusters of a side, by view: members, labels, what they attract, a name.

        Args:
            side: `user` or `item`.
            top: members on a card.
            users, items: what is known of users and of items, anything `read_features` takes; a source with titles and
                no labels will do. Labels and titles of the side come from its own; names of what a cluster attracts
                from those of the other side.

        Returns:
            A list of `ClusterCard` with a method `to_table`.
        """
        _check_side(side)
        return self._cards(users, items, top)[side]

    def profile(self, entity: Any, side: SideName = "user", *, users: Any = None, items: Any = None) -> Profile:
        """Which roles a user (or item) has in each view; `str` of it says so in words.

        Args:
            entity: a raw id; an unknown one has no views.
            side: `user` or `item`.
            users, items: as in `clusters`.
        """
        state = self._state()
        _check_side(side)
        known: dict[SideName, Features | None] = {
            "user": None if users is None else read_features(users, labels_needed=False),
            "item": None if items is None else read_features(items, labels_needed=False),
        }
        vocabulary, _ = _side_of(state, side)
        row = int(vocabulary.encode([entity])[0])
        features = known[side]
        title = str(entity) if row < 0 or features is None else features.titles_of(vocabulary)[row]
        ratings = 0
        if row >= 0:
            seen = state.seen
            found = seen.offsets[row + 1] - seen.offsets[row] if side == "user" else (seen.items == row).sum()
            ratings = int(found)
        model: Any = state.model
        return profile_row(model, side, row, entity, title, ratings, self._cards(known["user"], known["item"], 0)[side])

    def _cards(self, users: Any, items: Any, top: int) -> dict[SideName, ClusterCards]:
        state = self._state()
        model: Any = state.model
        features: dict[SideName, Features | None] = {}
        for name, source in zip(SIDES, (users, items), strict=True):
            features[name] = None if source is None else read_features(source, labels_needed=False)
        return cluster_cards(model, {"user": state.users, "item": state.items}, features, top=top)

    def memberships(self, side: SideName, ids: Any = None) -> list[npt.NDArray[np.float32]]:
        """Assignment weights of entities, one [n, K_v] array a view, columns as in `clusters`; rows sum to 1.

        Args:
            side: `user` or `item`.
            ids: raw ids, or None for all in the order of `users_.ids` / `items_.ids`. Unknown ids get NaN rows.
        """
        state = self._state()
        vocabulary, module = _side_of(state, side)
        rows = np.arange(len(vocabulary)) if ids is None else vocabulary.encode(ids)
        views = []
        for weights in module.assignment_weights():
            chosen = weights.cpu().numpy()[rows]
            chosen[rows < 0] = np.nan
            views.append(chosen)
        return views

    def explain(self, user: Any, item: Any, *, centered: bool = False) -> Explanation:
        """Split a predicted rating exactly: global mean + user bias + item bias + Σ w_uk · w_il · <c_k, c_l> over the
        pairs of clusters that meet (each view its counterpart with `concat`, every view every other with `sum`).

        Args:
            user, item: raw ids. An unknown one is explained by the fallback that `predict` uses for it.
            centered: put what a cluster adds on average, over the clusters of the other side by their usage, into mean
                and biases, so that a contribution says how the two clusters fit together; the sum stays the same. The
                products of centers themselves hold both.
        """
        state = self._state()
        user_idx, item_idx = self._rows([user], [item])
        model: Any = state.model
        rows = int(user_idx[0]), int(item_idx[0])
        pairs = view_pairs(model) if centered else None
        return explain_rows(model, rows, (user, item), state.rating_scale, centered=pairs)

    @property
    def takes_features(self) -> bool:
        """Through a teacher that is fitted together with it and takes them."""
        return uses_features(self.teacher)

    @property
    def _streams(self) -> bool:
        return self.teacher is None

    def _named(self) -> str:
        return f"MFDMC {'without a teacher' if self.teacher is None else 'with this teacher'}"

    def _config(self) -> Any:
        return config_from_dict(MFDMCConfig, {**self.get_params(deep=False), "teacher": teacher_name(self.teacher)})

    def _train(
        self,
        model: Any,
        train: Any,
        validation: RatingsDataset | None,
        callbacks: Sequence[Callback],
        scale: tuple[float, float],
        features: SideFeatures,
        checkpoints: Checkpoints | None,
    ) -> TrainingHistory:
        if self.teacher is None:
            return super()._train(model, train, validation, callbacks, scale, features, checkpoints)
        try:
            pairs, seconds = self._lessons_for_all(model.config, train, callbacks, scale, features, checkpoints)
        except BaseException:
            for callback in callbacks:
                callback.close()
            raise
        history = super()._train(model, pairs, validation, callbacks, scale, features, checkpoints)
        history.teacher_seconds = seconds
        history.seconds += seconds
        return history

    def _lessons_for_all(
        self,
        config: MFDMCConfig,
        train: RatingsDataset,
        callbacks: Sequence[Callback],
        scale: tuple[float, float],
        features: SideFeatures,
        checkpoints: Checkpoints | None,
    ) -> tuple[RatingsDataset, float]:
        """`_lessons`, given by process 0 alone; the others wait for its word after every sweep."""
        processes = Processes.current()
        if processes.size == 1:
            return self._lessons(config, train, callbacks, scale, features, checkpoints)
        if processes.is_first:
            with alone():
                telling = [*callbacks, _StillTeaching(processes)]
                pairs, seconds = self._lessons(config, train, telling, scale, features, checkpoints)
            processes.from_first([len(pairs), seconds])
            users, items, ratings = pairs.user_idx, pairs.item_idx, pairs.ratings
        else:
            while (told := processes.from_first(None)) is None:
                pass
            n, seconds = told
            users, items, ratings = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.float32)
        for column in (users, items, ratings):
            processes.broadcast_(torch.from_numpy(column))
        return RatingsDataset(users, items, ratings, train.users, train.items), seconds

    def _lessons(
        self,
        config: MFDMCConfig,
        train: RatingsDataset,
        callbacks: Sequence[Callback],
        scale: tuple[float, float],
        features: SideFeatures,
        checkpoints: Checkpoints | None,
    ) -> tuple[RatingsDataset, float]:
        """What the teacher teaches, from it or from a checkpoint, and the seconds that it took."""
        if checkpoints is not None:
            known = [array for blocks in features for block in blocks for array in block]
            checkpoints.identify(
                **{"rating scale": list(scale), "teacher": teacher_identity(self.teacher)},
                **{"training ratings": digest_of(train), "features": digest(known) if known else None},
            )
            saved = checkpoints.load("teacher", lambda found: check_lessons(found, train))
            if saved is not None:
                for callback in callbacks:
                    callback.on_resume(0, str(saved.path))
                users, items, ratings = (saved.tensors[name].numpy() for name in PAIRS)
                return RatingsDataset(users, items, ratings, train.users, train.items), float(saved.state["seconds"])

        def tell(sweep: int, sweeps: int) -> None:
            for callback in callbacks:
                callback.on_teacher_sweep(sweep, sweeps)

        start = time.perf_counter()
        pairs = lessons(self.teacher, config, train, scale, features, tell)
        seconds = time.perf_counter() - start
        if checkpoints is not None:
            columns = (torch.from_numpy(column) for column in (pairs.user_idx, pairs.item_idx, pairs.ratings))
            checkpoints.save("teacher", {"seconds": seconds}, dict(zip(PAIRS, columns, strict=True)))
        return pairs, seconds

    def _new_model(self, config: Any, train: RatingsDataset | StreamedRatings) -> Any:
        smaller, name = min((len(train.users), "users"), (len(train.items), "items"))
        if self.n_clusters > smaller:
            raise ConfigError(
                f"n_clusters = {self.n_clusters}, but the training ratings have only {smaller} {name};"
                f" set n_clusters to {smaller} or less"
            )
        return super()._new_model(config, train)


class _StillTeaching(Callback):
    """Lets other processes, which wait for a teacher, know that it is at work."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def on_teacher_sweep(self, sweep: int, sweeps: int) -> None:
        self._processes.from_first(None)


def _check_side(side: str) -> None:
    if side not in SIDES:
        raise ConfigError(f"side = {side!r}: must be 'user' or 'item'")


def _side_of(state: FittedState, side: SideName) -> tuple[Vocabulary, Any]:
    _check_side(side)
    return (state.users if side == "user" else state.items), state.model.prunable_sides()[side]
