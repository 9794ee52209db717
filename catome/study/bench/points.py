"""The points that the benchmark measures, and the options that ask for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product

import torch

from catome.study.bench import layers as bench_layers
from catome.study.costs.accounting import ARCHITECTURES

SUITES = ("operations", "attention", "memory", "block", "unet", "compiled")
"""In the order in which they run: what is short comes first."""

ON_REQUEST = ("compiled",)
"""Suites that run where they are asked for alone: compilers take minutes."""

OF_LAYERS = {"attention": ("sd15",), "block": tuple(bench_layers.MODELS), "compiled": ("pixart",)}
"""The models whose layers the suites of layers take."""


_GRID = dict(
    dtypes=("float16", "bfloat16"),
    batches=(1, 4, 16),
    sizes=(512, 1024, 2048),
    shares=(0.25, 0.5, 0.75),
    rounds=10,
)
_DEFAULTS: dict[tuple[str, str], dict] = {
    ("operations", "cpu"): dict(dtypes=("float32",), batches=(1,), shares=(0.5,), rounds=20),
    ("operations", "cuda"): dict(
        dtypes=("float32", "float16", "bfloat16"), batches=(1,), shares=(0.5,), rounds=20
    ),
    ("attention", "cpu"): dict(dtypes=("float32",), batches=(1,), sizes=(512,), shares=(0.75,), rounds=10),
    ("attention", "cuda"): dict(
        dtypes=("float16", "bfloat16"), batches=(1, 4), sizes=(512, 1024), shares=(0.75,), rounds=20
    ),
    ("block", "cpu"): dict(dtypes=("float32",), batches=(1,), sizes=(1024,), shares=(0.7,), rounds=3),
    ("block", "cuda"): dict(
        dtypes=("bfloat16",), batches=(1,), sizes=(1024, 2048), shares=(0.25, 0.5, 0.7), rounds=10
    ),
    ("compiled", "cpu"): dict(dtypes=("float32",), batches=(1,), sizes=(1024,), shares=(0.64,), rounds=10),
    ("compiled", "cuda"): dict(dtypes=("bfloat16",), batches=(1,), sizes=(1024,), shares=(0.64,), rounds=20),
    ("unet", "cpu"): dict(dtypes=("float32",), batches=(1,), sizes=(512,), shares=(0.5,), rounds=6),
    ("unet", "cuda"): _GRID,
    ("memory", "cuda"): dict(dtypes=("float16",), batches=(1,), sizes=(512, 1024), shares=(0.5,), rounds=1),
}


@dataclass(frozen=True)
class Options:
    """The options of the benchmark. None stands for what the suite takes by default on this kind of device.

    Attributes:
        device: "cpu", "cuda" or one of several CUDA devices.
        suites: names of `SUITES`.
        architectures: names of `ARCHITECTURES`.
        dtypes: names of floating-point types.
        batches: numbers of images.
        sizes: edges in pixels of square images.
        shares: merged shares of all tokens, at most 0.75.
        tokens: edge of the token grid in the suite "operations".
        channels: of a token there.
        rounds: in which each contender is timed.
        budget_s: seconds after which no other point, and no other round, begins.
        output: folder of the rows.
    """

    device: str = "cpu"
    suites: tuple[str, ...] | None = None
    architectures: tuple[str, ...] = ("sd15",)
    dtypes: tuple[str, ...] | None = None
    batches: tuple[int, ...] | None = None
    sizes: tuple[int, ...] | None = None
    shares: tuple[float, ...] | None = None
    tokens: int = 64
    channels: int = 320
    rounds: int | None = None
    budget_s: float = 480.0
    output: str = "_build/output"

    @property
    def kind(self) -> str:
        """ "cpu" or "cuda"."""
        return torch.device(self.device).type

    def of(self, suite: str) -> Options:
        """These options with the suite's defaults in the place of None."""
        missing = {
            name: value for name, value in _DEFAULTS[suite, self.kind].items() if getattr(self, name) is None
        }
        return replace(self, **missing)


@dataclass(frozen=True)
class Point:
    """A point where contenders meet; see `BENCH` for the meaning of each field. ``rounds`` is how often they
    do."""

    suite: str
    architecture: str
    dtype: str
    batch: int
    height: int
    width: int
    channels: int
    share: float
    rounds: int = field(compare=False)

    def __str__(self) -> str:
        return named(vars(self))


def named(point: Mapping) -> str:
    if point["suite"] == "operations":
        shape = f"[{2 * point['batch']}, {point['height']} x {point['width']}, {point['channels']}]"
        return f"operations on {shape} {point['dtype']}, share {point['share']:g}"
    size = f"{point['height']}x{point['width']} px"
    return (
        f"{point['suite']} {point['architecture']} {point['dtype']}, batch {point['batch']}, {size}, share "
        f"{point['share']:g}"
    )


def points(options: Options) -> list[Point]:
    """Every point that the options ask for, suite by suite; those of U-Nets by the number of pixels, fewest
    first.

    Raises:
        ValueError: for a suite that the device does not have.
    """
    found = []
    usual = [suite for suite in SUITES if (suite, options.kind) in _DEFAULTS and suite not in ON_REQUEST]
    for suite in options.suites or usual:
        if (suite, options.kind) not in _DEFAULTS:
            raise ValueError(
                f"suite={suite!r} needs a CUDA device, for how much memory a CPU holds is not known; not "
                "'cpu'"
            )
        chosen = options.of(suite)
        if suite == "operations":
            for dtype, batch, share in product(chosen.dtypes, chosen.batches, chosen.shares):
                edge = options.tokens
                found.append(
                    Point(suite, "", dtype, batch, edge, edge, options.channels, share, chosen.rounds)
                )
            continue
        sized = sorted(product(chosen.sizes, chosen.batches), key=lambda pair: pair[0] ** 2 * pair[1])
        names = OF_LAYERS.get(suite, options.architectures)
        for (size, batch), name, dtype, share in product(sized, names, chosen.dtypes, chosen.shares):
            of_unet = ARCHITECTURES.get(name, {}).get("block_out_channels", (320,))[0]
            channels = bench_layers.CHANNELS.get(name, of_unet)
            found.append(Point(suite, name, dtype, batch, size, size, channels, share, chosen.rounds))
    return found
