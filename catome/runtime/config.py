"""The settings of what a model merges, and when: one frozen dataclass, and the configurations that have a
name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch

from catome import checks
from catome.policy.cost_model import least_share
from catome.policy.forecast import Forecast
from catome.policy.rates import rates_of
from catome.policy.schedule import Schedule, parse_schedule
from catome.tensors.matching import MEASURES, Measure

Compare = Literal["input", "keys"]

PARTS = ("merge_attn", "merge_crossattn", "merge_mlp")


@dataclass(frozen=True)
class MergeConfig:
    """The configuration of merging; `catome.apply_patch` takes it in place of keywords, or with keywords that
    change it.

    Without arguments it is the recommended configuration, `catome.RECOMMENDED`.

    Attributes:
        threshold: merge every src token whose best similarity is at least this, in [-1, 1]; 1.0 merges exact
            duplicates only. None where ``ratio`` is given.
        ratio: merge this share of all tokens instead, in [0, 1 - 1/(sy*sx)]; exactly one of the two.
        schedule: the steps at which pairs are found afresh: a name of the paper's Table II, fitted to the
            length of the generation; a collection of steps counted from 0; a collection of shares of the
            generation in [0, 1); a `catome.Schedule`; or None for every step.
        keep_queries: merge keys and values alone. Every token keeps its own query, and nothing is unmerged.
        weighted: let a merged key count as often as it has members (`catome.tensors.attention`).
        stride: ``(vertical, horizontal)`` size in tokens of the window that has one dst token.
        dst: "top_left" (the paper) or "random" token of each window, drawn from a generator of its own.
        seed: of that generator; each generation begins with it.
        measure: of similarity (`catome.tensors.matching`): "distance" is how near two tokens lie on the scale
            of their image; "cosine", the paper's, is the cosine of the angle between them.
        compare: "keys" compares the keys and values of each attention, the values half as much; "input"
            compares what enters the block that it is in, as the paper does, where the model has such a place
            (U-Nets), and keys and values elsewhere. Pairs for cross-attention and the MLP are always found by
            the input.
        start: where in a generation merging begins, as a share in [0, 1].
        end: where it ends, likewise.
        across_frames: in videos, let tokens merge with tokens of other frames, too.
        max_downsample: U-Nets: merge in blocks downsampled at most this much against the topmost blocks that
            have attention (1: in those only, which in SDXL are themselves downsampled by 2).
        merge_attn: merge in self-attention.
        merge_crossattn: U-Nets: run cross-attention on merged tokens, too.
        merge_mlp: U-Nets: run the MLP on merged tokens, too.
        forecast: a `catome.Forecast`: leave the model out at some steps, and extrapolate its output there.
            None runs it at every step. With ``merge_attn=False`` this is all that is done.
        only_where_faster: leave blocks and images as they are where so few tokens, or so small a share of
            them, would be merged that it costs more time than it saves, by the model of
            `catome.policy.cost_model` and the rates that `catome.calibrate` has measured, else estimates.

    Raises:
        TypeError, ValueError: naming the field, its value and what is allowed.
    """

    threshold: float | None = 0.7
    ratio: float | None = None
    schedule: str | Schedule | Iterable[int] | Iterable[float] | None = "EVEN_13"
    keep_queries: bool = True
    weighted: bool = True
    stride: tuple[int, int] = (2, 2)
    dst: checks.Dst = "top_left"
    seed: int = 0
    measure: Measure = "distance"
    compare: Compare = "keys"
    start: float = 0.0
    end: float = 1.0
    across_frames: bool = False
    max_downsample: int = 1
    merge_attn: bool = True
    merge_crossattn: bool = False
    merge_mlp: bool = False
    forecast: Forecast | None = None
    only_where_faster: bool = True

    def __post_init__(self) -> None:
        stride = checks.check_stride(self.stride)
        threshold, ratio = checks.check_amount(self.threshold, self.ratio, stride)
        checked = {
            "stride": stride,
            "threshold": threshold,
            "ratio": ratio,
            "schedule": parse_schedule(self.schedule),
            "dst": checks.check_dst(self.dst),
            "seed": checks.check_seed(self.seed),
            "measure": checks.check_choice("measure", self.measure, MEASURES),
            "compare": checks.check_choice("compare", self.compare, ("input", "keys")),
            "start": checks.check_number("start", self.start, 0.0, 1.0),
            "end": checks.check_number("end", self.end, 0.0, 1.0),
            "max_downsample": checks.check_integer("max_downsample", self.max_downsample, 1),
        }
        for name in ("keep_queries", "weighted", "across_frames", *PARTS, "only_where_faster"):
            checks.check_flag(name, getattr(self, name))
        if self.forecast is not None:
            checks.check_kind("forecast", self.forecast, Forecast, "a catome.Forecast, or None")
        for name, value in checked.items():
            # a frozen dataclass is written to this way while it is made
            object.__setattr__(self, name, value)
        self._check_together()

    def _check_together(self) -> None:
        """Refuse what each field allows and their combination does not."""
        if self.start >= self.end:
            raise ValueError(f"start={self.start:g}, end={self.end:g}: merging must begin before it ends")
        if not any(getattr(self, part) for part in PARTS) and self.forecast is None:
            given = ", ".join(f"{part}=False" for part in PARTS)
            raise ValueError(f"{given}: at least one of them must be True, or forecast must be given")

    def changed(self, **changes) -> MergeConfig:
        """This configuration with some fields changed; a threshold takes the place of a ratio, and the other
        way round.

        Raises:
            TypeError, ValueError: as the class does.
        """
        given = {name for name in ("threshold", "ratio") if changes.get(name) is not None}
        if len(given) == 1 and not {"threshold", "ratio"} <= changes.keys():
            changes["ratio" if given == {"threshold"} else "threshold"] = None
        return replace(self, **changes)

    def least_share(self, x: torch.Tensor, matched: bool, at_the_call: bool = False) -> float:
        """The least share of the tokens ``x`` ``[B, N, C]`` that is worth merging, with or without the search
        for pairs.

        ``at_the_call``: they are merged where attention is called, behind the projections."""
        if not self.only_where_faster:
            return 0.0
        interval = math.inf if matched else self.interval
        return least_share(
            *x.shape[1:],
            rates_of(x),
            x.element_size(),
            sources=1 - 1 / math.prod(self.stride),
            interval=interval,
            parts=tuple(getattr(self, part) for part in PARTS),
            keep_queries=self.keep_queries,
            at_the_call=at_the_call,
        )

    @property
    def interval(self) -> float:
        """Steps for which the pairs of one checkpoint serve, on average."""
        return 1.0 if self.schedule is None else self.schedule.interval


FIELDS = tuple(field.name for field in fields(MergeConfig))


def configured(function: str, config, changes: dict) -> MergeConfig:
    """The configuration with changes; ``function`` is who is said not to have an argument."""
    for name, value in changes.items():
        if name not in FIELDS:
            known = ("pipe", "config", *FIELDS)
            about = f"is no argument of {function}{checks.near(name, known)}; it has {', '.join(known)}"
            raise TypeError(f"{name}={checks.shown(value)} {about}")
    checks.check_kind("config", config, MergeConfig, "a catome.MergeConfig, such as catome.PAPER")
    return config.changed(**changes) if changes else config


RECOMMENDED = MergeConfig()
"""Keys and values merged in 2x2 windows where they are at least 0.7 similar, each group counted, and pairs
found at 13 steps: a little more than a third of the attention scores is left."""

FAST = MergeConfig(threshold=0.6, stride=(4, 4))
"""The same in 4x4 windows and from 0.6 on, which leaves about a fifth of the attention scores."""

_THEIRS = dict(keep_queries=False, weighted=False, measure="cosine", compare="input", only_where_faster=False)

PAPER = MergeConfig(threshold=0.7, schedule="CONFIG_3", **_THEIRS)
"""CA-ToMe with threshold 0.7 and CONFIG_3, the headline of arXiv 2501.00946."""

TOME = MergeConfig(threshold=None, ratio=0.5, schedule=None, **_THEIRS)
"""ToMe for Stable Diffusion (arXiv 2303.17604) with half of the tokens, found afresh at every step, and
top-left dst tokens."""
