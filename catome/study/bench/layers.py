"""The benchmark's suites of single layers: one self-attention of Stable Diffusion 1.5, and one block of a
transformer.

Each has the size that it has in the published model, and random weights. They isolate what merged keys
change: what a whole model gains follows from how much of its time such layers take.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel
from diffusers.models.attention_processor import Attention

from catome.patch import apply_patch, patched
from catome.runtime.compiled import BUCKETS, compile_cached_steps
from catome.runtime.config import RECOMMENDED
from catome.study.run.parameters import DTYPES
from catome.tensors.attention import joined, key_bias, padded
from catome.tensors.plan import match

HEADS = 8
"""Of Stable Diffusion 1.5's topmost self-attentions."""

TEXT_TOKENS = {"flux": 512, "pixart": 300}
"""As many as the pipelines of these models give."""

MODELS = {
    "flux": (FluxTransformer2DModel, dict(num_layers=1, num_single_layers=1, guidance_embeds=True)),
    "pixart": (
        PixArtTransformer2DModel,
        dict(num_layers=1, sample_size=128, caption_channels=4096, use_additional_conditions=False),
    ),
}
"""Whole models of one block of each kind: the rest of their work is small beside it."""

CHANNELS = {"flux": 3072, "pixart": 1152}


def attention_work(point, device: str) -> dict[str, Callable[[], torch.Tensor]]:
    """One self-attention with its projections: as it is, on merged keys with cached pairs, with a search for
    pairs, and ToDo's.

    ``[2 * batch, height/8 * width/8, channels]`` tokens. ToDo's factor 2 leaves a quarter of the keys,
    whatever the share."""
    dtype = DTYPES[point.dtype]
    torch.manual_seed(0)
    attention = (
        Attention(point.channels, heads=HEADS, dim_head=point.channels // HEADS).to(device, dtype).eval()
    )
    height, width = point.height // 8, point.width // 8
    tokens = torch.randn(2 * point.batch, height * width, point.channels).to(device, dtype)
    find = partial(match, grid=(height, width), ratio=point.share, measure="distance")
    plan = find(tokens)

    def over(plan) -> torch.Tensor:
        context = padded(plan, plan.merge(tokens))
        return attention(
            tokens, encoder_hidden_states=context, attention_mask=key_bias(plan, True, dtype)[:, None]
        )

    def fresh() -> torch.Tensor:
        return over(find(joined(attention.to_k(tokens), attention.to_v(tokens))))

    def todo() -> torch.Tensor:
        grid = tokens.unflatten(1, (height, width))
        return attention(tokens, encoder_hidden_states=grid[:, ::2, ::2].flatten(1, 2))

    return {
        "unmerged": partial(attention, tokens),
        "merged keys": partial(over, plan),
        "merged keys, pairs found": fresh,
        "ToDo": todo,
        "averaged keys": lambda: _averaged(attention, tokens, height, width),
    }


def _averaged(attention: Attention, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The least that merging to a quarter can cost: a mean over windows, no pairs and no weights."""
    grid = tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    return attention(tokens, encoder_hidden_states=F.avg_pool2d(grid, 2).flatten(2).transpose(1, 2))


@lru_cache(maxsize=1)
def model_of(name: str, dtype: torch.dtype, device: str) -> torch.nn.Module:
    """A model of `MODELS` with random weights, which keep activations finite. The last one is kept."""
    kind, config = MODELS[name]
    torch.manual_seed(0)
    with torch.device("meta"):
        model = kind(**config)
    model = torch.nn.Module.to(model, dtype).to_empty(device=device).eval().requires_grad_(False)
    # laid out again and again, as drawing would take longer than a call
    drawn = torch.randn(1_000_003).to(device, dtype)
    for weight in [*model.parameters(), *model.buffers()]:
        if weight.ndim < 2:
            weight.fill_(0.02)
        else:
            flat = weight.view(-1)
            for part in flat.split(len(drawn)):
                part.copy_(drawn[: len(part)])
            flat.mul_(0.5 / math.sqrt(weight[0].numel()))
    return model


def inputs_of(name: str, batch: int, height: int, width: int, dtype: torch.dtype, device: str) -> dict:
    """The inputs of a model of `MODELS` for images of ``height`` x ``width`` pixels."""
    generator = torch.Generator().manual_seed(0)
    text = TEXT_TOKENS[name]

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    timestep = torch.full((batch,), 500.0).to(device, dtype)
    if name == "pixart":
        sample = noise(batch, 4, height // 8, width // 8)
        prompt = noise(batch, text, 4096)
        return dict(
            hidden_states=sample, encoder_hidden_states=prompt, timestep=timestep, added_cond_kwargs={}
        )
    rows, columns = height // 16, width // 16
    places = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns)).to(
        device, dtype
    )
    return dict(
        hidden_states=noise(batch, rows * columns, 64),
        encoder_hidden_states=noise(batch, text, 4096),
        pooled_projections=noise(batch, 768),
        timestep=timestep / 1000,
        img_ids=places,
        txt_ids=torch.zeros(text, 3, device=device, dtype=dtype),
        guidance=torch.full((batch,), 3.5).to(device, dtype),
    )


def block_call(point, device: str) -> tuple[torch.nn.Module, Callable[..., torch.Tensor]]:
    """A model of one block of each kind, and a function that calls it, or another one, at one step of a
    timetable."""
    dtype = DTYPES[point.dtype]
    model = model_of(point.architecture, dtype, device)
    given = inputs_of(point.architecture, point.batch, point.height, point.width, dtype, device)

    def call(step: int, model: torch.nn.Module = model) -> torch.Tensor:
        return model(**given | {"timestep": given["timestep"] * (1 - step / 50)}, return_dict=False)[0]

    return model, call


def keys_merged(share: float):
    """``applied(model)``: keys and values merged to a given share, pairs found at the first of the steps."""
    config = RECOMMENDED.changed(ratio=share, schedule=[0])
    return lambda model: patched(model, config)


def compiled_calls(point, device: str) -> dict[str, tuple[Callable[[], torch.Tensor], str]]:
    """A cached call of a model of `block_call`, run by the hooks and by what `torch.compile` makes of it.

    Returns:
        By method: a function that makes the call, which has been compiled and warmed up, and how long that
        took.
    """
    model, call = block_call(point, device)
    config = RECOMMENDED.changed(ratio=point.share, schedule=[0])
    exact = math.ceil(100 * (1 - point.share)) / 100

    def merged(model) -> torch.nn.Module:
        return apply_patch(model, config)

    ways = {
        "unmerged": lambda model: model,
        "unmerged, compiled": torch.compile,
        "merged keys": merged,
        "merged keys, compiled in pieces": lambda model: torch.compile(merged(model)),
        "merged keys, compiled whole": lambda model: compile_cached_steps(merged(model), BUCKETS),
        "merged keys, compiled whole, exact slots": lambda model: compile_cached_steps(
            merged(model), (exact,)
        ),
    }
    return {name: _warmed_up(way(copy.deepcopy(model)), call) for name, way in ways.items()}


def _warmed_up(model: torch.nn.Module, call) -> tuple[Callable[[], torch.Tensor], str]:
    began = time.perf_counter()
    for step in (0, 1, 2):
        call(step, model)
    took = time.perf_counter() - began
    return partial(call, 2, model), f"ready after {took:.0f} s"
