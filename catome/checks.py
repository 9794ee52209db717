"""One check for each kind of argument: each error names the argument, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from typing import Literal, ParamSpec, TypeVar

import torch

Dst = Literal["top_left", "random"]
P, R = ParamSpec("P"), TypeVar("R")

_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST_SHOWN = 200  # characters of a value in an error


def shown(value) -> str:
    """A value as an error has it: on one line, and not a page of it."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def near(name: str, names: Iterable[str]) -> str:
    """`` (did you mean 'threshold'?)`` after an unknown name, or nothing if none of ``names`` is like it."""
    lower = {known.lower(): known for known in names}
    found = get_close_matches(name.lower(), lower, 1)
    return f" (did you mean {lower[found[0]]!r}?)" if found else ""


def suggests_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function say which argument may be meant by a keyword that it does not have; Python does so only
    from 3.13 on."""
    own = [
        name
        for name, argument in signature(function).parameters.items()
        if argument.kind != Parameter.VAR_KEYWORD
    ]

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in kwargs.items():
            if name not in own:
                about = f"is no argument of {function.__name__}{near(name, own)}; it has {', '.join(own)}"
                raise TypeError(f"{name}={shown(value)} {about}")
        return function(*args, **kwargs)

    return checked


def check_kind(name: str, value, kind: type | tuple[type, ...], allowed: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name}={shown(value)} must be {allowed}, not {type(value).__name__}")


def check_integer(name: str, value, low: int | None = None, high: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={shown(value)} must be an integer, not {type(value).__name__}")
    if low is not None and value < low:
        raise ValueError(f"{name}={value!r} must be at least {low}")
    if high is not None and value > high:
        raise ValueError(f"{name}={value!r} must be at most {high}")
    return int(value)


def check_index(name: str, value, count: int, there: str) -> int:
    """One of ``count``, from 0, or from -1 backwards; the error says where they are: "in this plan"."""
    if not -count <= check_integer(name, value) < count:
        allowed = f", so it must be between {-count} and {count - 1}" if count else ""
        raise IndexError(f"{name}={value!r}: {count} were {there}{allowed}")
    return int(value)


def check_collection(name: str, value, allowed: str) -> list:
    try:
        return list(None if isinstance(value, (str, bytes)) else value)
    except TypeError:
        raise TypeError(f"{name}={shown(value)} must be {allowed}, not {type(value).__name__}") from None


def check_seed(seed) -> int:
    return check_integer("seed", seed, 0, 2**63 - 1)


def check_number(name: str, value, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={shown(value)} must be a number, not {type(value).__name__}")
    if not low <= value <= high:  # also catches NaN
        raise ValueError(f"{name}={value!r} must be between {low:g} and {high:g}")
    return float(value)


def check_flag(name: str, value) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={shown(value)} must be True or False")
    return value


def check_pair(name: str, value, low: int = 1) -> tuple[int, int]:
    try:
        first, second = () if isinstance(value, (Set, Mapping)) else value
    except (TypeError, ValueError):
        raise TypeError(f"{name}={shown(value)} must be two integers (vertical, horizontal)") from None
    return check_integer(f"{name}[0]", first, low), check_integer(f"{name}[1]", second, low)


def check_stride(stride) -> tuple[int, int]:
    sy, sx = check_pair("stride", stride)
    if sy * sx == 1:
        raise ValueError(
            "stride=(1, 1) makes every token a dst and leaves none to merge; use at least (1, 2)"
        )
    return sy, sx


def check_windows(grid, stride) -> tuple[tuple[int, int], tuple[int, int]]:
    """The two as pairs of integers; the grid has a window."""
    (height, width), (sy, sx) = check_pair("grid", grid), check_stride(stride)
    if height < sy or width < sx:
        raise ValueError(f"grid={(height, width)} is smaller than one window of stride={(sy, sx)}")
    return (height, width), (sy, sx)


def check_dst(dst) -> Dst:
    return check_choice("dst", dst, ("top_left", "random"))


def check_choice(name: str, value, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={shown(value)} must be {' or '.join(map(repr, choices))}")
    return value


def check_amount(
    threshold, ratio, stride=(2, 2), most: float | None = None
) -> tuple[float | None, float | None]:
    """Exactly one of ``threshold`` (a cosine) and ``ratio`` (a share of all tokens, at most those that are
    src), in range."""
    if (threshold is None) == (ratio is None):
        given = "both were given" if ratio is not None else "neither was given"
        raise ValueError(
            f"threshold={shown(threshold)}, ratio={shown(ratio)}: give exactly one of them, {given}"
        )
    if threshold is not None:
        return check_number("threshold", threshold, -1.0, 1.0), None
    if most is None:
        sy, sx = check_stride(stride)
        most = 1 - 1 / (sx * sy)
    most += 1e-9  # 1 - 1/3 and 2/3 are not the same number
    if isinstance(ratio, (int, float)) and not isinstance(ratio, bool) and ratio > most:
        raise ValueError(
            f"ratio={ratio!r} must be between 0 and {most:g}, the share of src tokens; the others are dst"
        )
    return None, check_number("ratio", ratio, 0.0, most)


def check_steps(steps) -> frozenset[int] | None:
    if steps is None:
        return None
    return frozenset(
        check_integer("steps", step, 0)
        for step in check_collection("steps", steps, "a collection of steps, or None for all")
    )


def check_generator(generator) -> None:
    check_kind(
        "generator", generator, (torch.Generator, type(None)), "a torch.Generator, or None for torch's own"
    )
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(f"generator={shown(generator)} on {generator.device} must be one on the CPU")


def check_device(name: str, device) -> torch.device:
    """A device that this machine has."""
    try:
        found = torch.device(device)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}={shown(device)} must be a torch device, such as 'cpu' or 'cuda'") from None
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError):
        raise ValueError(f"{name}={shown(device)}: this machine's torch has no such device") from None
    return found


# Tensors are told by type and shape alone: a look at their values would make the host wait for the device


def _check_tensor(name: str, x, floating: bool = True) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a {'floating-point ' * floating}tensor, not {type(x).__name__}")
    if floating and x.dtype not in _FLOATING:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FLOATING)
        raise TypeError(f"{name} must be a floating-point tensor, not {x.dtype}: one of {allowed}")
    if x.layout != torch.strided or x.is_nested:
        raise TypeError(f"{name} must be a dense tensor, not {'a nested one' if x.is_nested else x.layout}")


def _check_place(name: str, x: torch.Tensor, device: torch.device) -> None:
    if x.device != device:
        raise ValueError(f"{name} is on {x.device} and must be on {device}, where this plan is")


def check_tokens(tokens, grid, frames: int = 1) -> tuple[int, int]:
    """``tokens`` must be ``[B, N, C]`` of this grid, which is returned."""
    _check_tensor("tokens", tokens)
    height, width = check_pair("grid", grid)
    count = frames * height * width
    if tokens.ndim != 3 or tokens.shape[1] != count or not tokens.shape[2]:
        of_frames = f" and frames={frames}" if frames > 1 else ""
        allowed = f"[B, N, C] with N = {count} for grid={(height, width)}{of_frames}, and C at least 1"
        raise ValueError(f"tokens of shape {list(tokens.shape)} must be {allowed}")
    return height, width


def check_values(name: str, x, slot: torch.Tensor) -> None:
    """``x`` must be ``[B, N, C]`` for a plan of ``slot`` ``[B, N]``."""
    _check_tensor(name, x)
    if x.ndim != 3 or x.shape[:2] != slot.shape:
        raise ValueError(
            f"{name} of shape {list(x.shape)} does not fit this plan: it is for {[*slot.shape, 'C']}"
        )
    _check_place(name, x, slot.device)


def check_packed(name: str, y, rows: int, device: torch.device | None = None) -> None:
    """``y`` must be ``[S, C]`` with ``S = rows``; of any dtype, for nothing is computed with it."""
    _check_tensor(name, y, floating=False)
    if y.ndim != 2 or y.shape[0] != rows:
        raise ValueError(f"{name} of shape {list(y.shape)} does not fit this plan: it is for [{rows}, C]")
    if device is not None:
        _check_place(name, y, device)
