"""How fast catome is against its peers, measured on this machine: operations alone, whole U-Net calls, peak memory.

The contenders of one point take turns in one run, so that drift of the machine hits all alike, and what is compared are
the ratios within each round. U-Nets have the published architectures and random weights: how long a call takes depends on
shapes and on the share of tokens that is merged, which is given, not on what the weights have learnt.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import product

import numpy as np
import pandas as pd
import pyarrow as pa
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
from catome.study.costs.accounting import ARCHITECTURES
from catome.study.measure.clock import device_name
from catome.study.measure.clock import peak_memory as memory_since
from catome.study.run.parameters import DTYPES
from catome.study.run.store import Stopwatch, Store, Table, provenance
from catome.tensors.matching import Matches
from catome.tensors.plan import MergePlan, make_plan, match

BENCH = Table(
    "bench",
    1,
    {
        "version": pa.int16(),
        "suite": pa.string(),
        "architecture": pa.string(),
        "kind": pa.string(),
        "device": pa.string(),
        "threads": pa.int16(),
        "dtype": pa.string(),
        "batch": pa.int32(),
        "height": pa.int32(),
        "width": pa.int32(),
        "channels": pa.int32(),
        "share": pa.float64(),
        "method": pa.string(),
        "round": pa.int32(),
    },
    {"seconds": pa.float64(), "peak_bytes": pa.int64(), "note": pa.string()},
)
"""One row for each point, method and round. ``batch`` is in images, each of which is two rows of a tensor by classifier-free
guidance; ``height`` and ``width`` are in pixels, in the suite "operations" in tokens; ``channels`` are those of the topmost
blocks; ``share`` is the point's merged share, also for methods that merge nothing. ``seconds`` are those of one operation or
U-Net call (NaN where there is none, and ``note`` says why), ``peak_bytes`` is what the device held at most (suite "memory")."""

_POINT = ["suite", "architecture", "kind", "device", "threads", "dtype", "batch", "height", "width", "channels", "share"]

SUITES = ("operations", "attention", "memory", "block", "unet", "compiled")
"""In the order in which they run: what is short comes first."""

ON_REQUEST = ("compiled",)
"""Suites that run where they are asked for alone: compilers take minutes."""

OF_LAYERS = {"attention": ("sd15",), "block": tuple(bench_layers.MODELS), "compiled": ("pixart",)}
"""The models whose layers the suites of layers take."""

SCHEDULE, CALLS = "CONFIG_3", 51
CHECKPOINT = sum(step < CALLS for step in SCHEDULES[SCHEDULE]) / CALLS
"""The share of a generation's U-Net calls (50 PLMS steps) that are checkpoints: 13 of 51."""

CACHED, FRESH, COPY = "merge + unmerge", "checkpoint step", "copy"
UNMERGED = "unmerged"
CATOME = "catome"
TOMESD = "tomesd"
AUTHORS = "batch maximum"
DOWNSAMPLED = "ToDo"
FREE = "free merging"
BY_COSINE, BY_DISTANCE = "pairs by cosine", "pairs by distance"
KEYS = "merged keys"
BEST = "recommended"
BEST_SHARE = 0.64
"""The share of keys that `catome.RECOMMENDED` merges on the embedded model (``python -m catome.study frontier``):
random weights have nothing in common that a threshold could be set by."""
UNFUSED = ", unfused attention"

_LEAST_SAMPLE = 0.01  # seconds: operations are repeated until a sample is as long
_IN_A_GRAPH = 20  # operations in one CUDA graph

