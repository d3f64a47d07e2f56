"""The oracle of the Gibbs sampler: Bayesian matrix factorization in float64, one conditional after the other.

It favours being obviously right over being fast. README.md of this folder has the model and its conditionals. The
random numbers are those of the C++ sampler, in the same places, so that both follow the same trajectory but for
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mfdmc_fast.ops.types import FeatureBags

PRIOR_SHAPE, PRIOR_RATE = 1.0, 1.0
FIRST_PRECISION, FIRST_WEIGHT_PRECISION, FIRST_SCALE = 5.0, 50.0, 0.1
START, ROWS, PRIOR, FEATURES, NOISE, WEIGHTS = range(6)  # what random numbers are for

GOLDEN = 0x9E3779B97F4A7C15
ALL_BITS = (1 << 64) - 1


def mix(x: Any) -> Any:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014), of an integer or of an array of uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & ALL_BITS
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & ALL_BITS
    return x ^ (x >> 31)


def random_at(key: int, index: Any) -> Any:
    """Numbers `index` (an integer or an array of uint64) of SplitMix64's sequence from `key` on, 64 bits each."""
    return mix((index + 1) * GOLDEN + key & ALL_BITS)


def normals(key: int, index: npt.NDArray[np.uint64]) -> tuple[Tensor, Tensor]:
    """Two standard normal numbers for each index by Box and Muller, from one random number of 64 bits."""
    bits = random_at(key, index)
    uniform = ((bits >> 41) + 0.5) * 2.0**-23
    turns = bits.astype(np.uint32).view(np.int32) * 2.0**-32
    radius = np.sqrt(-2 * np.log(uniform))
    return torch.from_numpy(radius * np.cos(2 * np.pi * turns)), torch.from_numpy(radius * np.sin(2 * np.pi * turns))


class Stream:
    """Random numbers one after the other."""

    def __init__(self, key: int) -> None:
        self._key, self._next = key, 0

    def uniform(self) -> float:
        """In (0, 1)."""
        self._next += 1
        return (int(random_at(self._key, self._next - 1) >> 12) + 0.5) * 2.0**-52

    def normal(self) -> float:
        """Standard normal, by Box and Muller."""
        radius = math.sqrt(-2 * math.log(self.uniform()))
        return radius * math.cos(2 * math.pi * self.uniform())

    def gamma(self, shape: float, rate: float) -> float:
        """By Marsaglia and Tsang, 2000; shape >= 1."""
        d = shape - 1 / 3
        c = 1 / math.sqrt(9 * d)
        while True:
            x = self.normal()
            v = (1 + c * x) ** 3
            if v > 0 and math.log(self.uniform()) < 0.5 * x**2 + d - d * v + d * math.log(v):
                return d * v / rate


class Block:
    """One block of F features of a side with n entities, and their weights.

    An entity's bag holds each of its features with the weight 1 / sqrt(features of the entity); one that it has more
    than once, as often.
    """

    def __init__(self, bags: FeatureBags, n: int, unit: Tensor) -> None:
        scale = 1 / np.sqrt(np.bincount(bags.entities, minlength=n).clip(1))
        self.features = []  # for each: distinct entities [c] and their column of the design matrix [c, 1]
        for of_feature in np.split(bags.entities, bags.offsets[1:-1]):
            entities, times = np.unique(of_feature, return_counts=True)
            self.features.append((torch.from_numpy(entities), torch.from_numpy(times * scale[entities])[:, None]))
        self.weights = torch.zeros(len(self.features), len(unit), dtype=torch.float64)  # [F, rank + 1]
        self.precision = FIRST_WEIGHT_PRECISION / unit  # [rank + 1]


class Ratings(NamedTuple):
    """The ratings of one entity: rows of the other side [c] and rating points [c]."""

    partners: Tensor
    ratings: Tensor


class Side:
    """One side of the model: its ratings, its rows as drawn last, and their prior."""

    def __init__(self, offsets: Tensor, partners: Tensor, ratings: Tensor, unit: Tensor) -> None:
        self.n, width = len(offsets) - 1, len(unit)
        counts = offsets.diff().tolist()
        self.ratings = [Ratings(*both) for both in zip(partners.split(counts), ratings.split(counts), strict=True)]
        self.rows = torch.zeros(self.n, width, dtype=torch.float64)  # factors, then the bias
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.precision = FIRST_PRECISION / unit  # [rank + 1]
        self.weights = torch.ones(self.n, dtype=torch.float64)  # of the noise precision of each row's ratings
        self.blocks: list[Block] = []

    def explained(self) -> Tensor:
        """[n, rank + 1] what the features say of the rows."""
        out = torch.zeros_like(self.rows)
        for block in self.blocks:
            for (entities, x), weights in zip(block.features, block.weights, strict=True):
                out[entities] += x * weights
        return out


