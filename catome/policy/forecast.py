"""Choose the steps of a generation that compute the model, and forecast the others from them (beyond the
paper).

A denoising model's output changes smoothly along a generation, and less and less so after its first steps, in
which the image is decided. So the output of many later steps can be extrapolated from the last ones that were
computed, by a polynomial in the timestep, and the model need not run in them at all. TaylorSeer (arXiv
2503.06923) forecasts the features of every layer so. Here it is the output as a whole, which needs to know
nothing of the layers, and intervals grow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from catome.checks import check_integer, check_number

_LONGEST = 4096
"""Steps of a generation, at most."""


@dataclass(frozen=True)
class Forecast:
    """The steps that run the model: the first ones, then at intervals that grow. The others extrapolate its
    output.

    Attributes:
        first: steps at the beginning that run the model in any case; at least 1, and more than ``order``.
        interval: steps from there to the next one that runs it, at least 1.
        growth: by what factor each interval is longer than the one before, from 1 on.
        order: degree of the polynomial in the timestep; 0 repeats the last output.

    Raises:
        TypeError, ValueError: naming the attribute, its value and what is allowed.
    """

    first: int = 5
    interval: float = 1.0
    growth: float = 1.3
    order: int = 1

    def __post_init__(self) -> None:
        check_integer("order", self.order, 0, 8)
        check_integer("first", self.first, self.order + 1)
        check_number("interval", self.interval, 1.0, _LONGEST)
        check_number("growth", self.growth, 1.0, 100.0)

    def runs(self, step: int) -> bool:
        """Return True if the model runs at a step, counted from 0."""
        return step in computed_steps(self.interval, self.first, self.growth)

    def share(self, steps: int) -> float:
        """The share of a generation's steps that run the model."""
        return sum(map(self.runs, range(steps))) / steps


@lru_cache(maxsize=64)
def computed_steps(interval: float, first: int, growth: float = 1.0) -> frozenset[int]:
    """The steps at which the model runs: the ``first`` ones, then at intervals that grow.

    >>> sorted(step for step in computed_steps(interval=1, first=3, growth=1.5) if step < 20)
    [0, 1, 2, 3, 4, 7, 10, 15]
    """
    found = set(range(first))
    step = first - 1.0
    while step < _LONGEST:
        step += interval
        interval *= growth
        found.add(round(step))
    return frozenset(found)


def weights(times: Sequence[float], now: float) -> list[float]:
    """The weights of the known outputs in the polynomial through all of them, at another time (Lagrange);
    they add up to 1."""
    return [math.prod((now - other) / (at - other) for other in times if other != at) for at in times]
