"""Checkpoint schedules: the denoising steps at which pairs are found afresh (paper, Section III-B and Table
II)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real

from catome.checks import check_collection, check_integer, check_number, near, shown
from catome.policy.staleness import Steps
from catome.policy.staleness import derive as derive

LENGTH = 51
"""Calls of the model in the paper's generations: 50 PLMS steps, which call it 51 times. Assumed where nothing
else is known."""

SCHEDULES: dict[str, tuple[int, ...]] = {
    "CONFIG_1": (0, 1, 2, 3, 5, 10, 15, 25, 35),
    "CONFIG_2": (0, 10, 11, 12, 15, 20, 25, 30, 35, 45),
    "CONFIG_3": (0, 8, 11, 13, 20, 25, 30, 35, 45, 46, 47, 48, 49),
    "CONFIG_4": (0, 9, 13, 14, 15, 28, 29, 32, 36, 45),
    "CONF_ADAPTIVE": (0, 1, 5, 7, 10, 12, 15, 35, 40, 45, 46, 47, 48, 49, 50, 51),
    "CONFIG_FIVE": tuple(range(0, 51, 5)),
}
"""The paper's named schedules (Table II), for 50 PLMS steps, which are 51 calls of the model with indices 0
to 50. In another generation they are fitted to its length: see `Schedule`. CONF_ADAPTIVE names step 51, which
never comes; a checkpoint that a generation does not reach is harmless."""


@dataclass(frozen=True)
class Schedule:
    """Checkpoints, either as steps or as shares of a generation.

    Attributes:
        steps: the checkpoints, ascending, from 0 on; of a generation of ``length`` calls.
        length: the length that the steps are meant for: in a generation of ``n`` calls, step ``s`` becomes
            ``s * n // length``. None for absolute steps, which are the same in every generation.

    Raises:
        TypeError, ValueError: for steps that are no ascending integers from 0 on, or a length below 1.
    """

    steps: tuple[int, ...]
    length: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(
            self,
            "steps",
            _checked_steps("steps", check_collection("steps", self.steps, "a collection of steps")),
        )
        if self.length is not None:
            check_integer("length", self.length, 1)

    def at(self, length: int | None) -> tuple[int, ...]:
        """The checkpoints of a generation of ``length`` calls of the model; `LENGTH` is assumed where that is
        None."""
        if self.length is None:
            return self.steps
        calls = LENGTH if length is None else length
        return tuple(sorted({step * calls // self.length for step in self.steps}))

    def due(self, step: int, length: int | None) -> int:
        """The last checkpoint at or before ``step``."""
        return max(checkpoint for checkpoint in self.at(length) if checkpoint <= step)

    @property
    def interval(self) -> float:
        """Steps from one checkpoint to the next, on average; infinite where there is only one."""
        if len(self.steps) == 1:
            return float("inf")
        last = self.steps[-1] if self.length is None else self.steps[-1] * LENGTH / self.length
        return last / (len(self.steps) - 1)


def evenly(checkpoints: int) -> Schedule:
    """The schedule of this many checkpoints at equal distances, in a generation of any length.

    >>> evenly(4).at(8)
    (0, 2, 4, 6)

    Raises:
        TypeError, ValueError: unless ``checkpoints`` is an integer of at least 1.
    """
    count = check_integer("checkpoints", checkpoints, 1)
    return Schedule(tuple(range(count)), count)


def parse_schedule(
    schedule: str | Schedule | Iterable[int] | Iterable[float] | None,
) -> Schedule | None:
    """Turn what a user writes into a `Schedule`.

    Args:
        schedule: a name in `SCHEDULES`; "EVEN_13", "EVEN_8" and so on for so many checkpoints at equal
            distances; a collection of step indices (model calls of one generation, from 0); a collection of
            shares of a generation, in [0, 1), at least one of them no integer; a `Schedule`; or None for a
            checkpoint at every step.

    Returns:
        The schedule, or None when every step is a checkpoint.

    Raises:
        ValueError: for an unknown name, an empty collection, one without step 0, or a negative or repeated
            step.
        TypeError: for anything that is not a name or a collection of numbers.
    """
    if schedule is None or isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, (str, bytes)):
        return _named(schedule)
    length = schedule.length if isinstance(schedule, Steps) else None
    steps = check_collection("schedule", schedule, "a name, a collection of step indices or None")
    if any(isinstance(step, Real) and 0 < step < 1 for step in steps):
        return _of_shares(steps)
    return Schedule(_checked_steps("schedule", steps), length)


# shares of a generation are kept as whole parts of this many, so that no rounding moves a checkpoint
_SHARES = 1 << 40


def _of_shares(shares: list) -> Schedule:
    for share in shares:
        check_number("schedule", share, 0.0, 1.0)
        if share >= 1:
            raise ValueError(
                f"schedule={shown(shares)} has the share {shown(share)}: shares of a generation are below 1"
            )
    # rounded up, for 1/3 of 51 calls must be call 17 although 1/3 is a little less as a float
    return Schedule(
        _checked_steps("schedule", [math.ceil(share * _SHARES) for share in shares], shares), _SHARES
    )


def _named(name: str | bytes) -> Schedule:
    if name in SCHEDULES:
        return Schedule(SCHEDULES[name], LENGTH)
    if isinstance(name, str) and name.startswith("EVEN_") and name[5:].isdecimal() and int(name[5:]) > 0:
        return evenly(int(name[5:]))
    hint = near(str(name), [*SCHEDULES, "EVEN_13"])
    known = f"the names are {', '.join(SCHEDULES)}, EVEN_1, EVEN_2 and so on"
    raise ValueError(f"schedule={shown(name)} is not a named schedule{hint}; {known}")


def _checked_steps(name: str, steps: list, written: list | None = None) -> tuple[int, ...]:
    written = steps if written is None else written
    for step in steps:
        if isinstance(step, bool) or not isinstance(step, Integral):
            raise TypeError(
                f"{name}={shown(written)} has the step {shown(step)}: steps must be integers, "
                "0 for the first call of the model, or shares of a generation below 1"
            )
        if step < 0:
            raise ValueError(f"{name}={shown(written)} has the negative step {step}: steps count from 0")
    as_written = written is not steps
    steps = [int(step) for step in steps]
    written = written if as_written else steps
    repeated = sorted({step for step in steps if steps.count(step) > 1})
    if repeated:
        raise ValueError(f"{name}={shown(written)} repeats step {repeated[0]}: name each step once")
    if 0 not in steps:
        raise ValueError(
            f"{name}={shown(written)} lacks step 0: the first step has no pairs to reuse, so it must be a "
            "checkpoint"
        )
    return tuple(sorted(steps))