class GibbsSampler:
    """Draws of Bayesian matrix factorization; see `mfdmc_fast.ops.functional.gibbs_sampler` for the contract."""

    def __init__(
        self,
        user_offsets: npt.NDArray[np.int64],
        items: npt.NDArray[np.int32],
        ratings: npt.NDArray[np.float32],
        *,
        n_items: int,
        mean: float,
        rank: int,
        seed: int,
        implicit: bool,
        noise_degrees: float,
        user_bags: Sequence[FeatureBags],
        item_bags: Sequence[FeatureBags],
    ) -> None:
        self._seed, self._sweep = seed, 0
        self.noise_degrees = noise_degrees
        self._watched: list[tuple[Tensor, Tensor, tuple[float, float], Tensor]] = []
        self.mean, self.rank = mean, rank
        points = torch.tensor(ratings).double()
        # priors are in units of the ratings: two factors multiply to rating points, a bias is rating points
        deviation = float((points - mean).square().mean().sqrt()) or 1.0
        self.units = torch.tensor([deviation] * rank + [deviation**2], dtype=torch.float64)
        self.noise_precision = 1 / deviation**2

        users = np.repeat(np.arange(len(user_offsets) - 1, dtype=np.int32), np.diff(user_offsets))
        by_item = np.argsort(items, kind="stable")
        item_offsets = np.concatenate([[0], np.bincount(items, minlength=n_items).cumsum()])
        self.user = self._side(user_offsets, items, points)
        self.item = self._side(item_offsets, users[by_item], points[torch.tensor(by_item)])
        self.sides = self.user, self.item
        if implicit:
            user_bags = [*user_bags, FeatureBags(item_offsets, users[by_item])]
            item_bags = [*item_bags, FeatureBags(user_offsets, items)]
        for which, (side, bags) in enumerate(zip(self.sides, (user_bags, item_bags), strict=True)):
            random = Stream(self._key(START, which))
            first = torch.tensor([[random.normal() for _ in range(rank)] for _ in range(side.n)], dtype=torch.float64)
            side.rows[:, :rank] = FIRST_SCALE * math.sqrt(deviation) * first
            side.blocks = [Block(bag, side.n, self.units) for bag in bags]

    def sweep(self) -> None:
        """Draw everything once."""
        self._sweep += 1
        for which in range(2):
            self._draw_rows(which)
        for which in range(2):
            self._draw_prior(which)
        self._draw_noise_precision()
        if self.noise_degrees:
            for which in range(2):
                self._draw_weights(which)

    def noise_weights(self, side: int) -> npt.NDArray[np.float32]:
        """[n] weights of the noise precision of the users' (0) or items' (1) ratings, as drawn last."""
        return self.sides[side].weights.numpy().astype(np.float32)

    def rows(self, side: int) -> npt.NDArray[np.float32]:
        """[n, rank + 1] factors and bias of the users (0) or items (1), as drawn last."""
        return self.sides[side].rows.numpy().astype(np.float32)

    def watch(
        self,
        users: npt.NDArray[np.int32],
        items: npt.NDArray[np.int32],
        scale: tuple[float, float],
        sums: npt.NDArray[np.float32],
    ) -> None:
        """Let `add_predictions` add the predictions of P pairs, clipped to the scale, to sums [P]."""
        for name, rows, side in (("users", users, self.user), ("items", items, self.item)):
            if rows.shape != sums.shape:
                raise ValueError(f"{name} must be as many as sums, {len(sums)}, not {len(rows)}")
            if len(rows) and not (rows.min() >= 0 and rows.max() < side.n):
                raise IndexError(f"{name}: a row lies outside [0, {side.n})")
        if not sums.flags.writeable:
            raise ValueError("sums must be writeable")
        self._watched.append((torch.tensor(users), torch.tensor(items), scale, torch.from_numpy(sums)))

    def add_predictions(self) -> None:
        """Add the predictions by the last draw to the sums of all watched pairs."""
        for users, items, scale, sums in self._watched:
            sums += self._predict(self.user.rows[users], self.item.rows[items]).clamp(*scale)

    def _draw_rows(self, which: int) -> None:
        """Each row x = (factors, bias) of a side: rating - mean - partner's bias = x · (partner's factors, 1) + noise.

        With X and t for its ratings, and A the diagonal matrix of their noise precisions (noise_precision times the
        weights of row and partner), x ~ Normal(P^-1 h, P^-1), where P = X'AX + diag(precision) and
        h = X'At + precision * (prior mean).
        """
        side, other = self.sides[which], self.sides[1 - which]
        pairs = (self.rank + 2) // 2  # of normal numbers for a row
        noise = torch.stack(normals(self._key(ROWS, which), np.arange(side.n * pairs, dtype=np.uint64)), dim=1)
        noise = noise.reshape(side.n, 2 * pairs)[:, : self.rank + 1]
        prior_mean = side.mean + side.explained()
        design = torch.cat([other.rows[:, : self.rank], _ones(other.n, 1)], dim=1)
        for e, (partners, ratings) in enumerate(side.ratings):
            x = design[partners]
            t = ratings - self.mean - other.rows[partners, self.rank]
            exactness = self.noise_precision * side.weights[e] * other.weights[partners]
            matrix = (exactness[:, None] * x).T @ x + side.precision.diag()
            h = x.T @ (exactness * t) + side.precision * prior_mean[e]
            lower = torch.linalg.cholesky(matrix)
            y = torch.linalg.solve_triangular(lower, h[:, None], upper=False)
            # covariance of L'^-1 noise: L'^-1 L^-1 = P^-1
            side.rows[e] = torch.linalg.solve_triangular(lower.T, y + noise[e, :, None], upper=True)[:, 0]

    def _draw_prior(self, which: int) -> None:
        """Common means, precisions, and the weights of features, of each column by itself.

        row ~ Normal(mean + explained by features, 1 / precision), mean ~ Normal(0, 1 / precision),
        weight ~ Normal(0, 1 / weight precision), and Gamma priors of all precisions.
        """
        side, width = self.sides[which], self.rank + 1
        random = [Stream(self._key(PRIOR, which, k)) for k in range(width)]

        def draw_precision(squares: Tensor, count: int) -> Tensor:
            # Normal(0, 1 / precision) numbers, `count` in each column
            shape, rates = PRIOR_SHAPE + count / 2, PRIOR_RATE * self.units + squares / 2
            return _stacked([random[k].gamma(shape, float(rates[k])) for k in range(width)])

        without_mean = side.rows - side.explained()
        noise = _stacked([stream.normal() for stream in random])
        side.mean = without_mean.sum(0) / (side.n + 1) + noise / (side.precision * (side.n + 1)).sqrt()
        residuals = without_mean - side.mean
        side.precision = draw_precision(residuals.square().sum(0) + side.mean.square(), side.n + 1)
        for b, block in enumerate(side.blocks):
            n_features = len(block.weights)
            index = np.arange(n_features * width, dtype=np.uint64)
            noise = normals(self._key(FEATURES, which, b), index)[0].reshape(n_features, width)
            for f, (entities, x) in enumerate(block.features):
                without = residuals[entities] + x * block.weights[f]
                precision = side.precision * x.square().sum() + block.precision
                block.weights[f] = side.precision * (x * without).sum(0) / precision + noise[f] / precision.sqrt()
                residuals[entities] = without - x * block.weights[f]
            block.precision = draw_precision(block.weights.square().sum(0), n_features)

    def _draw_noise_precision(self) -> None:
        squares = float((self.user.weights * self._squares(0)).sum())
        count = sum(len(ratings) for _, ratings in self.user.ratings)
        rate = PRIOR_RATE * float(self.units[-1]) + squares / 2
        self.noise_precision = Stream(self._key(NOISE, 0)).gamma(PRIOR_SHAPE + count / 2, rate)

    def _draw_weights(self, which: int) -> None:
        """The weight of a row has a Gamma(degrees / 2, degrees / 2) prior, and that of its ratings' errors."""
        side, key = self.sides[which], self._key(WEIGHTS, which)
        for e, squares in enumerate(self._squares(which).tolist()):
            shape = (self.noise_degrees + len(side.ratings[e].ratings)) / 2
            rate = (self.noise_degrees + self.noise_precision * squares) / 2
            side.weights[e] = Stream(mix(key + e & ALL_BITS)).gamma(shape, rate)

    def _squares(self, which: int) -> Tensor:
        """[n] sum of the squared errors of each row's ratings, each times the weight of the partner."""
        side, other = self.sides[which], self.sides[1 - which]
        return torch.stack(
            [
                ((self._predict(row, other.rows[partners]) - ratings).square() * other.weights[partners]).sum()
                for row, (partners, ratings) in zip(side.rows, side.ratings, strict=True)
            ]
        )

    def _predict(self, x: Tensor, y: Tensor) -> Tensor:
        """Ratings [B] of rows [B, rank + 1] or [rank + 1] of the two sides."""
        return self.mean + x[..., -1] + y[..., -1] + (x[..., :-1] * y[..., :-1]).sum(-1)

    def _key(self, purpose: int, which: int, part: int = 0) -> int:
        """Names the random numbers of a purpose in this sweep; `part` tells apart columns or blocks that share it."""
        of_sweep = mix(mix(self._seed + GOLDEN & ALL_BITS) + self._sweep & ALL_BITS)
        return int(mix(mix(of_sweep + 2 * purpose + which & ALL_BITS) + part & ALL_BITS))

    def _side(self, offsets: npt.NDArray[np.int64], partners: npt.NDArray[np.int32], ratings: Tensor) -> Side:
        return Side(torch.tensor(offsets), torch.tensor(partners), ratings, self.units)


def _ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


def _stacked(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)
