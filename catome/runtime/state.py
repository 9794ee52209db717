"""The pairs that serve a call of the model: kept for each condition of a generation, found afresh when they
are due."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from catome.models.base import Layout, ModelCall
from catome.policy.cost_model import without_small
from catome.policy.schedule import LENGTH
from catome.runtime.config import MergeConfig
from catome.runtime.report import Report
from catome.runtime.steps import Condition, Generation
from catome.tensors.matching import Matches, best_matches
from catome.tensors.plan import MergePlan, make_plan, pack


def decide(matches: Matches, config: MergeConfig) -> MergePlan:
    """The plan that a configuration makes of what was found similar."""
    return make_plan(matches, config.threshold, config.ratio)


@dataclass(frozen=True)
class Rule:
    """The rule by which a generation merges.

    Attributes:
        config: the configuration.
        choose: makes a plan of what was found similar.
        outdated: looks at cached pairs at every step between checkpoints: given the plan, the tokens as they
            are now ``[B, N, C]`` and the configuration, it returns a boolean ``[B]``, True for the images
            that need new pairs. None where checkpoints alone decide. Where only it decides, the schedule is
            ``(0,)``, and ``only_where_faster`` counts as if pairs were found once.
    """

    config: MergeConfig
    choose: Callable[[Matches, MergeConfig], MergePlan] = decide
    outdated: Callable[[MergePlan, torch.Tensor, MergeConfig], torch.Tensor] | None = None


class Kept:
    """The state that a generation keeps beside its place: its rule, its random numbers, its report.

    A generation holds the rule that it began with: another thread that changes the patch changes later
    generations."""

    def __init__(self, rule: Rule | None) -> None:
        self.rule = rule
        self.generator = torch.Generator("cpu").manual_seed(rule.config.seed if rule is not None else 0)
        self.report = Report()
        self.over = False

    def end(self) -> None:
        """Note that the generation has ended; something may hold this longer, such as an exception's
        traceback."""
        self.over = True


@dataclass(frozen=True)
class Cached:
    """A plan in the cache.

    Attributes:
        plan: the plan.
        fits: what it was made for: batch, layout, dtype and device.
        made: the step at which it was made.
    """

    plan: MergePlan
    fits: tuple
    made: int


@dataclass(frozen=True)
class Ran:
    """The outcome of one call of an attention.

    Attributes:
        name: of the attention.
        plan: by which keys were merged; None where it was left alone.
        place: where, as in `Running.plan`.
        layout: where the image tokens were.
        around_queries, around_keys: tokens of each image that are no image tokens, such as text.
        reason: why it was left alone, and the ``size`` of the call as far as it is known.
    """

    name: str
    plan: MergePlan | None = None
    place: str = ""
    layout: Layout | None = None
    around_queries: int = 0
    around_keys: int = 0
    reason: str = ""
    size: dict[str, int] = field(default_factory=dict)


@dataclass
class Running:
    """The call of the model that a thread is in.

    Attributes:
        call: the call.
        generation: the generation that it belongs to.
        condition: the one of the generation's conditions that it is for.
        active: whether tokens are merged at this step.
        inputs: what entered the blocks that are being run, by the name of their attention.
        used: the plans that this call merged by, by the name of the attention.
        times: how often each place where tokens are compared has come by in this call, by attention and
            place.
        ran: what the attentions came to so far, in the order in which they were called.
    """

    call: ModelCall
    generation: Generation
    condition: Condition
    active: bool = False
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    used: dict[str, MergePlan] = field(default_factory=dict)
    times: Counter = field(default_factory=Counter)
    ran: list[Ran] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.active = self.rule is not None and self._within()

    @property
    def rule(self) -> Rule | None:
        """The rule by which this generation merges; None where it does not."""
        return self.generation.payload.rule

    @property
    def config(self) -> MergeConfig:
        """The configuration of this generation."""
        return self.rule.config

    @property
    def report(self) -> Report:
        """The report in which this generation is written down."""
        return self.generation.payload.report

    def note(self, ran: Ran) -> None:
        """Write down what a call of an attention came to."""
        self.ran.append(ran)
        if ran.plan is None:
            self.report.left_alone(ran.name, ran.reason, **ran.size)
            return
        self.used[ran.name] = ran.plan
        self.report.merged(
            ran.name, ran.plan, ran.around_queries, ran.around_keys, not self.config.keep_queries
        )

    @property
    def cached(self) -> bool:
        """True if every plan of this condition still serves at this step, so that nothing is compared in
        it."""
        if self.rule.outdated is not None or self.condition.since is not None:
            return False
        due = self._due()
        return all(cached.made >= due for cached in self.condition.plans.values())

    def _within(self) -> bool:
        """Return True if the step lies between the configuration's start and end."""
        length = self.generation.length or LENGTH
        over = self.config.end < 1.0 and self.generation.step >= self.config.end * length
        return self.config.start * length <= self.generation.step and not over

    def _due(self) -> int:
        """The step of the last checkpoint: plans that are older are found afresh."""
        schedule = self.config.schedule
        if schedule is None:
            return self.generation.step
        return schedule.due(self.generation.step, self.generation.length)

    @torch.inference_mode(False)  # a later call may want gradients through the same plan
    def plan(
        self,
        name: str,
        place: str,
        tokens: Callable[[], torch.Tensor],
        like: torch.Tensor,
        images: int,
        layout: Layout,
    ) -> MergePlan:
        """The plan for an attention at this step: the cached one, or one that is made now.

        Args:
            name: of the attention.
            place: where tokens are compared: "block" where they enter it, "keys" where an attention makes
                keys of them, "call" where attention is called. A model may come by there several times in one
                call, and each time has pairs of its own.
            tokens: gives the tokens to compare, ``[images, layout.tokens, C]``; called only where pairs are
                looked for.
            like: a tensor of the same dtype and device.
            images: rows of the batch.
            layout: where the image tokens are.
        """
        fits = (images, layout, like.dtype, like.device)
        key = (name, place, self.times[name, place])
        cached = self.condition.plans.get(key)
        step = self.generation.step
        if cached is None or cached.fits != fits or cached.made < self._due():
            x = tokens()
            made = Cached(self._find(x, layout, place), fits, step)
        elif cached.made == step:
            return cached.plan
        else:
            made = self._mended(cached, tokens, layout, place)
        if made is not cached:
            self.report.found(name, step)
            self.condition.plans[key] = made
        return made.plan

    def _mended(
        self, cached: Cached, tokens: Callable[[], torch.Tensor], layout: Layout, place: str
    ) -> Cached:
        """The cached plan, with new pairs for the images whose old ones no longer hold."""
        rows = self._of_other_images(cached)
        if self.rule.outdated is not None:
            outdated = self.rule.outdated(cached.plan, tokens(), self.config)
            rows = outdated if rows is None else outdated | rows.to(outdated.device)
        if rows is None or not rows.any():
            return cached
        x = tokens()
        images = rows.nonzero()[:, 0].to(x.device)
        fresh = self._find(x[images], layout, place)
        target = cached.plan.target.index_copy(0, images, fresh.target)
        plan = pack(target, cached.plan.lengths if self.config.threshold is None else None)
        return Cached(plan, cached.fits, self.generation.step)

    def _of_other_images(self, cached: Cached) -> torch.Tensor | None:
        """The rows of a plan that were made for the latents of another image; None where all were made for
        these."""
        since = self.condition.since
        if since is None:
            return None
        changed = since > cached.made
        images = len(cached.plan.lengths)
        if images % len(changed):
            return changed.any().expand(images)
        # a video's frames are rows behind each other
        return changed.repeat_interleave(images // len(changed))

    def _find(self, x: torch.Tensor, layout: Layout, place: str) -> MergePlan:
        """A plan for the tokens ``x`` ``[B, N, C]`` of a ``place`` where tokens are compared."""
        config = self.config
        apart = layout.frames > 1 and not config.across_frames
        images = len(x)
        if apart:
            x = x.reshape(images * layout.frames, -1, x.shape[-1])
        matches = best_matches(
            x,
            (layout.height, layout.width),
            config.stride,
            config.dst,
            self.generation.payload.generator,
            config.threshold == 1.0,
            frames=1 if apart else layout.frames,
            measure=config.measure,
        )
        plan = self.rule.choose(matches, config)
        if config.ratio is None:
            # without the values that lie beside them
            keys = x if place == "block" else x[..., : x.shape[-1] // 2]
            plan = without_small(plan, config.least_share(keys, matched=True, at_the_call=place == "call"))
        return _joined(plan, images) if apart else plan

    def too_few(self, like: torch.Tensor, at_the_call: bool = False) -> bool:
        """Return True if no share of the tokens ``like`` ``[B, N, C]`` that may come out is worth looking
        for."""
        config = self.config
        most = 1 - 1 / math.prod(config.stride) if config.ratio is None else config.ratio
        return config.only_where_faster and most < config.least_share(
            like, matched=False, at_the_call=at_the_call
        )


def _joined(plan: MergePlan, images: int) -> MergePlan:
    """A plan of frames as a plan of videos, in each of which the frames lie behind each other."""
    frames = len(plan.lengths) // images
    tokens = plan.target.shape[1]
    offset = torch.arange(frames, device=plan.target.device) * tokens
    target = (plan.target.view(images, frames, tokens) + offset[:, None]).flatten(1)
    lengths = tuple(sum(plan.lengths[i * frames : (i + 1) * frames]) for i in range(images))
    return pack(target, lengths)
