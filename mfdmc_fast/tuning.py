"""A seeded search for settings on validation ratings: search spaces, and the search by Optuna's TPE sampler.

As many trials are the same budget for every model. Needs optuna: `pip install 'mfdmc_fast[tune]'`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sklearn.base import clone

from mfdmc_fast.config import config_from_dict, with_l2
from mfdmc_fast.data import Ratings, Vocabulary, read_features, read_ratings
from mfdmc_fast.errors import ClustersCollapsed, ConfigError, TrainingDiverged
from mfdmc_fast.estimator import MFDMC, BayesianMF, FunkMF, RatingEstimator
from mfdmc_fast.estimator.teachers import BAYESIAN, learns_afresh

# epochs over which a loss weight that comes in slowly reaches its value
RAMP_EPOCHS = 30


class Range(NamedTuple):
    """Numbers to try, of three significant digits.

    Attributes:
        low, high: limits.
        log: equal ratios, not equal differences, are equally likely.
        ramp: the number is the end of a schedule `0:end:RAMP_EPOCHS`.
    """

    low: float
    high: float
    log: bool = True
    ramp: bool = False


class Choice(NamedTuple):
    """Values to try."""

    values: tuple[Any, ...]


Space = dict[str, Range | Choice]


@dataclass(frozen=True)
class Trial:
    """One training of the search.

    Attributes:
        settings: of the trial; what is not named has its default.
        rmse: on the validation ratings; None where training diverged.
        seconds: wall time; 0 where the same settings had been tried before.
    """

    settings: dict[str, Any]
    rmse: float | None
    seconds: float


@dataclass(frozen=True)
class TuningResult:
    """What a search found.

    Attributes:
        settings: the best; what is not named has its default.
        rmse: theirs on the validation ratings.
        start_rmse: that of the settings the search began with, its first trial; None where they diverged.
        trials: all of them, in order.
        interrupted: by Ctrl-C, before all trials were done.
    """

    settings: dict[str, Any]
    rmse: float
    start_rmse: float | None
    trials: list[Trial]
    interrupted: bool


def search_space(
    estimator_class: type[RatingEstimator], *, taught: bool = False, optimizer: str = "adam", weight_l2: float = 0.12
) -> Space:
    """The settings that a search varies.

    Args:
        estimator_class: MFDMC, FunkMF or BayesianMF.
        taught: an MFDMC that learns from a teacher. The teacher itself is not varied, as it is what takes longest.
        optimizer: adam or adagrad, whose learning rates are far apart.
        weight_l2: around which the L2 weight is sought: what `with_l2` gives for the training ratings.
    """
    if issubclass(estimator_class, BayesianMF):
        return {
            "rank": Choice((4, 6, 8, 12, 16, 24, 32)),
            "implicit": Choice((True, False)),
            "noise_degrees": Choice((0.0, 5.0, 10.0, 20.0, 50.0)),
        }
    faster = optimizer == "adagrad"
    l2 = Range(0.6 * weight_l2, 1.5 * weight_l2, log=False)
    if issubclass(estimator_class, FunkMF):
        return {
            "n_factors": Choice((16, 32, 64, 128)),
            "factor_scale": Range(0.001, 0.3),
            "learning_rate": Range(0.01, 0.5) if faster else Range(0.0005, 0.03),
            "learning_rate_biases": Range(0.03, 1.0) if faster else Range(0.003, 0.06),
            "weight_l2": l2,
            "l2_count_power": Range(0.1, 0.9, log=False),
            "weight_bias_l2": Range(0.001, 0.05),
        }
    if not issubclass(estimator_class, MFDMC):
        raise ConfigError(f"there is no search space for {estimator_class.__name__}")
    rates: Space = {
        "learning_rate": Range(0.05, 2.0) if faster else Range(0.015, 0.3 if taught else 0.2),
        "learning_rate_centers": Range(0.01, 0.5) if faster else Range(0.003, 0.1 if taught else 0.04),
        "learning_rate_biases": Range(0.02, 0.5) if faster else Range(0.004, 0.04),
    }
    if taught:  # predictions of a teacher have no noise, which makes weak loss terms enough
        return {
            **rates,
            "center_scale": Range(0.2, 1.4),
            "logit_scale": Range(0.05, 1.2),
            "spread_margin": Range(0.2, 1.5, log=False),
            "weight_spread": Range(0.01, 0.2),
            "weight_proximity": Range(0.0003, 0.03, ramp=True),
            "weight_entropy": Range(0.0005, 0.1, ramp=True),
        }
    return {
        **rates,
        "center_scale": Range(0.6, 1.4, log=False),
        "logit_scale": Range(0.05, 1.2),
        "spread_margin": Range(0.2, 1.5, log=False),
        "weight_spread": Range(0.01, 0.2),
        "weight_proximity": Range(0.003, 0.05, ramp=True),
        "weight_entropy": Range(0.01, 0.3, ramp=True),
        "weight_l2": l2,
        "l2_count_power": Range(0.1, 0.9, log=False),
        "weight_bias_l2": Range(0.01, 0.05),
    }


def tune(
    estimator_class: type[RatingEstimator],
    train: Any,
    validation: Any,
    trials: int = 30,
    seed: int = 0,
    *,
    start: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
    space: Space | None = None,
    rating_scale: tuple[float, float] | None = None,
    user_features: Any = None,
    item_features: Any = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> TuningResult:
    """Search for the settings with the lowest RMSE on validation ratings.

    The first trial has the settings `start`, so the result is never worse than them on these ratings. A teacher that
    is fitted together with its student is fitted once, for all trials. The same arguments give the same result.

    Args:
        estimator_class: MFDMC, FunkMF or BayesianMF.
        train: ratings to train on; anything `read_ratings` takes.
        validation: ratings to judge by; they must not be those that the result is reported on.
        trials: how many trainings.
        seed: of the search, and of every training unless `fixed` or `start` has one.
        start: settings to begin with; those that are searched are replaced in the other trials.
        fixed: settings that all trials have.
        space: default: `search_space`.
        rating_scale, user_features, item_features: as in `RatingEstimator.fit`.
        on_trial: called with each finished trial.

    Raises:
        ConfigError: optuna is missing, or a setting is wrong, or a teacher that has been fitted before.
        TrainingDiverged: in every trial.
        KeyboardInterrupt: before the first trial was done; later the best so far is returned.
    """
    if trials < 1:
        raise ConfigError(f"trials = {trials}: must be 1 or more")
    fixed = {"seed": seed, **(fixed or {})}
    base = {"seed": seed, **(start or {}), **fixed}
    teacher = base.get("teacher")
    if not learns_afresh(teacher):
        raise ConfigError(
            "a teacher that is already fitted may have seen the validation ratings; tuning takes teacher='bayesian' or"
            " unfitted estimators"
        )
    first = estimator_class(**base)
    first._config()  # wrong settings are told before anything is read
    first._check_features(user_features, item_features)
    _optuna()  # a missing package is told before anything is read, too
    ratings = read_ratings(train, rating_scale=rating_scale)
    watched = read_ratings(validation, rating_scale=rating_scale)
    features = {"user_features": user_features, "item_features": item_features}
    features = {name: read_features(source) for name, source in features.items() if source is not None}
    options: dict[str, Any] = {"rating_scale": rating_scale}
    space = space_for(estimator_class, base, ratings) if space is None else space
    space = {name: values for name, values in space.items() if name not in fixed}

    done: list[Trial] = []
    tried: dict[str, float | None] = {}
    shared: RatingEstimator | None = None

    def evaluate(proposed: dict[str, Any]) -> float | None:
        settings = {**base, **proposed}
        begin, key = time.perf_counter(), repr(sorted(settings.items(), key=lambda pair: pair[0]))
        if key not in tried:
            estimator = estimator_class(**settings)
            if shared is not None:
                estimator.set_params(teacher=shared)
            tried[key] = _rmse(estimator, ratings, watched, options)
        done.append(Trial(settings, tried[key], time.perf_counter() - begin))
        on_trial(done[-1])
        return tried[key]

    interrupted = False
    try:
        shared = _shared_teacher(first, ratings, {**options, **features})
        if shared is None:
            options |= features
        search(space, trials, seed, evaluate)
    except KeyboardInterrupt:
        interrupted = True
        if not any(trial.rmse is not None for trial in done):
            raise
    best = min((trial for trial in done if trial.rmse is not None), key=lambda t: t.rmse or 0.0, default=None)
    if best is None or best.rmse is None:
        raise TrainingDiverged(f"all {trials} trials diverged; lower the learning rates or rescale the ratings")
    return TuningResult(best.settings, best.rmse, done[0].rmse, done, interrupted)


def search(
    space: Space, trials: int, seed: int, evaluate: Callable[[dict[str, Any]], float | None]
) -> list[tuple[dict[str, Any], float | None]]:
    """Minimise over a space with Optuna's TPE sampler.

    The same arguments, with an `evaluate` that gives the same values, propose the same settings.

    Args:
        space: what may vary.
        trials: how many settings to try.
        seed: of the sampler.
        evaluate: settings → value, or None where they fail. The first trial has no settings: the defaults.

    Returns:
        Settings and value of every trial, in order.

    Raises:
        ConfigError: optuna is missing.
    """
    study = _study(seed, trials)
    done: list[tuple[dict[str, Any], float | None]] = []
    while len(done) < trials:
        asked = study.ask() if done and space else None
        settings = {} if asked is None else _propose(asked, space)
        value = evaluate(settings)
        if asked is not None:
            _tell(study, asked, value)
        done.append((settings, value))
    return done


def _optuna() -> Any:
    """The package; ConfigError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("tuning needs optuna; install it with: pip install 'mfdmc_fast[tune]'") from error
    return optuna


