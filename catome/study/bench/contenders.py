"""The contenders of the benchmark: operations alone, single layers, whole U-Net calls, peak memory.

U-Nets have the published architectures and random weights: how long a call takes depends on shapes and on the
share of tokens that is merged, which is given, not on what the weights have learnt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache, partial
from itertools import product

import pandas as pd
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor

from catome.models.unet import topmost_downsample, transformer_blocks
from catome.policy.cost_model import gain
from catome.policy.rates import rates_of
from catome.policy.schedule import SCHEDULES
from catome.runtime.config import PAPER, MergeConfig
from catome.runtime.install import install, uninstall
from catome.study import methods
from catome.study.bench import layers as bench_layers
from catome.study.bench.points import Point
from catome.study.bench.rounds import LEAST_SAMPLE, Call, Clock, Contender, cpu_clock, or_why_not, take_turns
from catome.study.bench.table import (
    AUTHORS,
    BEST,
    BY_COSINE,
    BY_DISTANCE,
    CACHED,
    CATOME,
    COPY,
    DOWNSAMPLED,
    FREE,
    FRESH,
    KEYS,
    TOMESD,
    UNFUSED,
    UNMERGED,
    ratio,
)
from catome.study.costs.accounting import ARCHITECTURES
from catome.study.measure.clock import peak_memory as memory_since
from catome.study.run.parameters import DTYPES
from catome.tensors.matching import Matches
from catome.tensors.plan import MergePlan, make_plan, match

SCHEDULE, CALLS = "CONFIG_3", 51
CHECKPOINT = sum(step < CALLS for step in SCHEDULES[SCHEDULE]) / CALLS
"""The share of a generation's U-Net calls (50 PLMS steps) that are checkpoints: 13 of 51."""


BEST_SHARE = 0.64
"""The share of keys that `catome.RECOMMENDED` merges on the embedded model (``python -m catome.study
frontier``): random weights have nothing in common that a threshold could be set by."""


_IN_A_GRAPH = 20  # operations in one CUDA graph


def operations(point: Point, device: str) -> list[Contender]:
    """Merging and unmerging ``[2 * batch, height * width, channels]`` random tokens, by catome and by
    `tomesd`, and a copy; and finding pairs alone, by either measure.

    The copy moves as many bytes as merging and unmerging must: it reads and writes a tensor of half of them.
    On CUDA, several of each are captured in a CUDA graph, so that what is timed is the device and not how
    fast Python feeds it."""
    from tomesd.merge import bipartite_soft_matching_random2d

    height, width, share = point.height, point.width, point.share
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2 * point.batch, height * width, point.channels, generator=generator).to(
        device, DTYPES[point.dtype]
    )
    removed = int(height * width * share)

    def by_tomesd() -> tuple[Callable, Callable]:
        return bipartite_soft_matching_random2d(tokens, width, height, 2, 2, removed, no_rand=True)

    plan, (merge, unmerge) = match(tokens, (height, width), ratio=share), by_tomesd()
    source = torch.randn(tokens.numel() + sum(plan.lengths) * point.channels, generator=generator).to(tokens)
    target = torch.empty_like(source)

    def fresh() -> torch.Tensor:
        made = match(tokens, (height, width), ratio=share)
        return made.unmerge(made.merge(tokens))

    def fresh_by_tomesd() -> torch.Tensor:
        merge, unmerge = by_tomesd()
        return unmerge(merge(tokens))

    works = {
        f"{CATOME} {CACHED}": lambda: plan.unmerge(plan.merge(tokens)),
        f"{TOMESD} {CACHED}": lambda: unmerge(merge(tokens)),
        COPY: lambda: target.copy_(source),
        f"{CATOME} {FRESH}": fresh,
        f"{TOMESD} {FRESH}": fresh_by_tomesd,
        BY_COSINE: lambda: match(tokens, (height, width), ratio=share),
        BY_DISTANCE: lambda: match(tokens, (height, width), ratio=share, measure="distance"),
    }
    contenders = []
    for method, work in works.items():
        call, note = (_captured(work), "") if device.startswith("cuda") else (Call(work), "")
        if device.startswith("cuda") and call.inside == 1:
            note = "not in a CUDA graph: launches are timed too"
        contenders.append(Contender(method, (call,), least_s=LEAST_SAMPLE, note=note))
    return contenders


def _captured(work: Callable[[], object]) -> Call:
    """Several runs of ``work`` as one CUDA graph; ``work`` itself where it cannot be captured."""
    here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
    aside.wait_stream(here)
    with torch.cuda.stream(aside):  # what is compiled or allocated at the first run must not be captured
        work()
    here.wait_stream(aside)
    graph = torch.cuda.CUDAGraph()

    def capture() -> Call:
        with torch.cuda.graph(graph):
            for _ in range(_IN_A_GRAPH):
                work()
        return Call(graph.replay, _IN_A_GRAPH)

    return or_why_not(capture, Call(work))[0]


