"""Expectation: about how long a model takes here, from what it costs and how long others took.

    ms ≈ a·macs + b·outputs + c·layers,    a, b, c ≥ 0

whose coefficients fit the ratios of what was timed best, times what others of its family showed. Macs alone tell
latency badly: what layers return goes through the memory, and each call costs by itself.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

UNSURE = 0.8  # spread of the logarithm, as long as FEW models were timed
FEW = 6
LEAST = 0.2  # spread at least
SHRUNK = 0.5  # models of which the ratio is 1 that a family is thought to have beside those that were timed


class Cost(Struct, frozen=True):
    """What of a model takes time.

    Args:
        macs: multiply-accumulates of one image.
        outputs: elements that its layers return.
        layers: calls of them.
        family: models of one kind are as far off.
    """

    macs: float
    outputs: float
    layers: float
    family: str


def expected(costs: Sequence[Cost], timed: Sequence[tuple[Cost, float]]) -> tuple[NDArray[np.float64], float]:
    """Milliseconds of models that weren't timed, and by how much their logarithm is off (standard deviation).

    Args:
        costs: of the models.
        timed: cost and milliseconds of others, of one at least.
    """
    ms = np.array([each for _, each in timed])
    features = np.array([_features(cost) for cost, _ in timed])
    law = _law(features / ms[:, None])
    off = np.log(ms / (features @ law))
    families: dict[str, list[float]] = {}
    for (cost, _), each in zip(timed, off, strict=True):
        families.setdefault(cost.family, []).append(each)
    shown = {family: sum(each) / (len(each) + SHRUNK) for family, each in families.items()}
    factors = np.exp([shown.get(cost.family, 0.0) for cost in costs])
    found = np.array([_features(cost) for cost in costs]) @ law * factors
    # Of each as if it weren't timed: the family says what its others show.
    others = [each - _others(families[cost.family], each) for (cost, _), each in zip(timed, off, strict=True)]
    spread = math.sqrt(float(np.mean(np.square(others))))
    return found, max(spread, LEAST) if len(timed) >= FEW else max(spread, UNSURE)


def _others(family: Sequence[float], one: float) -> float:
    return (sum(family) - one) / (len(family) - 1 + SHRUNK)


def _features(cost: Cost) -> tuple[float, float, float]:
    return cost.macs, cost.outputs, cost.layers


def _law(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients ≥ 0 whose sum with each row is nearest to 1; no more than half as many as rows."""
    best, law = math.inf, np.zeros(rows.shape[1])
    for count in range(1, min(rows.shape[1], max(1, len(rows) // 2)) + 1):
        for places in itertools.combinations(range(rows.shape[1]), count):
            found = np.linalg.lstsq(rows[:, places], np.ones(len(rows)), rcond=None)[0]
            error = float(np.square(rows[:, places] @ found - 1).sum())
            if (found > 0).all() and error < best * (1 - 1e-9):
                best = error
                law = np.zeros(rows.shape[1])
                law[list(places)] = found
    return law
