"""Watch a pipeline: the best similarity of every src token, and with it all pairs, at every step and block.

Plain forward hooks of torch that only read; what the pipeline generates stays the same to the bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock

from catome import checks
from catome.models._torch import in_eager
from catome.models.base import ModelCall, SelfAttention, bound
from catome.models.registry import family_of, find_models
from catome.runtime.hooks import patch_of
from catome.runtime.steps import CallFacts, Timeline
from catome.tensors.matching import Matches, best_matches
from catome.tensors.plan import MergePlan, make_plan


@dataclass
class Observation:
    """One transformer block in one call of the model.

    Attributes:
        step: the place within its generation, from 0.
        timestep: the scheduler's timestep.
        block: module name of the block.
        matches: `catome.Matches` of the block's input, on the CPU; the rows of a pipeline with
            classifier-free guidance are all unconditional images, then all conditional ones.
        plan: the plan by which parts of the block ran on merged tokens; None if none did.
        tokens: the block's input ``[B, N, C]``, if it was asked for.
        call: which of the model's calls at this step it is, from 0, where guidance or views take several;
            None beyond those that are told apart.
    """

    step: int
    timestep: float
    block: str
    matches: Matches
    plan: MergePlan | None = None
    tokens: torch.Tensor | None = None
    call: int | None = 0


@dataclass
class Record:
    """The record of `probe`: one list of `Observation` for each generation, in the order in which things
    happened."""

    generations: list[list[Observation]] = field(default_factory=list)

    def blocks(self, generation: int = 0) -> list[str]:
        """Module names of the watched blocks in running order.

        Raises:
            IndexError: if there was no such generation.
        """
        seen_there = self.generations[
            checks.check_index("generation", generation, len(self.generations), "watched")
        ]
        return list(dict.fromkeys(seen.block for seen in seen_there))

    def steps(self, generation: int = 0) -> list[int]:
        """The observed steps, ascending."""
        self.blocks(generation)
        return sorted({seen.step for seen in self.generations[generation]})

    def at(self, step: int, block: str | int, generation: int = 0) -> Observation:
        """The observation of one step and block (its name, or its position in `blocks`).

        Raises:
            KeyError: if that step or block was not observed.
            TypeError: for a step that is no integer, or a block that is neither an integer nor a name.
        """
        blocks, step = self.blocks(generation), checks.check_integer("step", step)
        by_position = not isinstance(block, str) and -len(blocks) <= checks.check_integer(
            "block", block
        ) < len(blocks)
        name = blocks[block] if by_position else block
        for seen in self.generations[generation]:
            if (seen.step, seen.block) == (step, name):
                return seen
        known = f"steps are {self.steps(generation)}, blocks are {blocks}"
        raise KeyError(
            f"step={step!r}, block={block!r} was not observed{checks.near(str(block), blocks)}; {known}"
        )

    def similarity(self, generation: int = 0) -> torch.Tensor:
        """Best similarity of every src token, ``[steps, blocks, B, S]`` float32; the blocks must have equally
        many tokens.

        Of the first call at each step, where there are several.

        Raises:
            ValueError: if nothing was observed, or blocks of different sizes were (with ``max_downsample``
                above 1): use `at`.
        """
        return self._stack(generation, lambda seen: seen.matches.similarity)

    def merged_share(self, generation: int = 0, **amount) -> torch.Tensor:
        """Share of all tokens merged, ``[steps, blocks, B]``.

        Args:
            generation: which generation.
            amount: ``threshold=`` or ``ratio=`` as in `catome.make_plan`; without either, as the patch
                merged.

        Raises:
            ValueError: for an amount out of range, or none when the block was not patched.
        """
        return self._stack(generation, lambda seen: _plan(seen, amount).merged_share)

    def pairs(self, step: int, block: str | int, image: int, generation: int = 0, **amount) -> torch.Tensor:
        """``(src, dst)`` pairs ``[P, 2]`` of one row of the batch; arguments and errors as in `at` and
        `merged_share`."""
        return _plan(self.at(step, block, generation), amount).pairs(image)

    def _stack(self, generation: int, value) -> torch.Tensor:
        self.blocks(generation)
        first_calls = [seen for seen in self.generations[generation] if seen.call == 0]
        by_place = {(seen.step, seen.block): value(seen) for seen in first_calls}
        if len({value.shape for value in by_place.values()}) != 1:
            sizes = sorted({tuple(value.shape) for value in by_place.values()})
            raise ValueError(
                f"generation={generation!r} has observations of shapes {sizes}: there must be one shape to "
                "stack"
            )
        rows = [
            [by_place[step, block] for block in self.blocks(generation)] for step in self.steps(generation)
        ]
        return torch.stack([torch.stack(row) for row in rows])


def _plan(seen: Observation, amount: dict) -> MergePlan:
    if not amount and seen.plan is None:
        raise ValueError("threshold=None, ratio=None: give one of them, since the pipeline was not patched")
    return make_plan(seen.matches, **amount) if amount else seen.plan


@checks.suggests_arguments
@contextmanager
def probe(
    pipe,
    *,
    stride: tuple[int, int] = (2, 2),
    dst: checks.Dst = "top_left",
    seed: int = 0,
    max_downsample: int = 1,
    steps: Collection[int] | None = None,
    keep_tokens: bool = False,
) -> Iterator[Record]:
    """Watch a pipeline, patched or not, for the length of a ``with`` block.

    Args:
        pipe: any diffusers pipeline whose model is made of ``BasicTransformerBlock``, as U-Nets with
            transformer blocks and PixArt are, or such a model.
        stride, dst, seed, max_downsample: as in `catome.apply_patch`.
        steps: observe these steps only; None observes all.
        keep_tokens: also keep every observed block's input (``B * N * C`` numbers each).

    Returns:
        (yields) a `Record` that fills while the pipeline runs.

    Raises:
        TypeError, ValueError: naming the argument, before anything is watched.
    """
    stride = checks.check_stride(stride)
    checks.check_dst(dst)
    checks.check_seed(seed)
    checks.check_integer("max_downsample", max_downsample, 1)
    steps = checks.check_steps(steps)
    checks.check_flag("keep_tokens", keep_tokens)
    model, watched = _watched(pipe, max_downsample)
    family = family_of(model)
    record = Record()

    def begin() -> _Watching:
        record.generations.append([])
        return _Watching(record.generations[-1], torch.Generator("cpu").manual_seed(seed))

    timeline = Timeline(begin)
    now: dict[str, Any] = {}

    @in_eager
    def before_model(module, args, kwargs):
        arguments = bound(module, args, kwargs)
        timestep = arguments[family.timestep]
        facts = CallFacts(
            timestep,
            arguments.get(family.sample),
            arguments.get(family.condition),
            planned=getattr(getattr(pipe, "scheduler", None), "timesteps", None),
        )
        generation, condition = timeline.locate(facts)
        now["generation"] = generation
        now["call"] = next((i for i, known in enumerate(generation.conditions) if known is condition), None)
        now["timestep"] = float(torch.as_tensor(timestep).flatten()[0])
        now["arguments"] = ModelCall(module, arguments)

    def after_block(attention: SelfAttention):
        @in_eager
        @torch.no_grad()
        def look(module, args, kwargs, output):
            x = args[0] if args else kwargs["hidden_states"]
            generation = now["generation"]
            layout = attention.layout(now["arguments"], x.shape[1], x.shape[1])
            if layout is None or layout.height < stride[0] or layout.width < stride[1]:
                return
            if steps is not None and generation.step not in steps:
                return
            grid = (layout.height, layout.width)
            matches = best_matches(x, grid, stride, dst, generation.payload.generator)
            on_cpu = {
                key: value.cpu() for key, value in vars(matches).items() if isinstance(value, torch.Tensor)
            }
            patch = patch_of(model)
            running = patch.running if patch is not None else None
            used = running.used.get(attention.name) if running is not None else None
            seen = Observation(
                step=generation.step,
                timestep=now["timestep"],
                block=attention.name.rpartition(".")[0],
                matches=Matches(**on_cpu, grid=grid),
                plan=used.to("cpu") if used is not None else None,
                tokens=x.detach().to("cpu", copy=True) if keep_tokens else None,
                call=now["call"],
            )
            generation.payload.seen.append(seen)

        return look

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(before_model, with_kwargs=True).remove)
        for attention in watched:
            stack.callback(
                attention.block.register_forward_hook(after_block(attention), with_kwargs=True).remove
            )
        yield record


@dataclass
class _Watching:
    """The state that the probe keeps with a generation: its observations, and its random numbers."""

    seen: list[Observation]
    generator: torch.Generator


def _watched(pipe, max_downsample: int) -> tuple[torch.nn.Module, list[SelfAttention]]:
    """The first model of ``pipe`` that has transformer blocks whose input can be watched, and their
    self-attentions."""
    models = find_models(pipe)
    for model in models:
        attentions = [
            _in_its_block(model, attention)
            for attention in family_of(model).attentions(model, max_downsample)
        ]
        watched = [attention for attention in attentions if attention.block is not None]
        if watched:
            return model, watched
    name = type(models[0]).__name__
    raise TypeError(
        f"pipe={name} has no transformer block (BasicTransformerBlock of diffusers), whose input the probe "
        "watches"
    )


def _in_its_block(model: torch.nn.Module, attention: SelfAttention) -> SelfAttention:
    """The attention with the block that it stands in, also of a transformer, where the block's input is
    merged by no method."""
    if attention.block is not None:
        return attention
    block = model.get_submodule(attention.name.rpartition(".")[0])
    return replace(attention, block=block) if isinstance(block, BasicTransformerBlock) else attention
