"""Methods by the labels that their results are kept under, so that recorded rows can be computed again."""

import re
from dataclasses import asdict
from functools import cache

import numpy as np
import pandas as pd

from catome.study import from_papers, methods
from catome.study.online import online
from catome.study.run.parameters import Setting
from catome.study.run.store import RECORDED
from catome.study.studies import allocation, released


def from_label(label: str, setting: Setting | None = None) -> methods.Method:
    """The method that has this label, as results are kept under it.

    Args:
        label: of one method, or of several with " + " between them.
        setting: what is generated. A cache that keeps its pairs is filled by another generation, which
            depends on it. None for the recorded one, whole batches of 12 images in 50 steps.

    Raises:
        ValueError: if no method has it, or none with this setting.
    """
    parts = [_from_part(part, setting) for part in label.split(" + ")]
    method = parts[0] if len(parts) == 1 else methods.together(*parts)
    if method.label != label:
        raise ValueError(f"label={label!r} is no method's label; the nearest is {method.label!r}")
    return method


def _ca_tome(threshold: float, schedule, **rest) -> methods.Method:
    if isinstance(schedule, str) and schedule.startswith("auto "):
        return online(threshold, float(schedule.removeprefix("auto ")), **rest)
    return methods.ca_tome(threshold, schedule, **rest)


def _as_released(
    threshold: float,
    schedule,
    setting: Setting | None = None,
    batch: int = 12,
    **details: bool,
) -> methods.Method:
    """The authors' code, generating as ``setting`` says; without one, as was recorded, in batches of
    ``batch``."""
    setting = setting or Setting(images=batch, batch_size=batch)
    params = released.Parameters(**asdict(setting.common()), schedule=schedule)
    return released.variant(threshold, params, released.Details(**details))


def _fixed_shares(label: str, freedom: str, threshold: str) -> methods.Method:
    """The fixed shares of the recorded measurement that give this label; where none does, those of the
    first."""
    measured = _recorded_left(float(threshold))
    if freedom not in allocation.FREEDOMS or not measured:
        raise ValueError(f"label={label!r} is no method's label: no such shares were measured")
    name = f"{freedom}, as t = {threshold}"
    made = [methods.fixed_shares(allocation.shares_by(left, freedom), name) for left in measured]
    return next((method for method in made if method.label == label), made[0])


@cache
def _recorded_left(threshold: float) -> list[np.ndarray]:
    """The recorded tables of `allocation.measured_left` for a threshold, each ``[calls, blocks]``."""
    rows = pd.read_parquet(RECORDED / f"{allocation.LEFT.name}.parquet")
    rows = rows[(rows["version"] == allocation.LEFT.version) & (rows["threshold"] == threshold)]
    keys = [name for name in allocation.LEFT.keys if name != "block"]
    return [
        np.stack(table.sort_values("block")["left"].to_numpy(), 1).astype(float)
        for _, table in rows.groupby(keys)
    ]


_MAKERS = {
    "ToMe": methods.tome,
    "CA-ToMe": _ca_tome,
    "CA-ToMe as released": _as_released,
    "merged keys": methods.merged_keys,
    "tomesd": methods.tomesd,
    "batch maximum": methods.batch_maximum,
    "ToDo": methods.todo,
    "average pooling": from_papers.average_pooling,
    "ToFu": from_papers.tofu,
    "SiTo": from_papers.sito,
    "DeepCache": methods.deep_cache,
    "fewer steps": methods.fewer_steps,
    "forecast": methods.forecast,
    "noise": methods.noise,
    "keys in one layer": methods.keys_in_layer,
}


_FLAGS = {
    "weighted": {"weighted": True},
    "unweighted": {"weighted": False},
    "steps from 1": {"from_one": True},
    "pairs kept": {"kept": True},
    "random dst": {"random": True},
    "by the fullest row": {"by_batch": True},
}
"""The parts of a label without a "=", and the argument that each is."""

_FIXED = re.compile(r"fixed shares\(by=(.+), as t = (.+), [0-9a-f]{8}\)")


def _from_part(label: str, setting: Setting | None) -> methods.Method:
    if label == "unmerged":
        return methods.unmerged()
    fixed = _FIXED.fullmatch(label)
    if fixed:
        return _fixed_shares(label, *fixed.groups())
    family, _, arguments = label.removesuffix(")").partition("(")
    told = arguments.split(", ")
    if (
        family not in _MAKERS
        or not label.endswith(")")
        or not all("=" in one or one in _FLAGS for one in told)
    ):
        known = ", ".join(["unmerged", *(f"{name}(...)" for name in [*_MAKERS, "fixed shares"])])
        raise ValueError(f"label={label!r} is no method's label; those are {known}")
    given = {"setting": setting} if _MAKERS[family] is _as_released else {}
    for one in told:
        name, equals, value = one.partition("=")
        given |= {name: _argument(name, value)} if equals else _FLAGS[one]
    try:
        return _MAKERS[family](**given)
    except TypeError as error:
        raise ValueError(f"label={label!r} is no method's label: {error}") from None


def _argument(name: str, value: str):
    if name in ("measure", "compare"):
        return value
    if name == "stride":
        return tuple(map(int, value.split("x")))
    if name != "schedule":
        return int(value) if value.isdecimal() else float(value)
    if value == "every step":
        return None
    return tuple(map(int, value.split())) if value[0].isdecimal() else value
