"""Watch a pipeline: the best similarity of every src token, and with it all pairs, at every step and block.

Plain forward hooks of torch that only read; what the pipeline generates stays the same to the bit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch

from catome import checks
from catome.matching import Matches, best_matches
from catome.patch import applied_patch
from catome.plan import MergePlan, make_plan
from catome.unet import StepCounter, find_unet, token_grid, topmost_downsample, transformer_blocks


@dataclass
class Observation:
    """One transformer block in one U-Net call.

    Attributes:
        step: the U-Net call within its generation, from 0.
        timestep: the scheduler's timestep.
        block: module name of the block.
        matches: `catome.Matches` of the block's input, on the CPU; the rows of a pipeline with classifier-free guidance are
            all unconditional images, then all conditional ones.
        plan: the plan by which parts of the block ran on merged tokens; None if none did.
        tokens: the block's input ``[B, N, C]``, if it was asked for.
    """

    step: int
    timestep: float
    block: str
    matches: Matches
    plan: MergePlan | None = None
    tokens: torch.Tensor | None = None


@dataclass
class Record:
    """What `probe` saw: one list of `Observation` for each generation, in the order in which things happened."""

    generations: list[list[Observation]] = field(default_factory=list)

    def blocks(self, generation: int = 0) -> list[str]:
        """Module names of the watched blocks in running order.

        Raises:
            IndexError: if there was no such generation.
        """
        seen_there = self.generations[checks.check_index("generation", generation, len(self.generations), "watched")]
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
        by_position = not isinstance(block, str) and -len(blocks) <= checks.check_integer("block", block) < len(blocks)
        name = blocks[block] if by_position else block
        for seen in self.generations[generation]:
            if (seen.step, seen.block) == (step, name):
                return seen
        known = f"steps are {self.steps(generation)}, blocks are {blocks}"
        raise KeyError(f"step={step!r}, block={block!r} was not observed{checks.near(str(block), blocks)}; {known}")

    def similarity(self, generation: int = 0) -> torch.Tensor:
        """Best similarity of every src token, ``[steps, blocks, B, S]`` float32; the blocks must have equally many tokens.

        Raises:
            ValueError: if nothing was observed, or blocks of different sizes were (with ``max_downsample`` above 1): use `at`.
        """
        return self._stack(generation, lambda seen: seen.matches.similarity)

    def merged_share(self, generation: int = 0, **amount) -> torch.Tensor:
        """Share of all tokens merged, ``[steps, blocks, B]``.

        Args:
            generation: which generation.
            amount: ``threshold=`` or ``ratio=`` as in `catome.make_plan`; without either, as the patch merged.

        Raises:
            ValueError: for an amount out of range, or none when the block was not patched.
        """
        return self._stack(generation, lambda seen: _plan(seen, amount).merged_share)

    def pairs(self, step: int, block: str | int, image: int, generation: int = 0, **amount) -> torch.Tensor:
        """``(src, dst)`` pairs ``[P, 2]`` of one row of the batch; arguments and errors as in `at` and `merged_share`."""
        return _plan(self.at(step, block, generation), amount).pairs(image)

    def _stack(self, generation: int, value) -> torch.Tensor:
        self.blocks(generation)
        by_place = {(seen.step, seen.block): value(seen) for seen in self.generations[generation]}
        if len({value.shape for value in by_place.values()}) != 1:
            sizes = sorted({tuple(value.shape) for value in by_place.values()})
            raise ValueError(f"generation={generation!r} has observations of shapes {sizes}: there must be one shape to stack")
        rows = [[by_place[step, block] for block in self.blocks(generation)] for step in self.steps(generation)]
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
        pipe: any diffusers pipeline with a ``unet``, or a ``UNet2DConditionModel``.
        stride, dst, seed, max_downsample: as in `catome.apply_patch`.
        steps: observe these steps only; None observes all.
        keep_tokens: also keep every observed block's input (``B * N * C`` numbers each).

    Returns:
        (yields) a `Record` that fills while the pipeline runs.

    Raises:
        TypeError, ValueError: naming the argument, before anything is watched.
    """
    unet, stride = find_unet(pipe), checks.check_stride(stride)
    checks.check_dst(dst)
    generator = torch.Generator().manual_seed(checks.check_seed(seed))
    downsample = checks.check_integer("max_downsample", max_downsample, 1) * topmost_downsample(unet)
    steps = checks.check_steps(steps)
    checks.check_flag("keep_tokens", keep_tokens)
    record, counter, now = Record(), StepCounter(), {}

    def before_unet(module, args, kwargs):
        sample = kwargs["sample"] if "sample" in kwargs else args[0]
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        if counter.advance(timestep):
            generator.manual_seed(seed)
            record.generations.append([])
        now.update(size=tuple(sample.shape[-2:]), timestep=float(torch.as_tensor(timestep).flatten()[0]))

    def after_block(name):
        @torch.no_grad()
        def look(module, args, kwargs, output):
            x = args[0] if args else kwargs["hidden_states"]
            grid = token_grid(x, now.get("size"), downsample, stride)
            if grid is None or (steps is not None and counter.step not in steps):
                return
            matches = best_matches(x, grid, stride, dst, generator)
            on_cpu = {key: value.cpu() for key, value in vars(matches).items() if isinstance(value, torch.Tensor)}
            patch = applied_patch(unet)
            used = patch.now.used if patch is not None else None
            plan = used.to("cpu") if used is not None else None
            tokens = x.detach().to("cpu", copy=True) if keep_tokens else None
            seen = Observation(counter.step, now["timestep"], name, Matches(**on_cpu, grid=grid), plan, tokens)
            record.generations[-1].append(seen)

        return look

    with ExitStack() as stack:
        stack.callback(unet.register_forward_pre_hook(before_unet, with_kwargs=True).remove)
        for name, block in transformer_blocks(unet).items():
            stack.callback(block.register_forward_hook(after_block(name), with_kwargs=True).remove)
        yield record
