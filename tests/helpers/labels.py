"""Methods by the labels that their results are kept under, so that recorded rows can be computed again."""

import re

from catome.study import methods
from catome.study.online import online


def from_label(label: str) -> methods.Method:
    """The method that has this label, as results are kept under it.

    Raises:
        ValueError: if no method has it.
    """
    parts = [_from_part(part) for part in label.split(" + ")]
    method = parts[0] if len(parts) == 1 else methods.together(*parts)
    if method.label != label:
        raise ValueError(f"label={label!r} is no method's label; the nearest is {method.label!r}")
    return method


def _ca_tome(threshold: float, schedule, **rest) -> methods.Method:
    if isinstance(schedule, str) and schedule.startswith("auto "):
        return online(threshold, float(schedule.removeprefix("auto ")), **rest)
    return methods.ca_tome(threshold, schedule, **rest)


_MAKERS = {
    "ToMe": methods.tome,
    "CA-ToMe": _ca_tome,
    "merged keys": methods.merged_keys,
    "tomesd": methods.tomesd,
    "batch maximum": methods.batch_maximum,
    "ToDo": methods.todo,
    "DeepCache": methods.deep_cache,
    "fewer steps": methods.fewer_steps,
    "forecast": methods.forecast,
    "noise": methods.noise,
    "keys in one layer": methods.keys_in_layer,
}


def _from_part(label: str) -> methods.Method:
    if label == "unmerged":
        return methods.unmerged()
    family, _, arguments = label.removesuffix(")").partition("(")
    arguments = re.sub(
        r", (un)?weighted(?=,|$)", lambda flag: f", weighted={'no' if flag[1] else 'yes'}", arguments
    )
    pairs = [argument.partition("=") for argument in arguments.split(", ")]
    if family not in _MAKERS or not label.endswith(")") or not all(equals for _, equals, _ in pairs):
        known = ", ".join(["unmerged", *(f"{name}(...)" for name in _MAKERS)])
        raise ValueError(f"label={label!r} is no method's label; those are {known}")
    try:
        return _MAKERS[family](**{name: _argument(name, value) for name, _, value in pairs})
    except TypeError as error:
        raise ValueError(f"label={label!r} is no method's label: {error}") from None


def _argument(name: str, value: str):
    if name == "weighted":
        return value != "no"
    if name in ("measure", "compare"):
        return value
    if name == "stride":
        return tuple(map(int, value.split("x")))
    if name != "schedule":
        return int(value) if value.isdecimal() else float(value)
    if value == "every step":
        return None
    return tuple(map(int, value.split())) if value[0].isdecimal() else value
