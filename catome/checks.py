"""One check for each kind of argument: each error names the argument, its value and what is allowed."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Literal

Dst = Literal["top_left", "random"]


def check_integer(name: str, value, low: int, high: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r} must be an integer, not {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name}={value!r} must be at least {low}")
    if high is not None and value > high:
        raise ValueError(f"{name}={value!r} must be at most {high}")
    return int(value)


def check_seed(seed) -> int:
    return check_integer("seed", seed, 0, 2**63 - 1)


def check_number(name: str, value, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r} must be a number, not {type(value).__name__}")
    if not low <= value <= high:  # also catches NaN
        raise ValueError(f"{name}={value!r} must be between {low:g} and {high:g}")
    return float(value)


def check_pair(name: str, value, low: int = 1) -> tuple[int, int]:
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(f"{name}={value!r} must be two integers (vertical, horizontal)") from None
    return check_integer(f"{name}[0]", first, low), check_integer(f"{name}[1]", second, low)


def check_stride(stride) -> tuple[int, int]:
    sy, sx = check_pair("stride", stride)
    if sy * sx == 1:
        raise ValueError("stride=(1, 1) makes every token a dst and leaves none to merge; use at least (1, 2)")
    return sy, sx


def check_dst(dst) -> Dst:
    if dst not in ("top_left", "random"):
        raise ValueError(f"dst={dst!r} must be 'top_left' or 'random'")
    return dst


def check_amount(threshold, ratio, stride=(2, 2), most: float | None = None) -> tuple[float | None, float | None]:
    """Exactly one of ``threshold`` (a cosine) and ``ratio`` (a share of all tokens, at most those that are src), in range."""
    if (threshold is None) == (ratio is None):
        given = "both were given" if ratio is not None else "neither was given"
        raise ValueError(f"threshold={threshold!r}, ratio={ratio!r}: give exactly one of them, {given}")
    if threshold is not None:
        return check_number("threshold", threshold, -1.0, 1.0), None
    if most is None:
        sy, sx = check_stride(stride)
        most = 1 - 1 / (sx * sy)
    most += 1e-9  # 1 - 1/3 and 2/3 are not the same number
    if isinstance(ratio, (int, float)) and not isinstance(ratio, bool) and ratio > most:
        raise ValueError(f"ratio={ratio!r} must be between 0 and {most:g}, the share of src tokens; the others are dst")
    return None, check_number("ratio", ratio, 0.0, most)
