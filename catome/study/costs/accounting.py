"""The work of a Stable Diffusion U-Net: FLOPs and bytes of each of its parts, counted on shapes alone.

The U-Net runs on torch's meta device, which computes shapes and no values, so a forward at 2048 px takes a
second and no memory. The model of the cost:

- FLOPs are those of matrix products and convolutions, two for each multiply-add, by torch's own formulas
  (`torch.utils.flop_counter`); everything else counts none.
- Every operation reads its inputs and writes its outputs once, in the precision they have; views are free. No
  cache is modelled, and no fusion except that of attention.
- *Fused* attention (as FlashAttention) reads queries, keys and values and writes its output. *Naive*
  attention also writes the scores, reads and writes them for the softmax, and reads them for the product with
  the values, all in the precision of the activations.

With a device's datasheet rates this is the least time it needs (`roofline_seconds`), except that convolutions
can be had with fewer multiplications than the direct method's (Winograd), which float32 convolutions
sometimes are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache

import pandas as pd
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from catome.checks import check_integer, check_number
from catome.models.unet import transformer_blocks

ARCHITECTURES: dict[str, dict] = {
    "sd15": dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
    "sd21": dict(
        sample_size=96,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    ),
    "sdxl": dict(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
}
"""The settings of the public models' U-Nets beyond diffusers' defaults.

In diffusers ``attention_head_dim`` is the number of heads. SD v2.1's float32 scores are left out: torch's
fused attention ignores them."""

TITLES = {"sd15": "SD v1.5", "sd21": "SD v2.1", "sdxl": "SDXL"}

PARTS = (
    "topmost self-attention",
    "topmost projections",
    "other self-attention",
    "other projections",
    "cross-attention",
    "feed-forward",
    "convolutions",
    "norms and elementwise",
    "other",
)
"""The parts of a U-Net. Self-attention is the products with scores and values, projections are its query,
key, value and output layers; both are told apart by whether their block is one of the topmost, which merging
acts on. Cross-attention and feed-forward are whole, with their layers; "other" is the layers into and out of
the transformers and the time embedding."""

MERGING = ("matching", "merge", "unmerge")
"""The parts that merging adds."""

DEVICES = pd.DataFrame(
    {
        "device": ["Tesla V100S", "A100 80 GB SXM", "RTX 4090", "H100 SXM", "H200 SXM"],
        "float16": [130e12, 312e12, 165.2e12, 989.4e12, 989.4e12],
        "float32": [16.4e12, 19.5e12, 82.6e12, 66.9e12, 66.9e12],
        "bytes": [1134e9, 2039e9, 1008e9, 3350e9, 4800e9],
        "torch": ["V100S", "A100-SXM4-80GB", "RTX 4090", "H100 80GB HBM3", "H200"],
    }
).set_index("device")
"""Peak rates as NVIDIA's datasheets and architecture papers print them; none was measured here. FLOP/s of
dense matrix products in float16 (tensor cores, float32 sums; bfloat16 is as fast where there is any) and
float32 (no TF32), and memory bandwidth in bytes/s. ``torch`` is a part of the name by which torch calls the
device."""

DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
_DTYPES = {2: torch.float16, 4: torch.float32}
COLUMNS = ["flops", "bytes_fused", "bytes_naive"]
TEXT_TOKENS = 77
_LARGEST_SHARE = 0.75  # all src tokens of 2 x 2 windows
_SIMILARITY_BYTES, _INDEX_BYTES = 4, 8  # of a cosine and of a token's number, whatever the activations are in
_MOVE_NOTHING = ("_unsafe_view", "empty", "new_empty")  # beside what torch itself calls a view


class _Ledger(TorchDispatchMode):
    """Notes ``(module, operation, flops, fused bytes, naive bytes)`` of everything that runs inside."""

    def __init__(self, tracker: ModuleTracker) -> None:
        super().__init__()
        self.tracker, self.rows = tracker, []

    def note(self, operation: str, flops: int, fused: int, naive: int) -> None:
        module = max(self.tracker.parents - {"Global"}, key=len, default="")
        self.rows.append((module.partition(".")[2], operation, flops, fused, naive))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name, formula = func.overloadpacket.__name__, flop_registry.get(func.overloadpacket)
        flops = formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        if not func.is_view and name not in _MOVE_NOTHING:
            moved = sum(_bytes(t) for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor))
            self.note(name, flops, moved, moved)
        return out


class _Attention(TorchFunctionMode):
    """Notes attention as three rows, in place of whatever the meta device would do for it."""

    def __init__(self, ledger: _Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]  # [B, heads, N, d], [B, heads, M, d] twice
        scores = query.shape[:3].numel() * key.shape[2]
        held = scores * query.element_size()
        # what is written at the end is of the queries' size
        outer = [_bytes(query) + _bytes(read) for read in (key, value)]
        self.ledger.note("scores", 2 * scores * key.shape[3], outer[0], outer[0] + held)
        self.ledger.note("softmax", 0, 0, 2 * held)
        self.ledger.note("values", 2 * scores * value.shape[3], outer[1], outer[1] + held)
        images, heads, tokens, channels = query.shape
        # laid out as flash attention does: putting the heads together again moves nothing
        return query.new_empty(images, tokens, heads, channels).transpose(1, 2)


def _bytes(tensor: torch.Tensor) -> int:
    """The bytes that a tensor holds; one that was expanded is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _ledger(run: Callable[[], object]) -> list[tuple]:
    with torch.no_grad(), ModuleTracker() as tracker, _Ledger(tracker) as ledger, _Attention(ledger):
        run()
    return ledger.rows