_GRID = dict(dtypes=("float16", "bfloat16"), batches=(1, 4, 16), sizes=(512, 1024, 2048), shares=(0.25, 0.5, 0.75), rounds=10)
_DEFAULTS: dict[tuple[str, str], dict] = {
    ("operations", "cpu"): dict(dtypes=("float32",), batches=(1,), shares=(0.5,), rounds=20),
    ("operations", "cuda"): dict(dtypes=("float32", "float16", "bfloat16"), batches=(1,), shares=(0.5,), rounds=20),
    ("attention", "cpu"): dict(dtypes=("float32",), batches=(1,), sizes=(512,), shares=(0.75,), rounds=10),
    ("attention", "cuda"): dict(dtypes=("float16", "bfloat16"), batches=(1, 4), sizes=(512, 1024), shares=(0.75,), rounds=20),
    ("block", "cpu"): dict(dtypes=("float32",), batches=(1,), sizes=(1024,), shares=(0.7,), rounds=3),
    ("block", "cuda"): dict(dtypes=("bfloat16",), batches=(1,), sizes=(1024, 2048), shares=(0.25, 0.5, 0.7), rounds=10),
    ("compiled", "cpu"): dict(dtypes=("float32",), batches=(1,), sizes=(1024,), shares=(0.64,), rounds=10),
    ("compiled", "cuda"): dict(dtypes=("bfloat16",), batches=(1,), sizes=(1024,), shares=(0.64,), rounds=20),
    ("unet", "cpu"): dict(dtypes=("float32",), batches=(1,), sizes=(512,), shares=(0.5,), rounds=6),
    ("unet", "cuda"): _GRID,
    ("memory", "cuda"): dict(dtypes=("float16",), batches=(1,), sizes=(512, 1024), shares=(0.5,), rounds=1),
}


@dataclass(frozen=True)
class Options:
    """What is measured. None stands for what the suite takes by default on this kind of device.

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
        missing = {name: value for name, value in _DEFAULTS[suite, self.kind].items() if getattr(self, name) is None}
        return replace(self, **missing)


@dataclass(frozen=True)
class Point:
    """Where contenders meet; see `BENCH` for the meaning of each field. ``rounds`` is how often they do."""

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
        return _named(vars(self))


def _named(point: Mapping) -> str:
    if point["suite"] == "operations":
        shape = f"[{2 * point['batch']}, {point['height']} x {point['width']}, {point['channels']}]"
        return f"operations on {shape} {point['dtype']}, share {point['share']:g}"
    size = f"{point['height']}x{point['width']} px"
    return (
        f"{point['suite']} {point['architecture']} {point['dtype']}, batch {point['batch']}, {size}, share {point['share']:g}"
    )


def points(options: Options) -> list[Point]:
    """Every point that the options ask for, suite by suite; those of U-Nets by the number of pixels, fewest first.

    Raises:
        ValueError: for a suite that the device does not have.
    """
    found = []
    usual = [suite for suite in SUITES if (suite, options.kind) in _DEFAULTS and suite not in ON_REQUEST]
    for suite in options.suites or usual:
        if (suite, options.kind) not in _DEFAULTS:
            raise ValueError(f"suite={suite!r} needs a CUDA device, for how much memory a CPU holds is not known; not 'cpu'")
        chosen = options.of(suite)
        if suite == "operations":
            for dtype, batch, share in product(chosen.dtypes, chosen.batches, chosen.shares):
                edge = options.tokens
                found.append(Point(suite, "", dtype, batch, edge, edge, options.channels, share, chosen.rounds))
            continue
        sized = sorted(product(chosen.sizes, chosen.batches), key=lambda pair: pair[0] ** 2 * pair[1])
        names = OF_LAYERS.get(suite, options.architectures)
        for (size, batch), name, dtype, share in product(sized, names, chosen.dtypes, chosen.shares):
            of_unet = ARCHITECTURES.get(name, {}).get("block_out_channels", (320,))[0]
            channels = bench_layers.CHANNELS.get(name, of_unet)
            found.append(Point(suite, name, dtype, batch, size, size, channels, share, chosen.rounds))
    return found


# Taking turns


@dataclass(frozen=True)
class Call:
    """One thing that is timed.

    Attributes:
        run: does it.
        inside: how many times at once.
        name: tells the calls of a contender apart.
        weight: of its seconds in the contender's.
    """

    run: Callable[[], object]
    inside: int = 1
    name: str = ""
    weight: float = 1.0


@dataclass(frozen=True)
class Contender:
    """Who takes a turn in each round.

    Attributes:
        method: the name in the rows.
        calls: timed one after the other; the contender's time is their weighted sum.
        applied: context of a turn, entered and left outside the timing.
        least_s: repeat each call until a sample takes as many seconds; 0 for calls that must not be repeated.
        reduces: leave it out if it gives exactly what the first contender gives, for then it reduced no tokens.
        steps_aside: say so if it gives exactly that.
        note: kept with its rows.
    """

    method: str
    calls: tuple[Call, ...]
    applied: Callable[[], AbstractContextManager] = nullcontext
    least_s: float = 0.0
    reduces: bool = False
    steps_aside: bool = False
    note: str = ""


Clock = Callable[[Callable[[], object], int], float]
"""``clock(run, times)`` runs something several times and returns the seconds of one run."""


def cpu_clock(run: Callable[[], object], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - started) / times


def cuda_clock(run: Callable[[], object], times: int) -> float:
    """Seconds between two events in the current device's queue, which is empty before the first and after the second."""
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(times):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / times


