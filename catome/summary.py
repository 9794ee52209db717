"""Sum up what was merged: `catome.summary(pipe)` after a generation."""

from __future__ import annotations

from dataclasses import dataclass

from catome.models.registry import family_of, find_models
from catome.policy.schedule import LENGTH, Schedule
from catome.runtime.hooks import patch_of
from catome.runtime.report import Entry, Report

_EVERYTHING = 1 << 16
"""As ``max_downsample``: all levels of a U-Net."""


@dataclass(frozen=True)
class AttentionSummary:
    """The summary of one self-attention in the last generation.

    Attributes:
        name: the module's path in the model.
        calls: how often it ran.
        merged_share: share of its image tokens that were merged away, in [0, 1].
        scores_left: scores of queries and keys that were computed, as a share of those without merging.
        found_at: the steps at which pairs were found.
        not_merged: why it was left alone in some calls, and in how many of them; empty where it never was.
    """

    name: str
    calls: int
    merged_share: float
    scores_left: float
    found_at: tuple[int, ...]
    not_merged: dict[str, int]


@dataclass(frozen=True)
class Summary:
    """The summary of a patched pipeline's last generation; printed, it is a table.

    Attributes:
        attentions: of the patched self-attentions, in running order.
        steps: of the generation.
        length: what the schedule took the generation's length for.
        forecasts: share of the calls of the model that were left out, and its output extrapolated.
        length_known: whether something told that length; else the paper's 51 calls were assumed.
        merged_share: over all these attentions.
        scores_left: likewise.
        left_out: how many other self-attentions the model has, which the configuration does not touch.
        remarks: what a user should know, in sentences.
    """

    attentions: tuple[AttentionSummary, ...]
    steps: int
    length: int
    length_known: bool
    forecasts: float
    merged_share: float
    scores_left: float
    left_out: int
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def summary(pipe) -> Summary:
    """Say what the patch on ``pipe`` merged in the generation that runs in this thread, else in the last one
    that ended.

    Of a pipeline with several denoising models, all are put together.

    Raises:
        TypeError: if ``pipe`` has no model that could be patched.
        ValueError: if it is not patched.
    """
    attentions = []
    remarks = []
    reports = []
    left_out = 0
    for model in find_models(pipe):
        patch = patch_of(model)
        if patch is None or patch.rule is None:
            continue
        if patch.attentions is None:
            patch.settle(model)
        config = patch.rule.config
        report = patch.report() or Report()
        reports.append((report, config))
        names = [name for name in patch.attentions if name in patch.covered[config.max_downsample]]
        attentions += [_of_entry(name, report.entries.get(name, Entry())) for name in names]
        remarks += _remarks(report, config, names)
        left_out += len(family_of(model).attentions(model, _EVERYTHING)) - len(names)
    if not reports:
        raise ValueError(f"pipe={type(pipe).__name__} is not patched: call catome.apply_patch(pipe) first")
    if left_out:
        others = "1 more self-attention" if left_out == 1 else f"{left_out} more self-attentions"
        remarks.append(f"{others} on smaller grids not touched: max_downsample includes them")
    entries = [entry for report, _ in reports for entry in report.entries.values()]
    lengths = [report.length for report, _ in reports if report.length is not None]
    return Summary(
        tuple(attentions),
        max(report.steps for report, _ in reports),
        max(lengths, default=LENGTH),
        bool(lengths),
        _share(sum(report.forecasts for report, _ in reports), sum(report.calls for report, _ in reports)),
        _share(sum(entry.merged for entry in entries), sum(entry.tokens for entry in entries)),
        _left(sum(entry.scores_left for entry in entries), sum(entry.scores for entry in entries)),
        left_out,
        tuple(dict.fromkeys(remarks)),
    )


def _of_entry(name: str, entry: Entry) -> AttentionSummary:
    return AttentionSummary(
        name,
        entry.calls,
        _share(entry.merged, entry.tokens),
        _left(entry.scores_left, entry.scores),
        tuple(entry.found),
        dict(entry.reasons),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _left(left: int, scores: int) -> float:
    return left / scores if scores else 1.0


def _remarks(report: Report, config, names: list[str]) -> list[str]:
    """The remarks on one model's generation that a user should know."""
    if not report.calls:
        return ["nothing has been generated since the patch was put on"]
    remarks = []
    reasons = {reason for entry in report.entries.values() for reason in entry.reasons}
    remarks += [f"an attention was left as it is because {reason}" for reason in sorted(reasons)]
    unseen = [name for name in names if name not in report.entries] if config.merge_attn else []
    active = config.start == 0.0 and config.end == 1.0
    if unseen and active:
        remarks.append(
            f"{len(unseen)} attentions were never called, {unseen[0]} first: something else runs in their "
            "place"
        )
    if not any(entry.merged for entry in report.entries.values()) and not reasons and not unseen:
        amount = f"threshold={config.threshold:g}" if config.ratio is None else f"ratio={config.ratio:g}"
        few = ", or too few to save time" if config.only_where_faster else ""
        remarks.append(f"nothing was merged: no pair of tokens reached {amount}{few}")
    scaled = isinstance(config.schedule, Schedule) and config.schedule.length is not None
    if report.length is None and (scaled or not active):
        remarks.append(
            f"nothing told how long the generation is: {LENGTH} calls of the model were assumed for the "
            "schedule"
        )
    return remarks


def _lines(found: Summary) -> list[str]:
    width = max((len(attention.name) for attention in found.attentions), default=9)
    lines = [f"{'attention':{width}}  merged  scores left  found at"]
    for attention in found.attentions:
        at = " ".join(map(str, attention.found_at)) or "-"
        numbers = f"{attention.merged_share:6.0%}  {attention.scores_left:11.0%}"
        lines.append(f"{attention.name:{width}}  {numbers}  {at}")
    steps = f"{found.steps} steps" if found.steps != 1 else "1 step"
    if found.forecasts:
        steps += f", {found.forecasts:.0%} of them forecast"
    lines.append(f"{'all':{width}}  {found.merged_share:6.0%}  {found.scores_left:11.0%}  in {steps}")
    return lines + [f"- {remark}." for remark in found.remarks]
