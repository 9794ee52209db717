"""Checkpoint schedules: the denoising steps at which pairs are found afresh (paper, Section III-B and Table II)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral

from catome.checks import check_collection, check_number, near, shown
from catome.derived import derive as derive

SCHEDULES: dict[str, tuple[int, ...]] = {
    "CONFIG_1": (0, 1, 2, 3, 5, 10, 15, 25, 35),
    "CONFIG_2": (0, 10, 11, 12, 15, 20, 25, 30, 35, 45),
    "CONFIG_3": (0, 8, 11, 13, 20, 25, 30, 35, 45, 46, 47, 48, 49),
    "CONFIG_4": (0, 9, 13, 14, 15, 28, 29, 32, 36, 45),
    "CONF_ADAPTIVE": (0, 1, 5, 7, 10, 12, 15, 35, 40, 45, 46, 47, 48, 49, 50, 51),
    "CONFIG_FIVE": tuple(range(0, 51, 5)),
}
"""The paper's named schedules (Table II), for 50 PLMS steps, which are 51 U-Net calls with indices 0 to 50.
CONF_ADAPTIVE names step 51, which never comes; a checkpoint that a generation does not reach is harmless."""


@dataclass(frozen=True)
class Auto:
    """An online schedule, for ``apply_patch(schedule=...)``; ``"auto"`` is ``Auto()``.

    Costs a look at the cached pairs, and one device synchronisation, at each step and block.

    Attributes:
        tolerance: share in [0, 1] of an image's cached pairs that may have fallen below the threshold (with a fixed share of
            tokens: below the weakest pair that was merged) before the image's pairs are found afresh.

    Raises:
        TypeError, ValueError: for a tolerance out of range.
    """

    tolerance: float = 0.3

    def __post_init__(self) -> None:
        check_number("tolerance", self.tolerance, 0.0, 1.0)


def parse_schedule(schedule: str | Auto | Iterable[int] | None) -> frozenset[int] | Auto | None:
    """Turn what a user writes into the set of checkpoint steps.

    Args:
        schedule: a name in `SCHEDULES`, any collection of step indices (U-Net calls of one generation, from 0), or None
            for a checkpoint at every step; "auto" or a `catome.Auto` decides while it runs.

    Returns:
        The checkpoints, None when every step is one, or the `catome.Auto`.

    Raises:
        ValueError: for an unknown name, an empty collection, one without step 0, or a negative or repeated step.
        TypeError: for anything that is not a name or a collection of integers.
    """
    if schedule is None or isinstance(schedule, Auto):
        return schedule
    if isinstance(schedule, str) and schedule == "auto":
        return Auto()
    if isinstance(schedule, (str, bytes)):
        if schedule not in SCHEDULES:
            hint = near(str(schedule), [*SCHEDULES, "auto"])
            known = f"the names are {', '.join(SCHEDULES)} and auto"
            raise ValueError(f"schedule={shown(schedule)} is not a named schedule{hint}; {known}")
        return frozenset(SCHEDULES[schedule])
    steps = check_collection("schedule", schedule, "a name, a collection of step indices or None")
    for step in steps:
        if isinstance(step, bool) or not isinstance(step, Integral):
            raise TypeError(
                f"schedule={shown(steps)} has the step {shown(step)}: steps must be integers, 0 for the first U-Net call"
            )
        if step < 0:
            raise ValueError(f"schedule={shown(steps)} has the negative step {step}: steps count from 0")
    steps = [int(step) for step in steps]
    repeated = sorted({step for step in steps if steps.count(step) > 1})
    if repeated:
        raise ValueError(f"schedule={shown(steps)} repeats step {repeated[0]}: name each step once")
    if 0 not in steps:
        raise ValueError(
            f"schedule={shown(steps)} lacks step 0: the first step has no pairs to reuse, so it must be a checkpoint"
        )
    return frozenset(steps)