@lru_cache(maxsize=1)
def random_unet(architecture: str, dtype: str, device: str) -> UNet2DConditionModel:
    """A U-Net of `ARCHITECTURES` with random weights, which keep activations finite in every dtype. The last
    one is kept."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**ARCHITECTURES[architecture])
    # diffusers' own warns of parts to be kept in float32, of which it has none
    unet = torch.nn.Module.to(unet, DTYPES[dtype])
    unet = unet.to_empty(device=device).eval().requires_grad_(False)
    # drawn once and laid out again and again: drawing each of 10^9 numbers would take longer than a U-Net
    # call. As many as a prime, so that no two rows of a matrix are equal.
    drawn = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)).to(device, DTYPES[dtype])
    for name, weight in unet.named_parameters():
        if weight.ndim < 2:  # norms and biases
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            flat = weight.view(-1)
            for part in flat.split(len(drawn)):
                part.copy_(drawn[: len(part)])
            flat.mul_(0.5 / math.sqrt(weight[0].numel()))
    return unet


def _caller(point: Point, device: str) -> tuple[UNet2DConditionModel, Callable[[int], torch.Tensor]]:
    """A U-Net, and a function that calls it at one step of a timetable, with classifier-free guidance."""
    unet = random_unet(point.architecture, point.dtype, device)
    rows = 2 * point.batch
    dtype = DTYPES[point.dtype]
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape, generator=generator).to(device, dtype)

    sample = noise(unet.config.in_channels, point.height // 8, point.width // 8)
    words, more = noise(77, unet.config.cross_attention_dim), None
    if unet.config.addition_embed_type == "text_time":
        width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        more = {"text_embeds": noise(width), "time_ids": noise(6)}
    # views of one tensor, as a pipeline hands out its timesteps: by them a patch knows the step
    timetable = torch.linspace(999, 1, CALLS, device=device).long()

    def call(step: int) -> torch.Tensor:
        return unet(
            sample, timetable[step], encoder_hidden_states=words, added_cond_kwargs=more, return_dict=False
        )[0]

    return unet, call


def attention(point: Point, device: str) -> list[Contender]:
    """One self-attention with its projections; see `catome.study.bench.layers.attention_work`."""
    works = bench_layers.attention_work(point, device)
    return [Contender(method, (Call(work),), least_s=LEAST_SAMPLE) for method, work in works.items()]


def block_calls(point: Point, device: str) -> list[Contender]:
    """One call of a transformer of one block of each kind, unmerged and with the point's share of keys
    merged."""
    model, call = bench_layers.block_call(point, device)
    merged = bench_layers.keys_merged(point.share)
    return [
        Contender(UNMERGED, (Call(partial(call, 1)),)),
        Contender(KEYS, _over_a_generation(call), partial(merged, model), steps_aside=True),
    ]


def compiled(point: Point, device: str) -> list[Contender]:
    """A cached call by the hooks and compiled; see `catome.study.bench.layers.compiled_calls`."""
    calls = bench_layers.compiled_calls(point, device)
    return [Contender(method, (Call(work),), note=took) for method, (work, took) in calls.items()]


def _over_a_generation(call: Callable[[int], object]) -> tuple[Call, ...]:
    """A call at which pairs are found and one at which they are there, weighted as in a generation with 13
    checkpoints."""
    return (
        Call(partial(call, 0), name="checkpoint call", weight=CHECKPOINT),
        Call(partial(call, 1), name="cached call", weight=1 - CHECKPOINT),
    )


def authors_rule(share: float) -> methods.Method:
    """The batch-maximum rule of the authors' code at a given merged share, cached as catome is, for timing
    alone.

    It counts and waits for the count as `catome.study.methods.batch_maximum` does, and then merges ``share``,
    for what random weights have in common with one another is nothing to set a threshold by."""

    def choose(matches: Matches, config: MergeConfig) -> MergePlan:
        (matches.similarity >= config.threshold).sum(1).max().item()
        return make_plan(matches, ratio=share)

    @contextmanager
    def applied(pipe) -> Iterator:
        install(pipe, PAPER.changed(schedule=SCHEDULE), choose)
        try:
            yield pipe
        finally:
            uninstall(pipe)

    return methods.Method(f"{AUTHORS}(share={share:g}, schedule={SCHEDULE})", AUTHORS, applied)


def free_merging(share: float) -> methods.Method:
    """Merging that costs nothing: the topmost self-attentions on a given share less of the tokens, and that
    is all.

    No pair is looked for, nothing is merged or unmerged; the attention gets the first tokens there are, and
    the block goes on with what it had. Its images are nonsense; its time is the limit (Amdahl) of every
    method that merges this share there."""

    @contextmanager
    def applied(unet) -> Iterator:
        inputs, size, downsample = {}, {}, topmost_downsample(unet)

        def note(module, args):
            size["tokens"] = math.prod(math.ceil(edge / downsample) for edge in args[0].shape[-2:])

        def shorten(module, args, kwargs):
            images, count, _ = args[0].shape
            if count != size["tokens"]:
                return args, kwargs
            inputs[module], left = args[0], count - int(share * count)
            return (args[0].flatten(0, 1)[: images * left].unflatten(0, (images, left)), *args[1:]), kwargs

        def go_on(module, args, output):
            return inputs.pop(module, output)

        with ExitStack() as stack:
            stack.callback(unet.register_forward_pre_hook(note).remove)
            for block in transformer_blocks(unet).values():
                stack.callback(block.attn1.register_forward_pre_hook(shorten, with_kwargs=True).remove)
                stack.callback(block.attn1.register_forward_hook(go_on).remove)
            yield unet

    return methods.Method(f"{FREE}(share={share:g})", FREE, applied)


def unet_calls(point: Point, device: str) -> list[Contender]:
    """One call of a U-Net, unmerged and by each of the token-reducing methods at the point's merged share.

    Where pairs are cached, the time is the mean over a CONFIG_3 generation, of checkpoint and cached calls;
    the other methods do at each call what they do at the first. ToDo's share is its own. "merged keys" merges
    the share among keys and values alone; "recommended" does so with `BEST_SHARE`, whatever the point's
    share."""
    unet, call = _caller(point, device)
    alone = (Call(partial(call, 1)),)
    cached = _over_a_generation(call)
    asked = {
        UNMERGED: (methods.unmerged(), alone),
        CATOME: (methods.tome(point.share, SCHEDULE, only_where_faster=True), cached),
        KEYS: (methods.merged_keys(ratio=point.share, schedule=SCHEDULE, compare="keys"), cached),
        BEST: (methods.merged_keys(ratio=BEST_SHARE, schedule=SCHEDULE, compare="keys"), cached),
        TOMESD: (methods.tomesd(point.share), alone),
        AUTHORS: (authors_rule(point.share), cached),
        DOWNSAMPLED: (methods.todo(), alone),
        FREE: (free_merging(point.share), alone),
    }
    return [
        Contender(
            name,
            calls,
            partial(method.applied, unet),
            reduces=name not in (UNMERGED, CATOME),
            steps_aside=name == CATOME,
        )
        for name, (method, calls) in asked.items()
    ]


@contextmanager
def unfused_attention(unet: UNet2DConditionModel) -> Iterator:
    """Attention that writes the matrix of all tokens by all tokens, as in 2022."""
    before = dict(unet.attn_processors)
    unet.set_attn_processor(AttnProcessor())
    try:
        yield unet
    finally:
        unet.set_attn_processor(before)


def peak_memory(point: Point, device: str) -> tuple[dict[str, int | None], dict[str, str]]:
    """The most bytes that the device holds during a call of a U-Net (of a checkpoint and a cached one where
    it is merged).

    Returns:
        ``(bytes, notes)`` by method, unmerged and merged, with fused and with unfused attention.
    """
    unet, call = _caller(point, device)
    peaks, notes = {}, {}

    def most(method: methods.Method, attention: Callable) -> int | None:
        with attention(unet), method.applied(unet):
            held = memory_since(device)
            for step in (0, 1):
                call(step)
            return held()

    for suffix, attention in (("", nullcontext), (UNFUSED, unfused_attention)):
        for name, method in ((UNMERGED, methods.unmerged()), (CATOME, methods.tome(point.share, SCHEDULE))):
            peaks[name + suffix], why = or_why_not(partial(most, method, attention), None)
            if why:
                notes[name + suffix] = why
    return peaks, notes


@torch.no_grad()
def attention_turns(
    edges: Sequence[int],
    shares: Sequence[float],
    channels: int = 320,
    heads: int = 8,
    rounds: int = 5,
    clock: Clock = cpu_clock,
) -> pd.DataFrame:
    """One image's self-attention in float32 on the CPU, as it is and on merged tokens, with merging and
    unmerging, in turns.

    Args:
        edges: of square token grids.
        shares: merged shares, at most 0.75.
        channels, heads: of the attention, whose weights are random.
        rounds: turns of each.
        clock: what to time with.

    Returns:
        One row for each edge and share: ``tokens``, ``share``, ``speedup`` (median of the rounds) with
        ``low`` and ``high`` (`ratio`), and ``expected``, what `catome.policy.cost_model` reckons with: the
        seconds saved, negative where merging costs more.
    """
    attention, generator = (
        Attention(channels, heads=heads, dim_head=channels // heads).eval(),
        torch.Generator().manual_seed(0),
    )
    found = []
    for edge, share in product(edges, shares):
        tokens = torch.randn(1, edge**2, channels, generator=generator)
        plan = match(tokens, (edge, edge), ratio=share)

        def merged(tokens=tokens, plan=plan) -> torch.Tensor:
            return plan.unmerge(attention(plan.merge(tokens)[None])[0])

        contenders = [
            Contender(UNMERGED, (Call(partial(attention, tokens)),), least_s=LEAST_SAMPLE),
            Contender(CATOME, (Call(merged),), least_s=LEAST_SAMPLE),
        ]
        samples, _ = take_turns(contenders, rounds, clock)
        before, after = ([seconds for (seconds,) in samples[name]] for name in (UNMERGED, CATOME))
        speedup, low, high = ratio(before, after)
        expected = gain(edge**2, channels, share, rates_of(tokens), tokens.element_size())
        found.append(
            dict(tokens=edge**2, share=share, speedup=speedup, low=low, high=high, expected=expected)
        )
    return pd.DataFrame(found)