def take_turns(
    contenders: Sequence[Contender], rounds: int, clock: Clock, deadline: float = math.inf
) -> tuple[dict[str, list[tuple[float, ...]]], dict[str, str]]:
    """Time the contenders: after a warm-up each has one turn in every round, and each round begins with another one.

    Args:
        contenders: methods must differ; who fails is left out from then on.
        rounds: how many there are at most.
        clock: what to time with.
        deadline: by `time.monotonic`; after it no other round begins but the first.

    Returns:
        ``(samples, notes)``: by method, for each round it took part in, the seconds of each of its calls; and by method
        what is to be said about it.
    """
    samples, notes, ready, first = {c.method: [] for c in contenders}, {}, [], None
    for contender in contenders:
        (output, times), note = _or_why_not(partial(_warm_up, contender, clock), (None, ()))
        said = contender.note
        if contender is contenders[0]:
            first = output
        elif not note and isinstance(first, torch.Tensor) and isinstance(output, torch.Tensor) and torch.equal(first, output):
            note = "reduces no tokens here" if contender.reduces else ""
            said = "steps aside here" if contender.steps_aside else said
        if note or said:
            notes[contender.method] = note or said
        if not note:
            ready.append((contender, times))
    for turn in range(rounds):
        if turn and time.monotonic() > deadline:
            break
        begin = turn % max(len(ready), 1)
        for contender, times in ready[begin:] + ready[:begin]:
            seconds, note = _or_why_not(partial(_turn, contender, times, clock), None)
            if note:
                notes[contender.method] = note
                ready = [other for other in ready if other[0] is not contender]
            else:
                samples[contender.method].append(seconds)
    return samples, notes


def _warm_up(contender: Contender, clock: Clock) -> tuple[object, tuple[int, ...]]:
    """What the contender gives, and how often to repeat each of its calls."""
    with contender.applied():
        output = [call.run() for call in contender.calls][-1]
        if not contender.least_s:
            return output, (1,) * len(contender.calls)
        once = [max(clock(call.run, 1), 1e-9) for call in contender.calls]
        return output, tuple(max(1, math.ceil(contender.least_s / seconds)) for seconds in once)


def _turn(contender: Contender, times: Sequence[int], clock: Clock) -> tuple[float, ...]:
    with contender.applied():
        return tuple(clock(call.run, n) / call.inside for call, n in zip(contender.calls, times, strict=True))


def _or_why_not(work: Callable, otherwise) -> tuple:
    """``(what work returns, "")``, or ``(otherwise, why)`` where the device or a method's package cannot do it."""
    try:
        return work(), ""
    except (RuntimeError, MemoryError) as error:
        exhausted = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
        why = "out of memory" if exhausted else f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    if torch.cuda.is_available():  # only now: the error held what was on the device
        torch.cuda.empty_cache()
    return otherwise, why


# The contenders


def operations(point: Point, device: str) -> list[Contender]:
    """Merging and unmerging ``[2 * batch, height * width, channels]`` random tokens, by catome and by `tomesd`, and a copy; and
    finding pairs alone, by either measure.

    The copy moves as many bytes as merging and unmerging must: it reads and writes a tensor of half of them. On CUDA, several
    of each are captured in a CUDA graph, so that what is timed is the device and not how fast Python feeds it."""
    from tomesd.merge import bipartite_soft_matching_random2d

    height, width, share = point.height, point.width, point.share
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2 * point.batch, height * width, point.channels, generator=generator).to(device, DTYPES[point.dtype])
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
        contenders.append(Contender(method, (call,), least_s=_LEAST_SAMPLE, note=note))
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

    return _or_why_not(capture, Call(work))[0]


