"""The rates of a device: what data sheets and estimates say, and what `calibrate` has measured on this
machine.

`catome.policy.cost_model` reckons with these rates; a measurement takes the place of an estimate wherever
there is one."""

from __future__ import annotations

import json
import math
import os
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from catome import checks
from catome.tensors.plan import match


@dataclass(frozen=True)
class Rates:
    """The rates that a device reaches: FLOPs and bytes a second, and the seconds that starting an operation
    takes."""

    flops: float
    bytes: float
    launch: float


ESTIMATES = {
    ("cpu", 4): Rates(150e9, 30e9, 20e-6),
    ("cpu", 2): Rates(50e9, 30e9, 20e-6),
    ("cuda", 4): Rates(50e12, 2e12, 8e-6),
    ("cuda", 2): Rates(400e12, 2e12, 8e-6),
}
"""By type of device and bytes of a number. Those of the CPU in float32 are rounded from self-attention and
merging timed on two cores; in half precision, which few CPUs multiply natively, a third of that is assumed.
Those of CUDA are rounded down from a data sheet (H100), and the time to start a kernel from Python is an
assumption: none of them has been measured."""

FILE = "rates.json"

_NAMES = ("flops", "bytes", "launch")
# of the attention that is timed: of the size of Stable Diffusion's topmost
_TOKENS, _HEADS, _CHANNELS = 2048, 8, 320
_LEAST_SAMPLE = 0.02  # seconds of work between two looks at the clock
_SAMPLES = 5


def cache_folder() -> Path:
    """The folder where rates are kept: ``$CATOME_CACHE``, else ``catome`` in ``$XDG_CACHE_HOME`` or
    ``~/.cache``."""
    given = os.environ.get("CATOME_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "catome"


def processor() -> str:
    """The name of this machine's processor, as far as its system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def key_of(device: torch.device, itemsize: int) -> str:
    """The name of what rates hold for: the device, a CPU's number of threads, the bytes of a number, and
    torch's version."""
    cpu = f"{processor()}, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return f"{name}, {itemsize} bytes, torch {torch.__version__}"


@torch.no_grad()
def calibrate(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Rates:
    """Measure how fast this machine computes attention and merges tokens, in seconds, and keep it for
    `only_where_faster`.

    The rates hold for this device, dtype, number of threads and version of torch, in this process and in
    later ones. They are kept as ``rates.json`` in ``$CATOME_CACHE``, or ``catome`` in the user's cache
    folder. Run it while the machine does nothing else.

    Args:
        device: to measure on.
        dtype: a floating-point type.

    Returns:
        The `Rates`.

    Raises:
        TypeError, ValueError: for a device or dtype that is not there.
        OSError: where the folder cannot be written to.
    """
    device = checks.check_device("device", device)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        raise TypeError(f"dtype={checks.shown(dtype)} must be a floating-point type of at least 16 bits")
    rates = _measured(device, dtype)
    _keep(key_of(device, dtype.itemsize), rates)
    _rates.cache_clear()
    return rates


def rates_of(x: torch.Tensor) -> Rates:
    """The rates of the device that ``x`` is on, for numbers of its size: measured ones, else `ESTIMATES`."""
    return _rates(x.device, x.element_size(), torch.get_num_threads())


@lru_cache(maxsize=64)
def _rates(device: torch.device, itemsize: int, threads: int) -> Rates:
    kind = device.type if device.type == "cuda" else "cpu"
    estimate = ESTIMATES[kind, 2 if itemsize == 2 else 4]
    return kept().get(key_of(device, itemsize), estimate)


def _measured(device: torch.device, dtype: torch.dtype) -> Rates:
    generator = torch.Generator("cpu").manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    heads = [drawn(1, _HEADS, _TOKENS, _CHANNELS // _HEADS) for _ in range(3)]
    attention = _seconds(lambda: F.scaled_dot_product_attention(*heads), device)
    edge = math.isqrt(2 * _TOKENS)
    tokens = drawn(1, edge * edge, _CHANNELS)
    plan = match(tokens, (edge, edge), ratio=0.5)
    merging = _seconds(lambda: plan.merge(tokens), device)
    few = drawn(1, 4, 8)
    small = match(few, (2, 2), ratio=0.5)
    launch = _seconds(lambda: small.merge(few), device)
    moved = 1.5 * tokens.numel() * dtype.itemsize
    return Rates(
        flops=4 * _TOKENS**2 * _CHANNELS / attention,
        bytes=moved / max(merging - launch, merging / 10),
        launch=launch,
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one run: the median of several samples, after a warm-up."""

    def sample(times: int) -> float:
        _wait_for(device)
        started = time.perf_counter()
        for _ in range(times):
            work()
        _wait_for(device)
        return (time.perf_counter() - started) / times

    sample(3)
    times = max(1, math.ceil(_LEAST_SAMPLE / max(sample(1), 1e-9)))
    return median(sample(times) for _ in range(_SAMPLES))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kept() -> dict[str, Rates]:
    """The rates that are kept, by `key_of`; none, and a warning, where the file cannot be read."""
    file = cache_folder() / FILE
    try:
        return {key: Rates(**{name: float(own[name]) for name in _NAMES}) for key, own in _read(file).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        warnings.warn(
            f"{file} cannot be read, and nothing in it is used ({error}): run catome.calibrate() again",
            stacklevel=2,
        )
        return {}


def _read(file: Path) -> dict:
    return json.loads(file.read_text()) if file.exists() else {}


def _keep(key: str, rates: Rates) -> None:
    """Write rates beside those of other devices; a reader sees the old file or the new one, never half of
    one."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    known = {name: asdict(own) for name, own in kept().items()}
    known[key] = asdict(rates)
    written = folder / f"{FILE}.{os.getpid()}"
    written.write_text(json.dumps(known, indent=1))
    written.replace(folder / FILE)
