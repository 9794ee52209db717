"""Figures to touch: each computes in the page what its controls ask for, with no server and no other host.

A function here turns numbers into HTML: the controls, the numbers as JSON, and one of the scripts in
``scripts``. What the scripts compute is held to the library's own results by
``tests/book/test_interactive.py``.
"""

from __future__ import annotations

import base64
import io
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
import torch
from IPython.display import HTML
from PIL import Image

from catome.study.costs import accounting
from catome.study.measure.drift import mean_staleness
from catome.study.measure.quality import psnr, to_uint8
from catome.study.plots.figures import SCENE

SCRIPTS = Path(__file__).parent / "scripts"

MOST_NUMBERS = 2**17
"""Of the tokens of one image that a page carries: 1,024 tokens of 128 channels."""

PRESETS = {
    "ToMe, r = 0.5": {"by": "share", "amount": 0.5, "window": 2, "keep": False, "weigh": False},
    "CA-ToMe, t = 0.7": {"by": "threshold", "amount": 0.7, "window": 2, "keep": False, "weigh": False},
    "keys merged and weighted": {"by": "threshold", "amount": 0.7, "window": 2, "keep": True, "weigh": True},
}
"""The settings of the buttons of `merging`."""

WAYS = {
    "as ToMe: everything merged": "#0173b2",
    "everything merged, groups weighted": "#029e73",
    "queries kept": "#de8f05",
    "queries kept, groups weighted": "#cc3311",
}
"""The ways in which `merging` can merge, and the colour of each, in the order in which its script counts
them."""


GROUPS = {
    "topmost self-attention": "#cc3311",
    "topmost projections": "#ee8866",
    "merging itself": "#000000",
    "convolutions": "#0173b2",
    "other layers with products": "#56b4e9",
    "norms and elementwise": "#949494",
}
"""The parts that `where_time_goes` shows, and their colours."""


def page_part(script: str, data: dict, **words: object) -> HTML:
    """Controls with their numbers and the script that connects them.

    Args:
        script: the name of two files in ``scripts``: the controls (``.html``) and what they do (``.js``).
        data: what the script reads, as JSON.
        words: what the controls name with a ``$``.
    """
    name = f"{script}-{uuid.uuid4().hex[:8]}"
    style = (SCRIPTS / "widget.css").read_text()
    controls = Template((SCRIPTS / f"{script}.html").read_text()).substitute(words)
    program = (SCRIPTS / f"{script}.js").read_text().replace("@ID", name)
    numbers = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    return HTML(
        f'<figure class="catome-touch catome-{script}" id="{name}"><style>{style}</style>\n{controls}'
        f'<script type="application/json">{numbers}</script>\n<script>{program}</script></figure>'
    )


def quantised(values: torch.Tensor) -> dict:
    """A matrix ``[N, C]`` as whole numbers of eight bits with a scale for each column: ``shape``, ``scale``
    and ``values``."""
    values = values.detach().float().cpu()
    scale = values.abs().amax(0).clamp_min(1e-12) / 127
    whole = (values / scale).round().to(torch.int8)
    return {
        "shape": list(values.shape),
        "scale": [float(f"{number:.6g}") for number in scale.tolist()],
        "values": base64.b64encode(whole.numpy().tobytes()).decode(),
    }


def restored(packed: dict) -> torch.Tensor:
    """The numbers that the page computes with: ``[N, C]`` from `quantised`."""
    whole = np.frombuffer(base64.b64decode(packed["values"]), dtype=np.int8).reshape(packed["shape"])
    return torch.from_numpy(whole.astype(np.float32)) * torch.tensor(packed["scale"])


def picture(image: np.ndarray, edge: int | None = None, quality: int = 90) -> str:
    """An image ``[H, W, 3]`` in [0, 1] as the address of a WebP that is part of the page.

    Args:
        image: the image.
        edge: the longer edge in pixels that it is made smaller to; None for its own size.
        quality: 100 keeps every pixel.
    """
    shown = Image.fromarray(to_uint8(image))
    if edge is not None:
        shown.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, "WEBP", quality=quality, lossless=quality == 100, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def options(names, chosen: int = 0) -> str:
    """The entries of a list to choose from; the one at ``chosen`` is chosen first."""
    return "".join(
        f'<option value="{name}"{" selected" * (i == chosen)}>{name}</option>' for i, name in enumerate(names)
    )


def key(colours: dict[str, str]) -> str:
    """The key of a figure: what each colour means."""
    return " ".join(f'<span style="--key: {colour}">{name}</span>' for name, colour in colours.items())