@lru_cache(maxsize=1)
def random_unet(architecture: str, dtype: str, device: str) -> UNet2DConditionModel:
    """A U-Net of `ARCHITECTURES` with random weights, which keep activations finite in every dtype. The last one is kept."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**ARCHITECTURES[architecture])
    unet = torch.nn.Module.to(unet, DTYPES[dtype])  # diffusers' own warns of parts to be kept in float32, of which it has none
    unet = unet.to_empty(device=device).eval().requires_grad_(False)
    # drawn once and laid out again and again: drawing each of 10^9 numbers would take longer than a U-Net call. As many
    # as a prime, so that no two rows of a matrix are equal.
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
    unet, rows, dtype = random_unet(point.architecture, point.dtype, device), 2 * point.batch, DTYPES[point.dtype]
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
        return unet(sample, timetable[step], encoder_hidden_states=words, added_cond_kwargs=more, return_dict=False)[0]

    return unet, call


def attention(point: Point, device: str) -> list[Contender]:
    """One self-attention with its projections; see `catome.study.bench.layers.attention_work`."""
    works = bench_layers.attention_work(point, device)
    return [Contender(method, (Call(work),), least_s=_LEAST_SAMPLE) for method, work in works.items()]


def block_calls(point: Point, device: str) -> list[Contender]:
    """One call of a transformer of one block of each kind, unmerged and with the point's share of keys merged."""
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
    """A call at which pairs are found and one at which they are there, weighted as in a generation with 13 checkpoints."""
    return (
        Call(partial(call, 0), name="checkpoint call", weight=CHECKPOINT),
        Call(partial(call, 1), name="cached call", weight=1 - CHECKPOINT),
    )


def authors_rule(share: float) -> methods.Method:
    """The batch-maximum rule of the authors' code at a given merged share, cached as catome is, for timing alone.

    It counts and waits for the count as `catome.study.methods.batch_maximum` does, and then merges ``share``, for what random
    weights have in common with one another is nothing to set a threshold by."""

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
    """What merging would be if it cost nothing: the topmost self-attentions on a given share less of the tokens, and that is
    all.

    No pair is looked for, nothing is merged or unmerged; the attention gets the first tokens there are, and the block goes on
    with what it had. Its images are nonsense; its time is the limit (Amdahl) of every method that merges this share there."""

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

    Where pairs are cached, the time is the mean over a CONFIG_3 generation, of checkpoint and cached calls; the other methods
    do at each call what they do at the first. ToDo's share is its own. "merged keys" merges the share among keys and values
    alone; "recommended" does so with `BEST_SHARE`, whatever the point's share."""
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
            name, calls, partial(method.applied, unet), reduces=name not in (UNMERGED, CATOME), steps_aside=name == CATOME
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
    """The most bytes that the device holds during a call of a U-Net (of a checkpoint and a cached one where it is merged).

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
            peaks[name + suffix], why = _or_why_not(partial(most, method, attention), None)
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
    """One image's self-attention in float32 on the CPU, as it is and on merged tokens, with merging and unmerging, in turns.

    Args:
        edges: of square token grids.
        shares: merged shares, at most 0.75.
        channels, heads: of the attention, whose weights are random.
        rounds: turns of each.
        clock: what to time with.

    Returns:
        One row for each edge and share: ``tokens``, ``share``, ``speedup`` (median of the rounds) with ``low`` and ``high``
        (`ratio`), and ``expected``, what `catome.policy.cost_model` reckons with: the seconds saved, negative where merging
        costs more.
    """
    attention, generator = Attention(channels, heads=heads, dim_head=channels // heads).eval(), torch.Generator().manual_seed(0)
    found = []
    for edge, share in product(edges, shares):
        tokens = torch.randn(1, edge**2, channels, generator=generator)
        plan = match(tokens, (edge, edge), ratio=share)

        def merged(tokens=tokens, plan=plan) -> torch.Tensor:
            return plan.unmerge(attention(plan.merge(tokens)[None])[0])

        contenders = [
            Contender(UNMERGED, (Call(partial(attention, tokens)),), least_s=_LEAST_SAMPLE),
            Contender(CATOME, (Call(merged),), least_s=_LEAST_SAMPLE),
        ]
        samples, _ = take_turns(contenders, rounds, clock)
        before, after = ([seconds for (seconds,) in samples[name]] for name in (UNMERGED, CATOME))
        speedup, low, high = ratio(before, after)
        expected = gain(edge**2, channels, share, rates_of(tokens), tokens.element_size())
        found.append(dict(tokens=edge**2, share=share, speedup=speedup, low=low, high=high, expected=expected))
    return pd.DataFrame(found)


# A run


@torch.no_grad()
def measure(point: Point, device: str, clock: Clock, deadline: float = math.inf) -> list[dict]:
    """Rows of `BENCH` for one point, without the device's keys; one without seconds for each method that could not run."""

    def row(method: str, turn: int, seconds: float = math.nan, peak: int | None = None, note: str = "") -> dict:
        keys = {name: value for name, value in vars(point).items() if name != "rounds"}
        return keys | {"method": method, "round": turn, "seconds": seconds, "peak_bytes": peak, "note": note}

    if point.suite == "memory":
        (peaks, notes), why = _or_why_not(partial(peak_memory, point, device), ({UNMERGED: None}, {}))
        return [row(method, 0, peak=peak, note=notes.get(method, why)) for method, peak in peaks.items()]
    build = {
        "operations": operations,
        "attention": attention,
        "block": block_calls,
        "unet": unet_calls,
        "compiled": compiled,
    }[point.suite]
    contenders, why = _or_why_not(partial(build, point, device), None)
    if contenders is None:
        return [row(COPY if point.suite == "operations" else UNMERGED, 0, note=why)]
    samples, notes = take_turns(contenders, point.rounds, clock, deadline)
    rows = []
    for contender in contenders:
        method, note = contender.method, notes.get(contender.method, "")
        for turn, seconds in enumerate(samples[method]):
            for call, own in zip(contender.calls, seconds, strict=True):
                if call.name:
                    rows.append(row(f"{method} {call.name}", turn, own, note=note))
            total = sum(call.weight * own for call, own in zip(contender.calls, seconds, strict=True))
            rows.append(row(method, turn, total, note=note))
        if not samples[method]:
            rows.append(row(method, 0, note=note))
    return rows


