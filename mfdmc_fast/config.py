"""Frozen, validated settings. One list of names and defaults for Python, the CLI, TOML files and model files.

The command line and the estimators take their options and defaults from here; `help` texts in the field metadata are
what `mfdmc train --help` shows. A loss weight is a number, or a schedule written `start:end:epochs`: linear from
`start` in the first epoch to `end` in epoch `epochs`, constant afterwards.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mfdmc_fast.errors import ConfigError

WeightSchedule = Union[float, str]


def _option(default: Any, description: str) -> Any:
    return field(default=default, metadata={"help": description})


def _rate(description: str, **unset: float) -> Any:
    """A learning rate whose default depends on the optimizer: `unset` has one for each; see `with_rates`."""
    defaults = ", ".join(f"{rate:g} with {optimizer}" for optimizer, rate in unset.items())
    return field(default=None, metadata={"help": f"{description}; unset: {defaults}", "unset": unset})


_MOST_CLUSTERS = 1 << 16  # of a view; the numbers of all are listed, also when a file is read


@dataclass(frozen=True)
class ModelConfig:
    """Settings that every model has."""

    validation_fraction: float = _option(0.0, "share of the ratings held out to watch each epoch; 0 = none")
    seed: int = _option(0, "seed of initial values, batches, draws and the validation split")
    backend: str = _option("auto", "family of kernels: auto, triton, cuda, cpu or reference")
    device: str = _option("cpu", "torch device of the parameters, such as cpu or cuda")

    def __post_init__(self) -> None:
        _coerce_fields(self)
        _require(0 <= self.validation_fraction < 1, "validation_fraction", self.validation_fraction, "in [0, 1)")
        # the device meta has no memory: what is computed there is lost
        _require(not self.device.startswith("meta"), "device", self.device, "one that holds numbers, such as cpu")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "in [0, 2**63)")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class TrainingConfig(ModelConfig):
    """Settings of training by gradients."""

    epochs: int = _option(60, "passes over the training ratings")
    batch_size: int | None = _option(
        None,
        "ratings per step; unset: the power of two nearest to 1/10 of the training ratings, with a teacher to 1/40 of"
        " the pairs, at least 1,024",
    )
    optimizer: Literal["adam", "adagrad"] = _option(
        "adam", "adam keeps two numbers for every parameter; adagrad (row-wise AdaGrad) one for a whole row of a table"
    )
    learning_rate_schedule: Literal["cosine", "constant", "one-cycle"] = _option(
        "cosine", "how learning rates change over the run"
    )
    rating_unit: float | None = _option(
        None,
        "rating points that count as 1 for learning rates, loss weights, margin and initial values; unset: a quarter of"
        " the width of the rating scale, so that the defaults fit every scale as they fit 1 to 5",
    )
    l2_count_power: float = _option(
        0.5,
        "the L2 pull of an entity with c training ratings grows as c to the power 1 - this: with 0, every rating pulls",
    )
    patience: int | None = _option(
        None, "stop after this many epochs without a better validation RMSE; unset: never stop early"
    )
    keep: Literal["last", "best"] = _option(
        "last", "which epoch's parameters the fitted model has; best = lowest validation RMSE"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.epochs >= 1, "epochs", self.epochs, "1 or more")
        _require(self.batch_size is None or self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        for name in _rates(self):
            _require(getattr(self, name) is None or getattr(self, name) > 0, name, getattr(self, name), "above 0")
        unit = self.rating_unit
        _require(unit is None or 0 < unit < math.inf, "rating_unit", unit, "above 0 and finite")
        _require(0 <= self.l2_count_power <= 1, "l2_count_power", self.l2_count_power, "in [0, 1]")
        _require(self.patience is None or self.patience >= 1, "patience", self.patience, "1 or more")


@dataclass(frozen=True)
class MFDMCConfig(TrainingConfig):
    """Settings of MFDMC. Defaults were chosen on a validation split of MovieLens-100k's u1.base; `l2_count_power` and
    `weight_proximity` on validation splits of five datasets.
    """

    n_views: int = _option(8, "independent clusterings of users and of items")
    n_clusters: int = _option(10, "clusters of each view before pruning")
    view_dim: int = _option(4, "length of one cluster center")
    combine: Literal["concat", "sum"] = _option("concat", "how the views form an embedding")
    biases: bool = _option(True, "add global mean, user and item biases to the dot product")
    center_scale: float = _option(1.09, "standard deviation of the initial centers")
    logit_scale: float = _option(0.12, "standard deviation of the initial assignment logits")
    learning_rate: float | None = _rate("learning rate of assignment logits", adam=0.03, adagrad=0.3)
    learning_rate_centers: float | None = _rate("learning rate of centers", adam=0.0094, adagrad=0.032)
    learning_rate_biases: float | None = _rate("learning rate of biases", adam=0.0075, adagrad=0.11)
    weight_spread: WeightSchedule = _option(0.025, "loss weight: centers of a view keep apart")
    spread_margin: float = _option(0.77, "distance from which on two centers do not repel each other")
    weight_proximity: WeightSchedule = _option("0:0.013:30", "loss weight: embeddings lie near their centers")
    weight_entropy: WeightSchedule = _option("0:0.094:30", "loss weight: assignments are sharp")
    weight_l2: WeightSchedule | None = _option(
        None,
        "loss weight: squared length of embeddings; unset: 8 / mean ratings of a user or item, with a"
        " teacher 0.9 / mean pairs",
    )
    weight_bias_l2: WeightSchedule = _option(0.015, "loss weight: squared biases")
    teacher: str | None = _option(
        None,
        "train on a teacher's predictions, not on the ratings: bayesian, or a file of a model or of predictions;"
        " unset: no teacher",
    )
    pairs_per_rating: float = _option(3.0, "pairs that the teacher is asked about, for each training rating")
    pair_smoothing: float = _option(
        10.0, "ratings that every user and item is taken to have more where these pairs are drawn"
    )
    prune: bool = _option(True, "remove poorly used clusters")
    prune_start: int = _option(40, "first epoch after which clusters are pruned")
    prune_threshold: float = _option(0.05, "clusters whose mean assignment weight is below this go")
    min_clusters: int = _option(2, "clusters that pruning leaves in every view")
    dtype: Literal["float32", "bfloat16", "float16"] = _option(
        "float32", "numbers of the tables while they are trained; those of 16 bits halve them, on a GPU only"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.n_clusters <= _MOST_CLUSTERS, "n_clusters", self.n_clusters, f"at most {_MOST_CLUSTERS}")
        for name in ("n_views", "n_clusters", "view_dim", "min_clusters", "prune_start"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _require(
            self.min_clusters <= self.n_clusters,
            "min_clusters",
            self.min_clusters,
            f"at most n_clusters ({self.n_clusters})",
        )
        for name in ("pairs_per_rating", "pair_smoothing"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("center_scale", "logit_scale", "spread_margin"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(0 <= self.prune_threshold < 1, "prune_threshold", self.prune_threshold, "in [0, 1)")
        for name in ("weight_spread", "weight_proximity", "weight_entropy", "weight_bias_l2"):
            weight_at(getattr(self, name), 1, name)
        l2_at(self, 1)


@dataclass(frozen=True)
class FunkMFConfig(TrainingConfig):
    """Settings of FunkMF: rating = global mean + biases + dot product of free factors, squared error with L2.

    Defaults were chosen by the same search on the same split as those of MFDMC; benchmarks/README.md counts the
    trials.
    """

    epochs: int = _option(40, "passes over the training ratings")
    n_factors: int = _option(128, "length of the user and item vectors")
    biases: bool = _option(True, "add global mean, user and item biases to the dot product")
    factor_scale: float = _option(0.0028, "standard deviation of the initial factors")
    learning_rate: float | None = _rate("learning rate of factors", adam=0.0016, adagrad=0.012)
    learning_rate_biases: float | None = _rate("learning rate of biases", adam=0.023, adagrad=0.13)
    weight_l2: WeightSchedule | None = _option(
        None, "loss weight: squared length of embeddings; unset: 4.5 / mean ratings of a user or item"
    )
    weight_bias_l2: WeightSchedule = _option(0.018, "loss weight: squared biases")

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.n_factors >= 1, "n_factors", self.n_factors, "1 or more")
        _require(self.factor_scale >= 0, "factor_scale", self.factor_scale, "0 or more")
        weight_at(self.weight_bias_l2, 1, "weight_bias_l2")
        l2_at(self, 1)


@dataclass(frozen=True)
class BayesianMFConfig(ModelConfig):
    """Settings of Bayesian matrix factorization by Gibbs sampling.

    Defaults were chosen on validation splits of MovieLens-100k's u1.base and of fold 1 of MovieLens-1M, those of `rank`
    on such splits of six datasets.
    """

    rank: int | None = _option(
        None,
        "length of the user and item vectors; unset: 8 where a user or item has fewer than 10 ratings on average, else"
        " 16; 32 where there are 500,000 ratings and 50 for each",
    )
    sweeps: int = _option(400, "draws of all parameters, one after the other")
    burn_in: int = _option(80, "first sweeps, which are not used")
    n_draws: int = _option(80, "draws that the model keeps, evenly spread over the sweeps after burn_in")
    implicit: bool = _option(
        True, "which items a user has rated, and which users an item, say something about their vectors"
    )

    noise_degrees: float = _option(
        20.0,
        "how alike users, and items, are in how exactly they are rated: degrees of freedom of the prior of their noise"
        " precisions, 2 or more; 0: all alike",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        degrees = self.noise_degrees
        _require(degrees == 0 or 2 <= degrees < 1e6, "noise_degrees", degrees, "0, or in [2, 1e6)")
        _require(self.rank is None or 1 <= self.rank <= 126, "rank", self.rank, "in [1, 126]")
        _require(self.sweeps >= 1, "sweeps", self.sweeps, "1 or more")
        _require(0 <= self.burn_in < self.sweeps, "burn_in", self.burn_in, f"in [0, sweeps = {self.sweeps})")
        _require(self.n_draws >= 1, "n_draws", self.n_draws, "1 or more")


_TAUGHT: dict[str, Any] = {
    "teacher": "bayesian",
    "center_scale": 0.6,
    "logit_scale": 0.3,
    "learning_rate": 0.1,
    "learning_rate_centers": 0.03,
    "learning_rate_biases": 0.02,
    "weight_spread": 0.05,
    "spread_margin": 1.0,
    "weight_bias_l2": 0.0,
}
_SHARP: dict[str, Any] = {
    **_TAUGHT,
    "epochs": 70,
    "n_clusters": 16,
    "view_dim": 8,
    "center_scale": 0.3,
    "logit_scale": 0.8,
    "learning_rate": 0.2,
    "learning_rate_centers": 0.025,
    "weight_spread": 0.066,
    "spread_margin": 0.73,
    "weight_entropy": "0:0.01:60",
    "weight_proximity": "0:0.0067:60",
    # many clusters, and pruning early at a low threshold: what goes is hardly missed, and the rest has time to settle
    "prune_start": 20,
    "prune_threshold": 0.04,
}
# named settings of MFDMC; what is not named keeps its default
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {},
    "accurate": {**_TAUGHT, "weight_entropy": 0.0, "weight_proximity": 0.0},
    # 16 views say in sharp assignments about what 8 say in soft ones; fewer views are less to read
    "balanced": {**_SHARP, "n_views": 16},
    "interpretable": {**_SHARP, "n_views": 10},
}


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset.

    Raises:
        ConfigError: unknown name; the message lists the known ones.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known are: {', '.join(PRESETS)}")
    return dict(PRESETS[name])


ConfigT = TypeVar("ConfigT", bound=ModelConfig)
TrainingConfigT = TypeVar("TrainingConfigT", bound=TrainingConfig)


def config_from_dict(kind: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
    """A config from plain values; unknown names raise `ConfigError` listing the known ones."""
    known = [f.name for f in dataclasses.fields(kind)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f"unknown setting {', '.join(unknown)}; known are: {', '.join(known)}")
    return kind(**values)


def weight_at(schedule: WeightSchedule, epoch: int, name: str = "weight") -> float:
    """Value of a loss weight in an epoch (the first is 1).

    Args:
        schedule: a number, or `start:end:epochs`.

    Raises:
        ConfigError: not a schedule, negative or not finite.
    """
    parts = schedule.split(":") if isinstance(schedule, str) else [schedule]
    try:
        numbers = [float(part) for part in parts]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (1, 3) or any(not math.isfinite(x) or x < 0 for x in numbers):
        raise ConfigError(f"{name} = {schedule!r}: write a number of 0 or more, or start:end:epochs such as 0:0.05:30")
    if len(numbers) == 1:
        return numbers[0]
    start, end, epochs = numbers
    progress = 1.0 if epochs <= 1 else min(1.0, (epoch - 1) / (epochs - 1))
    return start + (end - start) * progress


def with_rates(config: TrainingConfigT) -> TrainingConfigT:
    """The config with the learning rates that are unset filled in: the defaults of its optimizer."""
    unset: dict[str, Any] = {name: defaults[config.optimizer] for name, defaults in _rates(config).items()}
    return dataclasses.replace(config, **{name: rate for name, rate in unset.items() if getattr(config, name) is None})


def with_unit(config: TrainingConfigT, scale: tuple[float, float]) -> TrainingConfigT:
    """The config with `rating_unit` filled in where it is unset: a quarter of the width of the rating scale.

    Args:
        config: settings of a model.
        scale: lowest and highest rating; the unit is 1 where they are the same.
    """
    if config.rating_unit is not None:
        return config
    return dataclasses.replace(config, rating_unit=(scale[1] - scale[0]) / 4 or 1.0)


def unit_of(config: TrainingConfig) -> float:
    """`rating_unit`, or 1 where it is unset and no rating scale is known."""
    return 1.0 if config.rating_unit is None else config.rating_unit


def with_l2(config: TrainingConfigT, n_ratings: int, n_entities: int) -> TrainingConfigT:
    """The config with `weight_l2` filled in where it is unset.

    The L2 terms are means over the batch's ratings: an entity with c ratings is pulled to 0 with c * weight_l2. A
    Gaussian prior asks for the same pull whatever c is; with one weight for all entities, that is a weight that falls
    as 1 / (mean ratings of an entity). The pull itself was chosen on a validation split of u1.base, where 80,000
    ratings of 2,593 entities give the weights 0.13 (MFDMC) and 0.112 (FunkMF).

    Args:
        config: settings of either model.
        n_ratings: training ratings.
        n_entities: users and items together.
    """
    if not isinstance(config, MFDMCConfig | FunkMFConfig) or config.weight_l2 is not None:
        return config
    taught = isinstance(config, MFDMCConfig) and config.teacher is not None
    pull = _TAUGHT_L2_PULL if taught else _L2_PULL[type(config)]
    return dataclasses.replace(config, weight_l2=pull * n_entities / (2 * n_ratings))


def with_rank(config: BayesianMFConfig, n_ratings: int, n_entities: int) -> BayesianMFConfig:
    """The config with `rank` filled in where it is unset.

    Few ratings an entity say little about it, whatever the rank, and a sweep's cost grows with the entities times
    rank³; many ratings carry more than 16 numbers. With rank 32 a student of few pairs a user fits what it cannot know.

    Args:
        config: settings of the model.
        n_ratings: training ratings.
        n_entities: users and items together.
    """
    if config.rank is not None:
        return config
    per_entity = 2 * n_ratings / n_entities
    many = n_ratings >= 500_000 and per_entity >= 50
    return dataclasses.replace(config, rank=8 if per_entity < 10 else 32 if many else 16)


def l2_at(config: MFDMCConfig | FunkMFConfig, epoch: int) -> float:
    """`weight_l2` in an epoch; where it is unset and no ratings are known, its value on u1.base."""
    if config.weight_l2 is None:
        return _L2_PULL[type(config)] / 61.7  # 2 * 80,000 / 2,593 ratings of an entity
    return weight_at(config.weight_l2, epoch, "weight_l2")


# a teacher's predictions are many and free of noise, but a user's few pairs do not fix all numbers of an embedding
_TAUGHT_L2_PULL = 0.9
_L2_PULL: dict[type[TrainingConfig], float] = {MFDMCConfig: 8.0, FunkMFConfig: 4.5}


def _rates(config: TrainingConfig) -> dict[str, Mapping[str, float]]:
    """The learning rates of a config by name, each with its defaults by optimizer."""
    return {f.name: f.metadata["unset"] for f in dataclasses.fields(config) if "unset" in f.metadata}


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{name} = {value!r}: must be {allowed}")


def _coerce_fields(config: ModelConfig) -> None:
    """Check each field against its annotation; integers and numeric scalars of numpy become plain Python numbers."""
    hints = get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value = _coerce(f.name, getattr(config, f.name), hints[f.name])
        object.__setattr__(config, f.name, value)


def _coerce(name: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        _require(
            isinstance(value, str) and value in get_args(hint),
            name,
            value,
            "one of " + ", ".join(map(repr, get_args(hint))),
        )
        return value
    kinds = get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    item = getattr(value, "item", None)  # numpy and torch scalars
    if callable(item) and not isinstance(value, (int, float, str)):
        try:
            value = item()
        except (TypeError, ValueError, RuntimeError):
            raise ConfigError(f"{name} = {value!r}: must be a single value") from None
    if isinstance(value, bool):
        _require(bool in kinds, name, value, "a number" if {int, float} & set(kinds) else "a text")
        return value
    if int in kinds and isinstance(value, int):
        return value
    if int in kinds and isinstance(value, float) and value.is_integer():
        return int(value)
    if float in kinds and isinstance(value, (int, float)):
        _require(abs(value) <= sys.float_info.max, name, value, "finite")
        return float(value)
    if str in kinds and isinstance(value, str):
        return value
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false", type(None): "unset"}
    raise ConfigError(f"{name} = {value!r}: must be {' or '.join(names[kind] for kind in kinds)}")