def animation(moment: int = 50) -> HTML:
    """Animate a self-attention on merged tokens, in ToMe's way and with keys and values merged alone, to play
    and to stop.

    Args:
        moment: percent of the way, at which it stands first: 0 to 100.
    """
    groups = SCENE.tolist()
    colours = ["#0173b2", "#949494", "#d55e00", "#029e73"]
    # results of their own: each token's colour, a little lighter or darker than that of its group
    own = [_mixed(colours[group], 0.05 * (7 * i % 16 - 7.5)) for i, group in enumerate(np.ravel(groups))]
    return page_part("animation", {"groups": groups, "colours": colours, "own": own}, moment=moment)


def _mixed(colour: str, share: float) -> str:
    """A colour ``#rrggbb`` mixed with white, or with black where the share is negative."""
    parts = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    end = 255 if share > 0 else 0
    return "#" + "".join(f"{round(part + abs(share) * (end - part)):02x}" for part in parts)


def merging(
    frames: dict[str, dict[str, torch.Tensor]],
    images: dict[str, np.ndarray],
    grid: tuple[int, int],
    block: torch.nn.Module,
    threshold: float = 0.7,
) -> HTML:
    """One self-attention to merge by hand: which groups there are, where a token looks, and what merging
    changes.

    Args:
        frames: for each scene, the block's input ``[N, C]`` by the name of a step; the same steps for each
            scene.
        images: for each scene, what its generation made, ``[H, W, 3]`` in [0, 1].
        grid: rows and columns of the tokens.
        block: a transformer block of diffusers with ``norm1`` and ``attn1``, whose layers have no bias but
            the last.
        threshold: where the slider stands at first.

    Raises:
        ValueError: if the tokens of an image are more numbers than `MOST_NUMBERS`.
    """
    some = next(iter(next(iter(frames.values())).values()))
    if some.numel() > MOST_NUMBERS:
        raise ValueError(
            f"frames: {some.shape[0]} tokens of {some.shape[1]} channels must be at most {MOST_NUMBERS} "
            "numbers"
        )
    norm, attention = block.norm1, block.attn1
    layers = {
        "query": attention.to_q,
        "key": attention.to_k,
        "value": attention.to_v,
        "output": attention.to_out[0],
    }
    data = {
        "grid": list(grid),
        "heads": attention.heads,
        "colours": list(WAYS.values()),
        "epsilon": norm.eps,
        "gain": norm.weight.detach().float().tolist(),
        "shift": norm.bias.detach().float().tolist(),
        **{name: quantised(layer.weight.T) for name, layer in layers.items()},
        "frames": {
            scene: {
                "image": picture(images[scene], edge=256),
                "steps": {step: quantised(tokens) for step, tokens in steps.items()},
            }
            for scene, steps in frames.items()
        },
    }
    steps = list(next(iter(frames.values())))
    presets = "\n".join(
        f'<button type="button" aria-pressed="false" data-preset=\'{json.dumps(preset)}\'>{name}</button>'
        for name, preset in PRESETS.items()
    )
    chosen = options(steps, len(steps) // 2)
    return page_part(
        "merge",
        data,
        scenes=options(frames),
        steps=chosen,
        threshold=threshold,
        presets=presets,
        key=key(WAYS),
    )


def scheduling(
    staleness: dict[str, np.ndarray],
    schedules: dict[str, dict[str, tuple[int, ...]]],
    quality: dict[str, dict[str, float]],
    time: dict[str, dict[str, float]],
    rival: str = "CONFIG_3",
) -> HTML:
    """Checkpoints to place on a timeline: how stale the pairs become, and what quality and time to expect.

    Args:
        staleness: for each amount of merging, ``[T, T]`` in [0, 1]: how stale pairs of one step are at
            another.
        schedules: for each amount, the steps of known schedules by name.
        quality: for each amount, ``intercept`` and ``slope`` (dB) of PSNR over mean staleness, and the
            ``spread`` around them.
        time: for each amount, the time of a generation over the unmerged one: ``fixed``, and ``each``
            checkpoint's.
        rival: the schedule to beat.
    """
    calls = len(next(iter(staleness.values())))
    names = list(dict.fromkeys(name for by_name in schedules.values() for name in by_name))
    amounts = {}
    for amount, matrix in staleness.items():
        whole = np.clip(np.asarray(matrix, float) * 255, 0, 255).round().astype(np.uint8)
        kept = {
            name: sorted({step for step in steps if step < calls})
            for name, steps in schedules[amount].items()
        }
        amounts[amount] = {
            "staleness": base64.b64encode(whole.tobytes()).decode(),
            "schedules": [
                {"name": name, "steps": steps, "staleness": mean_staleness(whole / 255, steps)}
                for name, steps in kept.items()
            ],
            "quality": quality[amount],
            "time": time[amount],
        }
    data = {"calls": calls, "rival": rival, "start": [0, calls // 3, 2 * calls // 3], "amounts": amounts}
    return page_part("schedule", data, amounts=options(amounts), names=options(names, -1), rival=rival)


def where_time_goes(
    sizes: Sequence[int] = (256, 512, 768, 1024, 1536, 2048),
    shares: Sequence[float] = (0.0, 0.2, 0.4, 0.5, 0.6, 0.75),
    match_every: float = 51 / 13,
    rows: int = 2,
) -> HTML:
    """The least time of a U-Net call by the roofline, over models, sizes, devices, kinds of attention and
    shares merged.

    SD v1.5 is there in float32, too; the others in float16 alone.

    Args:
        sizes: of the square image, in pixels.
        shares: of the topmost tokens that are merged; the first is 0.
        match_every: pairs are found once in so many calls.
        rows: of the U-Net's batch: 2 are one image with guidance.
    """
    devices = {f"{device}, float16": (device, "float16") for device in accounting.DEVICES.index}
    older = {f"{device}, float32": (device, "float32") for device in accounting.DEVICES.index}
    seconds = {}
    for model, title in accounting.TITLES.items():
        asked = devices | older if model == "sd15" else devices  # each precision takes a forward of each size
        for size in sizes:
            tables = {
                (share, width): _grouped(accounting.operations(model, size, rows, width, share, match_every))
                for share in shares
                for width in ((2, 4) if model == "sd15" else (2,))
            }
            for name, (device, precision) in asked.items():
                rates = accounting.device_rates(device, precision)
                width = accounting.DTYPE_BYTES[precision]
                for attention in ("fused", "naive"):
                    found = [_least_seconds(tables[share, width], *rates, attention) for share in shares]
                    seconds["|".join((title, name, attention, str(size)))] = found
    data = {
        "sizes": list(sizes),
        "shares": list(shares),
        "parts": list(GROUPS),
        "colours": list(GROUPS.values()),
        "seconds": seconds,
    }
    return page_part(
        "time",
        data,
        models=options(accounting.TITLES.values()),
        devices=options([*devices, *older], list(devices).index("H200 SXM, float16")),
        last_size=len(sizes) - 1,
        size=min(1, len(sizes) - 1),
        last_share=len(shares) - 1,
        key=key(GROUPS),
    )


def _grouped(table: pd.DataFrame) -> pd.DataFrame:
    """Operations with the place of each one's part in `GROUPS`, as the column ``group``."""
    names = list(GROUPS)
    grouped = ["merging itself" if part in accounting.MERGING else part for part in table.index]
    return table.assign(
        group=[names.index(name if name in names else "other layers with products") for name in grouped]
    )


def _least_seconds(
    table: pd.DataFrame, flops_per_s: float, bytes_per_s: float, attention: str
) -> list[float]:
    """`accounting.roofline_seconds` of each of `GROUPS`, to four digits; by NumPy, since it is asked
    thousands of times."""
    computing = table["flops"].to_numpy() / flops_per_s
    moving = table[f"bytes_{attention}"].to_numpy() / bytes_per_s
    sums = np.bincount(table["group"], np.maximum(computing, moving), len(GROUPS))
    return [float(f"{value:.4g}") for value in sums]


def blind_test(plain: dict[str, np.ndarray], made: dict[str, dict[str, np.ndarray]], rounds: int = 8) -> HTML:
    """Pairs of images to tell apart: which one is unmerged?

    Args:
        plain: the unmerged image of each scene, ``[H, W, 3]`` in [0, 1].
        made: for each method, its image of each scene.
        rounds: scenes that are asked, each with one of the methods.
    """
    data = {
        "methods": list(made),
        "rounds": min(rounds, len(plain)),
        "scenes": [
            {
                "name": scene,
                "plain": picture(image, quality=95),
                "images": [picture(by_scene[scene], quality=95) for by_scene in made.values()],
                "psnr": [
                    float(psnr(to_uint8(by_scene[scene][None]), to_uint8(image[None]))[0])
                    for by_scene in made.values()
                ],
            }
            for scene, image in plain.items()
        ],
    }
    some = data["scenes"][0]
    return page_part("blind", data, first=some["plain"], second=some["images"][0])