def run(
    options: Options,
    say: Callable[[str], None] = print,
    progress: Callable[[str], None] = lambda line: None,
    clock: Clock | None = None,
) -> pd.DataFrame:
    """Measure what the options ask for, keep the rows, and print what came out.

    Args:
        options: what to measure, and where to keep the rows: the file of `BENCH`; each point is kept when it is done.
        say: prints a line of the report at the end.
        progress: prints a line at each point before it is measured.
        clock: what to time with; by default the device's.

    Returns:
        The `summary`.

    Raises:
        ValueError: for a suite that the device does not have, or a file of rows that is broken; before anything is measured.
    """
    todo, store = points(options), Store(BENCH, options.output, None)
    cuda = options.kind == "cuda"
    clock = clock or (cuda_clock if cuda else cpu_clock)
    where = {
        "kind": options.kind,
        "device": device_name(options.device),
        "threads": torch.get_num_threads(),
    }
    entry, watch = provenance(options, "random weights"), Stopwatch()
    deadline, kept, left = time.monotonic() + options.budget_s, [], []
    with torch.cuda.device(options.device) if cuda else nullcontext():
        for number, point in enumerate(todo, 1):
            if time.monotonic() > deadline:
                left.append(point)
                continue
            progress(f"{number} of {len(todo)}: {point}")
            rows = [where | row for row in measure(point, options.device, clock, deadline)]
            store.add(rows, entry, watch.lap())
            kept += rows
    store.finish()
    random_unet.cache_clear()
    table = summary(pd.DataFrame(kept, columns=[*_POINT, "method", "round", *BENCH.values]))
    threads = "" if cuda else f", {where['threads']} threads"
    say(f"{where['device']}{threads}; torch {entry['torch']}, catome {entry['catome']}, commit {entry['commit']}")
    for line in [*report(table), *_left_out(left, options), "", *targets_report(table, options.kind)]:
        say(line)
    say(f"\n{len(kept)} rows of run {entry['id']} are in {store.file}")
    return table