@cache
def _unet(architecture: str, dtype_bytes: int) -> UNet2DConditionModel:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**ARCHITECTURES[architecture])
    return unet.half() if dtype_bytes == 2 else unet


def unet_inputs(architecture: str, size: int, batch: int = 2, dtype_bytes: int = 2) -> dict:
    """Arguments for a forward of the architecture's U-Net on the meta device; arguments as in
    `operations`."""
    config = ARCHITECTURES[architecture]
    new = torch.empty(0, dtype=_DTYPES[dtype_bytes], device="meta").new_empty
    inputs = {
        "sample": new(batch, 4, size // 8, size // 8),
        "timestep": new(()),
        "encoder_hidden_states": new(batch, TEXT_TOKENS, config["cross_attention_dim"]),
    }
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        inputs["added_cond_kwargs"] = {"text_embeds": new(batch, pooled), "time_ids": new(batch, 6)}
    return inputs


def _pointwise_flops(a: torch.Size, weight: torch.Size, *_, **__) -> int:
    return 2 * math.prod(a[:-1]) * math.prod(weight)


FORMULAS = (
    {torch.ops.mkldnn._linear_pointwise: _pointwise_flops}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise")
    else {}
)
"""For ``FlopCounterMode(custom_mapping=FORMULAS)``: what torch counts not, and `catome.tensors.matching` uses
on the CPU."""


def _part(module: str, operation: str, flops: int, topmost: set[str]) -> str:
    block, attention, layer = module.partition(".attn1")
    if attention and (flops or operation == "softmax"):
        rank = "topmost" if block in topmost else "other"
        return f"{rank} projections" if layer else f"{rank} self-attention"
    if ".attn2" in module:
        return "cross-attention"
    if ".ff" in module:
        return "feed-forward"
    if not flops:
        return "norms and elementwise"
    return "convolutions" if operation == "convolution" and "proj_" not in module else "other"


def _frame(rows: list[tuple], topmost: set[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["module", "operation", *COLUMNS])
    frame["part"] = [_part(row.module, row.operation, row.flops, topmost) for row in frame.itertuples()]
    return frame.set_index("part")


@cache
def _unmerged(
    architecture: str, size: int, batch: int, dtype_bytes: int
) -> tuple[pd.DataFrame, tuple[str, ...], int]:
    """All operations of a forward, the topmost blocks, and the tokens of an image there."""
    unet, inputs = _unet(architecture, dtype_bytes), unet_inputs(architecture, size, batch, dtype_bytes)
    tokens = {}
    handles = [
        block.register_forward_pre_hook(
            lambda module, args, name=name: tokens.update({name: args[0].shape[1]})
        )
        for name, block in transformer_blocks(unet).items()
    ]
    try:
        rows = _ledger(lambda: unet(**inputs))
    finally:
        for handle in handles:
            handle.remove()
    most = max(tokens.values())
    topmost = tuple(name for name, count in tokens.items() if count == most)
    return _frame(rows, set(topmost)), topmost, most


def _merged_attention(unet: UNet2DConditionModel, name: str, batch: int, left: int) -> list[tuple]:
    """Operations of one block's self-attention on ``left`` tokens of each image."""
    attention = unet.get_submodule(name).attn1
    x = torch.empty(batch, left, attention.query_dim, dtype=unet.dtype, device="meta")
    return [(f"{name}.attn1{'.' * bool(m)}{m}", *row) for m, *row in _ledger(lambda: attention(x))]


def _merging(
    batch: int, tokens: int, left: int, channels: int, dtype_bytes: int, match_every: float
) -> list[tuple]:
    """The operations that merging adds to one block, as ``(part, operation, flops, fused bytes, naive
    bytes)``."""
    dst = (math.isqrt(tokens) // 2) ** 2
    src = tokens - dst
    all_tokens, left_tokens = batch * tokens * channels * dtype_bytes, batch * left * channels * dtype_bytes
    slots, found = batch * tokens * _INDEX_BYTES, batch * src * (_SIMILARITY_BYTES + _INDEX_BYTES)
    # unit vectors written, gathered and read, and the matrix of cosines written and read once, all in float32
    plain = 4 * batch * (4 * tokens * channels + 2 * src * dst)
    matching = (2 * batch * src * dst * channels, all_tokens + found, all_tokens + found + plain)
    moved = all_tokens + left_tokens + slots
    return [
        ("matching", "match", *(value / match_every for value in matching)),
        ("merge", "merge", 0, moved, moved),
        ("unmerge", "unmerge", 0, moved, moved),
    ]


def operations(
    architecture: str,
    size: int,
    batch: int = 2,
    dtype_bytes: int = 2,
    share: float = 0.0,
    match_every: float = 51 / 13,
) -> pd.DataFrame:
    """Every operation of one U-Net call, in the order in which they run.

    With a share merged, the self-attention of the topmost blocks runs on the tokens left, and matching, merge
    and unmerge are added: matching at the least compares each src with each dst token and reads the tokens
    once, by the plain way it also writes and reads unit vectors and all cosines (``bytes_naive``); merge and
    unmerge read and write every token once.

    Args:
        architecture: one of `ARCHITECTURES`.
        size: of the square image, in pixels; a multiple of 8.
        batch: rows of the U-Net's batch: 2 for one image with guidance.
        dtype_bytes: 2 for half precision, 4 for float32.
        share: of an image's tokens that is merged in the topmost self-attentions, at most 0.75; at 0 nothing
            is looked for.
        match_every: pairs are found once in so many calls, and matching counts for its average; CONFIG_3 has
            13 checkpoints in 51 calls.

    Returns:
        Index ``part`` (`PARTS` and, if anything is merged, `MERGING`), columns ``module``, ``operation``,
        ``flops``, ``bytes_fused`` and ``bytes_naive``.

    Raises:
        ValueError, TypeError: for an unknown architecture, or a number out of range.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"architecture={architecture!r} must be one of {', '.join(map(repr, ARCHITECTURES))}"
        )
    if check_integer("size", size, 64) % 8:
        raise ValueError(f"size={size!r} must be a multiple of 8 pixels")
    check_integer("batch", batch, 1)
    if dtype_bytes not in _DTYPES:
        raise ValueError(f"dtype_bytes={dtype_bytes!r} must be 2 or 4")
    check_number("share", share, 0.0, _LARGEST_SHARE)
    check_number("match_every", match_every, 1.0, math.inf)
    table, topmost, tokens = _unmerged(architecture, size, batch, dtype_bytes)
    if not share:
        return table.copy()
    unet, left, rows, added = _unet(architecture, dtype_bytes), tokens - int(share * tokens), [], []
    for name in topmost:
        rows += _merged_attention(unet, name, batch, left)
        channels = unet.get_submodule(name).attn1.query_dim
        added += [(name, *row) for row in _merging(batch, tokens, left, channels, dtype_bytes, match_every)]
    kept = table[~table["module"].str.startswith(tuple(f"{name}.attn1" for name in topmost))]
    added = pd.DataFrame(added, columns=["module", "part", "operation", *COLUMNS]).set_index("part")
    return pd.concat([kept, _frame(rows, set(topmost)), added])


def parts(architecture: str, size: int, batch: int = 2, dtype_bytes: int = 2) -> pd.DataFrame:
    """FLOPs and bytes of each part of one U-Net call: index ``part``, columns `COLUMNS`; arguments as in
    `operations`."""
    return merged_parts(architecture, size, 0.0, batch=batch, dtype_bytes=dtype_bytes).loc[list(PARTS)]


@cache
def _decoder(dtype_bytes: int) -> AutoencoderKL:
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
        )
    return vae.half() if dtype_bytes == 2 else vae


def decoding(size: int, dtype_bytes: int = 2) -> pd.DataFrame:
    """Every operation of the decoder of Stable Diffusion's VAE for one image, as `operations`; arguments as
    there."""
    vae = _decoder(dtype_bytes)
    latents = torch.empty(1, vae.config.latent_channels, size // 8, size // 8, dtype=vae.dtype, device="meta")
    return _frame(_ledger(lambda: vae.decode(latents)), set())


def merged_parts(
    architecture: str,
    size: int,
    share: float,
    match_every: float = 51 / 13,
    batch: int = 2,
    dtype_bytes: int = 2,
) -> pd.DataFrame:
    """As `parts`, with ``share`` of the topmost tokens merged, and rows for `MERGING`; arguments as in
    `operations`."""
    table = operations(architecture, size, batch, dtype_bytes, share, match_every)
    return table.groupby(level="part")[COLUMNS].sum().reindex([*PARTS, *MERGING], fill_value=0)


def roofline_seconds(
    table: pd.DataFrame, flops_per_s: float, bytes_per_s: float, attention: str = "fused"
) -> pd.Series:
    """A lower bound on the seconds of each part: nothing computes faster than the one rate, or moves faster
    than the other.

    Args:
        table: of `operations`, each of which then takes its own time, or of `parts`, whose operations may
            overlap.
        flops_per_s, bytes_per_s: of a device; see `DEVICES`.
        attention: "fused" or "naive".

    Returns:
        Seconds by part, in the order of `PARTS` and `MERGING`.
    """
    if attention not in ("fused", "naive"):
        raise ValueError(f"attention={attention!r} must be 'fused' or 'naive'")
    computing, moving = table["flops"] / flops_per_s, table[f"bytes_{attention}"] / bytes_per_s
    seconds = computing.where(computing > moving, moving).groupby(level="part").sum()
    return seconds.reindex([part for part in (*PARTS, *MERGING) if part in seconds])


def amdahl(before: pd.Series, after: pd.Series) -> float:
    """The largest speed-up that a call can have, if merging itself cost nothing (Amdahl's law).

    Args:
        before, after: seconds, or anything else that adds up, by part, without merging and with it. What
            merging adds is left out, and no part counts as slower than before.

    Returns:
        ``total / (total - removed)``.
    """
    removed = (before - after.reindex(before.index, fill_value=0)).clip(lower=0).sum()
    return float(before.sum() / (before.sum() - removed))


def speedup_bounds(
    architecture: str,
    sizes: Iterable[int],
    shares: Iterable[float],
    devices: Iterable[tuple[str, str]],
    batch: int = 2,
    match_every: float = 51 / 13,
) -> pd.DataFrame:
    """The most that merging can save of the least time that a call takes, on several devices.

    What it saves of a measured time is more where attention is farther from its roofline than the other parts
    are, and less where it is nearer: `amdahl` of measured seconds says.

    Args:
        devices: pairs of a name in `DEVICES` and a precision, "float16", "bfloat16" or "float32".
        architecture, sizes, shares, batch, match_every: as in `operations`.

    Returns:
        A row for each device, precision, size, attention and share: ``seconds`` of the unmerged call at the
        least, ``free`` (`amdahl`: merging costs nothing) and ``charged`` (it takes the time of moving its
        bytes and computing its products).
    """
    rows, sizes, shares = [], list(sizes), list(shares)
    for device, precision in devices:
        rates = device_rates(device, precision)
        for size in sizes:
            fixed = dict(batch=batch, dtype_bytes=DTYPE_BYTES[precision])
            plain = operations(architecture, size, **fixed)
            for share in shares:
                merged = operations(architecture, size, **fixed, share=share, match_every=match_every)
                for attention in ("naive", "fused"):
                    before, after = (roofline_seconds(table, *rates, attention) for table in (plain, merged))
                    rows.append(
                        {
                            "architecture": architecture,
                            "device": device,
                            "precision": precision,
                            "size": size,
                            "attention": attention,
                            "share": share,
                            "seconds": before.sum(),
                            "free": amdahl(before, after),
                            "charged": before.sum() / after.sum(),
                        }
                    )
    return pd.DataFrame(rows)


def device_rates(device: str, precision: str) -> tuple[float, float]:
    """Datasheet FLOP/s and bytes/s of a device in `DEVICES`.

    Raises:
        KeyError: for a device or precision that is not there.
    """
    return DEVICES.at[device, "float32" if precision == "float32" else "float16"], DEVICES.at[device, "bytes"]


def scores_bytes(architecture: str, size: int, batch: int = 2, dtype_bytes: int = 2) -> int:
    """The bytes that the scores of one topmost self-attention take, where they are kept; arguments as in
    `operations`."""
    table = operations(architecture, size, batch, dtype_bytes).loc["topmost self-attention"]
    return int(table.loc[table["operation"] == "softmax", "bytes_naive"].max()) // 2


def with_bounds(
    table: pd.DataFrame, merging: Iterable[str] = ("catome", "tomesd", "batch maximum")
) -> pd.DataFrame:
    """Measured U-Net calls beside what they could be.

    Args:
        table: a row for each point and method: columns ``device`` (as torch calls it), ``architecture``,
            ``dtype``, ``batch`` (images, each two rows of the U-Net's batch), ``height`` and ``width``
            (pixels), ``share`` and ``method``.
        merging: the methods that merge this share.

    Returns:
        The table with ``least_ms`` (of the unmerged call with fused attention, at the roofline) and ``bound``
        (`amdahl` for the share, at the roofline), NaN for other methods, devices that are not among
        `DEVICES`, and images that are not square.
    """
    found = [_least_and_bound(row, row.method in tuple(merging)) for row in table.itertuples()]
    return table.assign(**{name: [pair[i] for pair in found] for i, name in enumerate(("least_ms", "bound"))})


def _least_and_bound(row, merges: bool) -> tuple[float, float]:
    known = [name for name, part in DEVICES["torch"].items() if part in row.device]
    if not known or row.architecture not in ARCHITECTURES or row.height != row.width:
        return math.nan, math.nan
    call = dict(size=int(row.width), batch=2 * int(row.batch), dtype_bytes=DTYPE_BYTES[row.dtype])
    rates = device_rates(known[0], row.dtype)
    before = roofline_seconds(operations(row.architecture, **call), *rates)
    if not merges:
        return 1e3 * before.sum(), math.nan
    after = roofline_seconds(operations(row.architecture, **call, share=float(row.share)), *rates)
    return 1e3 * before.sum(), amdahl(before, after)