def _study(seed: int, trials: int) -> Any:
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # a third at random, as in the trials that chose the defaults at most 20
    sampler = optuna.samplers.TPESampler(seed=seed % 2**32, n_startup_trials=min(20, max(1, trials // 3)))
    return optuna.create_study(sampler=sampler)


def _tell(study: Any, trial: Any, rmse: float | None) -> None:
    if rmse is None:
        study.tell(trial, state=_optuna().trial.TrialState.FAIL)
    else:
        study.tell(trial, rmse)


def _propose(trial: Any, space: Space) -> dict[str, Any]:
    """Settings from a search space, proposed by an Optuna trial."""
    settings: dict[str, Any] = {}
    for name, values in space.items():
        if isinstance(values, Choice):
            settings[name] = trial.suggest_categorical(name, values.values)
        else:
            number = f"{trial.suggest_float(name, values.low, values.high, log=values.log):.3g}"
            settings[name] = f"0:{number}:{RAMP_EPOCHS}" if values.ramp else float(number)
    return settings


def space_for(estimator_class: type[RatingEstimator], base: Mapping[str, Any], ratings: Ratings) -> Space:
    """`search_space` for an estimator with the settings `base`, trained on `ratings`."""
    config = estimator_class(**base)._config()
    if issubclass(estimator_class, BayesianMF):
        return search_space(estimator_class)
    taught = base.get("teacher") is not None
    n_entities = len(Vocabulary.from_values(ratings.users)) + len(Vocabulary.from_values(ratings.items))
    plain = config_from_dict(type(config), {"weight_l2": None})
    weight_l2 = float(with_l2(plain, len(ratings), n_entities).weight_l2)
    return search_space(estimator_class, taught=taught, optimizer=config.optimizer, weight_l2=weight_l2)


def _shared_teacher(student: RatingEstimator, ratings: Ratings, options: Mapping[str, Any]) -> RatingEstimator | None:
    """The teacher of all trials, fitted here once; None where there is none, or one that this cannot be done with."""
    teacher = getattr(student, "teacher", None)
    if isinstance(teacher, str) and teacher == BAYESIAN:
        teacher = BayesianMF(seed=student.seed, backend=student.backend)
    return clone(teacher).fit(ratings, **options) if isinstance(teacher, RatingEstimator) else None


def _rmse(
    estimator: RatingEstimator, ratings: Ratings, validation: Ratings, options: Mapping[str, Any]
) -> float | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClustersCollapsed)  # a trial may show what its settings lead to
            return estimator.fit(ratings, **options).evaluate(validation)["rmse"]
    except TrainingDiverged:
        return None