def _left_out(left: Sequence[Point], options: Options) -> list[str]:
    if not left:
        return []
    return ["", f"Left out, since the budget of {options.budget_s:g} s was over:", *(f"  {point}" for point in left)]


# What came out


def ratio(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """How much larger ``a`` is than ``b``, in turns of the same rounds: ``(median, low, high)`` of ``a / b``.

    The interval is between order statistics of the rounds' ratios, and holds the median with at least 95 %; of fewer than
    6 rounds it is their whole range, which holds it less often. NaN where there is no round."""
    found = np.sort(np.asarray(a, float) / np.asarray(b, float))
    found = found[np.isfinite(found)]
    n = len(found)
    if not n:
        return math.nan, math.nan, math.nan
    outside = np.cumsum([math.comb(n, i) for i in range(n)]) / 2.0**n  # chance that the median lies below the (i+1)-th
    skip = max(int((2 * outside <= 0.05).sum()) - 1, 0)
    return float(np.median(found)), float(found[skip]), float(found[n - 1 - skip])


_COLUMNS = (UNMERGED, TOMESD, AUTHORS, DOWNSAMPLED, FREE, COPY, BY_COSINE, KEYS)


def _baselines(suite: str, method: str) -> dict[str, str]:
    """Whom a method is compared with, by the name of the column."""
    if suite == "operations":
        if method.endswith(CACHED):
            return {TOMESD: f"{TOMESD} {CACHED}", COPY: COPY}
        if method == BY_DISTANCE:
            return {BY_COSINE: BY_COSINE}
        return {TOMESD: f"{TOMESD} {FRESH}"} if method.endswith(FRESH) else {}
    if suite == "memory":
        return {UNMERGED: UNMERGED + (UNFUSED if method.endswith(UNFUSED) else "")}
    if suite == "compiled":
        return {UNMERGED: UNMERGED, KEYS: KEYS}
    return {name: name for name in (UNMERGED, TOMESD, AUTHORS, DOWNSAMPLED, FREE)}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each point and method, of rows of `BENCH` from one run.

    Returns:
        The point's keys, ``method``, ``rounds``, ``ms`` (median), ``peak_bytes`` (largest), ``note``, and for each of
        "unmerged", "tomesd", "batch maximum", "ToDo", "free merging", "copy", "pairs by cosine" and "merged keys" how many
        times as fast the method is (in the suite "memory": how many times less it holds), with the interval of `ratio`: columns
        ``X``, ``X low``, ``X high``.
    """
    table = []
    for key, point in rows.groupby(_POINT, sort=False):
        turns = {name: own.set_index("round") for name, own in point.groupby("method", sort=False)}
        for method, own in turns.items():
            line = dict(zip(_POINT, key, strict=True)) | {"method": method, "rounds": int(own["seconds"].notna().sum())}
            line |= {"ms": 1000 * own["seconds"].median(), "peak_bytes": own["peak_bytes"].astype(float).max()}
            line["note"] = own["note"].iloc[-1]
            value = "peak_bytes" if line["suite"] == "memory" else "seconds"
            for column, baseline in _baselines(line["suite"], method).items():
                other = turns.get(baseline)
                if other is not None and baseline != method:
                    both = other[value].astype(float).align(own[value].astype(float), join="inner")
                    line[column], line[f"{column} low"], line[f"{column} high"] = ratio(*both)
            table.append(line)
    ratios = [column + end for column in _COLUMNS for end in ("", " low", " high")]
    return pd.DataFrame(table, columns=[*_POINT, "method", "rounds", "ms", "peak_bytes", "note", *ratios])


def report(table: pd.DataFrame) -> list[str]:
    """The `summary`, in lines to be read."""
    lines = [
        "",
        "vs X: how many times as fast as X (or how many times less memory), median of the rounds with its 95 % interval",
    ]
    for _, point in table.groupby(_POINT, sort=False):
        first, most = point.iloc[0], int(point["rounds"].max())
        columns = [name for name in _COLUMNS if point[name].notna().any()]
        memory = first["suite"] == "memory"
        width = max(len(method) for method in point["method"]) + 2
        lines += ["", _named(first) + ("" if memory else f", {most} rounds")]
        lines.append(f"  {'':{width}}{'MiB' if memory else 'ms':>10}" + "".join(f"{'vs ' + name:>24}" for name in columns))
        for _, row in point.iterrows():
            value = row["peak_bytes"] / 2**20 if memory else row["ms"]
            shown = "-" if math.isnan(value) else f"{value:.2f}"
            cells = "".join(f"{_interval(row, name):>24}" for name in columns)
            lines.append(f"  {row['method']:{width}}{shown:>10}{cells}  {row['note']}".rstrip())
        if not memory and most < 6:
            lines.append("  fewer than 6 rounds: intervals are their range")
    return lines


def _interval(row: Mapping, column: str) -> str:
    if math.isnan(row[column]):
        return ""
    return f"{row[column]:.3f} [{row[column + ' low']:.3f}, {row[column + ' high']:.3f}]"


@dataclass(frozen=True)
class Target:
    """What is to be reached at every point where it was measured.

    Attributes:
        work, against: what is compared, in words.
        kind: of device.
        column: of `summary`, in the rows of ``method``.
        least: how many times as fast (or less memory) it is to be.
        where: the points it is about: columns of `summary` and the values they must have.
        beyond_noise: it counts as missed only where the whole interval lies below ``least``.
        paying: only at points where some token-reducing method is faster than unmerged.
    """

    work: str
    against: str
    kind: str
    method: str
    column: str
    least: float
    where: Mapping[str, object]
    beyond_noise: bool = False
    paying: bool = False


_STATED = {"suite": "operations", "dtype": "float32", "batch": 1, "height": 64, "width": 64, "channels": 320, "share": 0.5}
_SD15 = {"suite": "unet", "architecture": "sd15", "dtype": "float32", "batch": 1, "height": 512, "width": 512, "share": 0.5}
_ANY = {"suite": "unet"}
_AT_1024 = {"suite": "memory", "height": 1024, "width": 1024}
_LAYER = {"suite": "attention", "dtype": "float32", "batch": 1, "height": 512, "width": 512, "share": 0.75}
_BLOCK = {"suite": "block", "dtype": "float32", "batch": 1, "height": 1024, "width": 1024, "share": 0.7}

TARGETS = (
    Target(f"{CACHED}, cached plan", TOMESD, "cpu", f"{CATOME} {CACHED}", TOMESD, 10, _STATED),
    Target("match + plan + merge + unmerge", TOMESD, "cpu", f"{CATOME} {FRESH}", TOMESD, 1.8, _STATED),
    Target(f"SD v1.5 U-Net, {SCHEDULE} mean", TOMESD, "cpu", CATOME, TOMESD, 1.1, _SD15),
    Target(f"SD v1.5 U-Net, {SCHEDULE} mean", UNMERGED, "cpu", CATOME, UNMERGED, 1, _SD15, beyond_noise=True),
    Target(f"SD v1.5 U-Net, {SCHEDULE} mean", FREE, "cpu", CATOME, FREE, 0.95, _SD15),
    Target("pairs by distance, same size", BY_COSINE, "cpu", BY_DISTANCE, BY_COSINE, 1, _STATED, beyond_noise=True),
    Target("SD v1.5 U-Net, recommended", UNMERGED, "cpu", BEST, UNMERGED, 1.25, _SD15),
    Target("SD v1.5 U-Net, recommended", f"{TOMESD} r=0.5", "cpu", BEST, TOMESD, 1.1, _SD15),
    Target("its topmost attention, keys merged", UNMERGED, "cpu", KEYS, UNMERGED, 3, _LAYER),
    Target("its topmost attention, keys merged", f"{DOWNSAMPLED}, factor 2", "cpu", KEYS, DOWNSAMPLED, 0.95, _LAYER),
    *(
        Target(f"{name} block at 1024 px, keys merged", UNMERGED, "cpu", KEYS, UNMERGED, 1.15, _BLOCK | {"architecture": name})
        for name in OF_LAYERS["block"]
    ),
    Target("a block, keys merged, every share", UNMERGED, "cpu", KEYS, UNMERGED, 1, {"suite": "block"}, beyond_noise=True),
    Target(f"U-Net, {SCHEDULE} mean, every point", UNMERGED, "cuda", CATOME, UNMERGED, 1, _ANY, beyond_noise=True),
    *(
        Target("the same, where reducing pays", peer, "cuda", CATOME, peer, 1, _ANY, beyond_noise=True, paying=True)
        for peer in (TOMESD, AUTHORS, DOWNSAMPLED)
    ),
    Target(f"U-Net, {SCHEDULE} mean, every point", FREE, "cuda", CATOME, FREE, 0.95, _ANY, paying=True),
    Target(f"{CACHED}, cached plan", COPY, "cuda", f"{CATOME} {CACHED}", COPY, 0.7, {"suite": "operations"}),
    Target("peak memory", UNMERGED, "cuda", CATOME, UNMERGED, 1, {"suite": "memory"}),
    Target("peak memory" + UNFUSED, UNMERGED, "cuda", CATOME + UNFUSED, UNMERGED, 1, {"suite": "memory"}),
    Target(f"peak memory{UNFUSED}, 1024 px", UNMERGED, "cuda", CATOME + UNFUSED, UNMERGED, 1.25, _AT_1024),
)
"""What is to be reached. 1.25 times less memory is 20 % lower."""


def targets(table: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Whether each of the `TARGETS` for a kind of device is reached, by a `summary`.

    Returns:
        Columns ``work``, ``against``, ``at least``, ``figure`` (of the point where it is lowest, with ``low`` and ``high``),
        ``points`` (how many reach it, of how many) and ``verdict``: "reached", "not reached" or "not measured". Where catome
        could not run but the other could, the figure is 0; where the other could not, there is nothing to compare.
    """
    return pd.DataFrame([_judged(target, table) for target in TARGETS if target.kind == kind])


def _judged(target: Target, table: pd.DataFrame) -> dict:
    fitting = table[table["kind"] == target.kind]
    for name, value in target.where.items():
        fitting = fitting[fitting[name] == value]
    found = []
    for _, point in fitting.groupby(_POINT, sort=False):
        reducing = point[point["method"].isin([CATOME, TOMESD, AUTHORS, DOWNSAMPLED])]
        own = point[point["method"] == target.method]
        if own.empty or (target.paying and not (reducing[UNMERGED] > 1).any()):
            continue
        figures = tuple(own.iloc[0][[target.column, f"{target.column} low", f"{target.column} high"]])
        failed, value = own.iloc[0]["note"], "peak_bytes" if own.iloc[0]["suite"] == "memory" else "ms"
        other = point[point["method"] == _baselines(own.iloc[0]["suite"], target.method)[target.column]]
        if math.isnan(own.iloc[0][value]) and failed and other[value].notna().any():
            figures = (0.0, 0.0, 0.0)
        if not math.isnan(figures[0]):
            found.append(figures)
    line = {"work": target.work, "against": target.against, "at least": target.least}
    if not found:
        return line | {"figure": math.nan, "low": math.nan, "high": math.nan, "points": "0 of 0", "verdict": "not measured"}
    reached = sum(figures[2 if target.beyond_noise else 0] >= target.least for figures in found)
    figure, low, high = min(found)
    verdict = "reached" if reached == len(found) else "not reached"
    points = f"{reached} of {len(found)}"
    return line | {"figure": figure, "low": low, "high": high, "points": points, "verdict": verdict}


def targets_report(table: pd.DataFrame, kind: str) -> list[str]:
    """The `targets`, in lines to be read."""
    lines = [f"{'target':44}{'against':15}{'at least':>9}  {'measured (lowest point)':26}{'points':>10}  verdict"]
    for _, row in targets(table, kind).iterrows():
        figure = "-" if math.isnan(row["figure"]) else f"{row['figure']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        least = f"{row['at least']:g}x"
        lines.append(f"{row['work']:44}{row['against']:15}{least:>9}  {figure:26}{row['points']:>10}  {row['verdict']}")
    threads = table["threads"].unique().tolist()
    if kind == "cpu" and threads not in ([], [2]):
        lines.append(f"(what is to be reached is meant for 2 cores; measured with {threads[0]} threads)")
    return lines


def bench_rows(setting) -> pd.DataFrame:
    """The `summary` of the last recorded run of the suite "unet" on a GPU, from the recorded rows or ``setting.output``."""
    held = Store(BENCH, setting.output).find(suite="unet", kind="cuda")
    return summary(held[held["run"] == held["run"].iloc[-1]] if len(held) else held)
