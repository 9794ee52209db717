"""The code that the studies that take times have in common."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable

import torch
from torch.utils.flop_counter import FlopCounterMode

from catome.policy.rates import processor
from catome.study.costs.accounting import FORMULAS
from catome.study.methods import Method


def device_name(device: str) -> str:
    """The name of a GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()


def place_of(row) -> str:
    """The place where a row of times was taken, for a sentence; it has ``kind``, ``device`` and
    ``threads``."""
    return f"{row['device']}, {row['threads']} threads" if row["kind"] == "cpu" else row["device"]


def now(device: str) -> float:
    """Seconds on a clock, once the device has done all that it was told to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(device: str) -> Callable[[], int | None]:
    """A function that says how many bytes the device held at most since this call; None where that is not
    known (CPU)."""
    if not device.startswith("cuda"):
        return lambda: None
    torch.cuda.reset_peak_memory_stats(device)
    return lambda: torch.cuda.max_memory_allocated(device)


def counting() -> FlopCounterMode:
    """A context that counts the floating-point operations in it; it makes them slower."""
    return FlopCounterMode(display=False, custom_mapping=FORMULAS)


def method_set(methods: Iterable[Method]) -> str:
    """A name for methods that are timed together, whatever their order."""
    return hashlib.sha256("\n".join(sorted(method.label for method in methods)).encode()).hexdigest()[:12]
