"""Compile the Triton kernels for GPUs that are not at hand: ``python -m catome.study.bench.kernel_table``.

Each kernel is compiled for each GPU, in each dtype, with the arguments that the library launches it with for
the sizes of real models. NVIDIA's assembler, which comes with Triton, then says how many registers a thread
needs and whether any is spilled. What cannot be known here is how fast they run; `least_times` is the
roofline, of the products they compute and the bytes they must move.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch

from catome.study.costs.accounting import DTYPE_BYTES, device_rates
from catome.tensors import kernels
from catome.tensors.matching import split_tokens
from catome.tensors.plan import match

GPUS = {80: "A100", 89: "RTX 4090", 90: "H100", 100: "B200"}
"""One of each compute capability, times ten."""

SHARED_KIB = {80: 163, 89: 99, 90: 227, 100: 227}
"""Shared memory that one program may have at most (CUDA C++ Programming Guide, table of compute
capabilities)."""

_NAMES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int64: "i64",
    torch.int32: "i32",
}


class _Launches:
    """Stands in for a kernel, and keeps what it is launched with."""

    def __init__(self, name: str, kept: list) -> None:
        self.name = name
        self.kept = kept

    def __getitem__(self, grid):
        return lambda *args, **constants: self.kept.append((self.name, args, constants))


@contextmanager
def _watched(names: tuple[str, ...]):
    kept = []
    real = {name: getattr(kernels, name) for name in names}
    try:
        for name in names:
            setattr(kernels, name, _Launches(name, kept))
        yield kept
    finally:
        for name, kernel in real.items():
            setattr(kernels, name, kernel)


KERNELS = ("_squares", "_best", "_merge", "_merge_keys", "_unmerge")


def launches(dtype: torch.dtype) -> list[tuple[str, str, tuple, dict]]:
    """``(work, kernel, arguments, constants)`` of what the library launches in Stable Diffusion 1.5 and
    Flux."""
    found = []
    tokens = torch.zeros(2, 4096, 320, dtype=dtype)
    plan = match(torch.randn(1, 256, 8), (16, 16), ratio=0.5)
    src, dst = split_tokens((64, 64))
    # Heads as wide as theirs, with room for weights (48) and without; in memory [B, N, H, D], as projections
    # leave them.
    heads = {"SD 1.5": (8, 40, 48), "SD 2, SDXL": (10, 64, 64), "Flux": (24, 128, 128)}
    works = {
        "match": lambda: kernels.best_matches_of(tokens, src, dst),
        "merge": lambda: kernels.merge(tokens, *plan.groups),
        "unmerge": lambda: kernels.unmerge(tokens[0], plan.slot),
    }
    for name, (count, channels, width) in heads.items():
        key = torch.zeros(1, 256, count, channels, dtype=dtype).transpose(1, 2)
        out = torch.zeros(1, count, 128, width, dtype=dtype)
        factor = 0.5 if width > channels else None
        works[f"keys of {name}"] = lambda key=key, out=out, factor=factor: kernels.merge_keys(
            key, key, *plan.groups, plan.bounds, out, out, factor
        )
    for work, run in works.items():
        with _watched(KERNELS) as kept:
            run()
        for name, args, constants in kept:
            if "WIDEN" in constants:
                constants["WIDEN"] = False  # as on a GPU
            found.append((work, name, args, constants))
    return found


def _source(kernel, args: tuple, constants: dict):
    """The source that Triton compiles for a launch: it specialises on ones, and on multiples of 16, as a
    launch would."""
    from triton.compiler import ASTSource

    signature = {}
    given = {}
    attributes = {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{_NAMES[value.dtype]}"
            attributes[place,] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            signature[name] = "constexpr"
            given[name] = 1
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[place,] = [["tt.divisibility", 16]]
    for name, value in constants.items():
        signature[name] = "constexpr"
        given[name] = value
    return ASTSource(kernel, {name: signature[name] for name in kernel.arg_names}, given, attributes)


def _assembled(ptx: str, capability: int, folder: Path) -> tuple[int, int]:
    """Registers of a thread, and bytes that are spilled, as NVIDIA's assembler says."""
    from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability

    written = folder / "kernel.ptx"
    written.write_text(ptx)
    command = [
        get_ptxas(capability).path,
        "-v",
        f"--gpu-name={sm_arch_from_capability(capability)}",
        written,
        "-o",
        os.devnull,
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    said = done.stdout + done.stderr
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
    return int(re.search(r"Used (\d+) registers", said)[1]), spilled


def kernel_table(
    capabilities=tuple(GPUS), dtypes=(torch.float16, torch.bfloat16, torch.float32)
) -> pd.DataFrame:
    """Compile every kernel for every GPU; needs none.

    Args:
        capabilities: compute capabilities times ten.
        dtypes: of the tokens.

    Returns:
        One row for each ``kernel``, ``work``, ``dtype`` and ``capability``: ``registers`` of a thread,
        ``spilled`` bytes, ``shared`` KiB, ``warps``, and ``instructions``, the tensor core instructions that
        are in it.

    Raises:
        RuntimeError: where Triton is missing, or was imported to interpret kernels.
    """
    if kernels.triton is None:
        raise RuntimeError("Triton is missing: it comes with torch on Linux")
    if not hasattr(kernels._merge, "arg_names") or os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 interprets kernels instead of compiling them: unset it")
    import triton
    from triton.backends.compiler import GPUTarget

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in dtypes:
            for work, name, args, constants in launches(dtype):
                for capability in capabilities:
                    source = _source(getattr(kernels, name), args, constants)
                    made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
                    ptx = made.asm["ptx"]
                    registers, spilled = _assembled(ptx, capability, Path(folder))
                    found = sorted(
                        set(re.findall(r"\b(wgmma|tcgen05\.mma|mma)\.", ptx))
                        - ({"mma"} if "wgmma." in ptx else set())
                    )
                    rows.append(
                        {
                            "kernel": name.lstrip("_"),
                            "work": work,
                            "dtype": str(dtype).removeprefix("torch."),
                            "capability": capability,
                            "registers": registers,
                            "spilled": spilled,
                            "shared": made.metadata.shared / 1024,
                            "warps": made.metadata.num_warps,
                            "instructions": " ".join(found),
                        }
                    )
    return pd.DataFrame(rows)


SIZES = {
    "SD 1.5, 512 px": (2, 4096, 0, 8, 40),
    "SD 1.5, 1024 px": (2, 16384, 0, 8, 40),
    "SDXL, 1024 px": (2, 4096, 0, 10, 64),
    "Flux, 1024 px": (1, 4096, 512, 24, 128),
}
"""Rows of a batch, image tokens, text tokens, heads and channels of a head in a self-attention of a model."""


SHARE = 0.64
"""The share of keys that is merged away in `least_times`, unless another one is asked for."""


def least_times(
    device: str, share: float = SHARE, sources: float = 0.75, dtype: str = "float16"
) -> pd.DataFrame:
    """The roofline of what merged keys take in one self-attention, beside that attention as it is.

    Args:
        device: a name in `catome.study.costs.accounting.DEVICES`.
        share: of the keys that is merged away.
        sources: share of src tokens.
        dtype: of the tokens; "float16" or "float32".

    Returns:
        One row for each model of `SIZES` and work: ``GFLOP``, ``MB`` that must be read and written, ``us``,
        the longer of the two at the device's peak rates, and ``bound``, which of them that is: "arithmetic"
        or "memory".
    """
    flops_per_s, bytes_per_s = device_rates(device, dtype)
    itemsize = DTYPE_BYTES[dtype]
    rows = []
    for model, (images, tokens, text, heads, channels) in SIZES.items():
        wide = heads * channels
        left = tokens - int(share * tokens)
        queries = tokens + text
        works = {
            "attention, unmerged": (4 * queries**2 * wide, 4 * queries * wide * itemsize),
            "attention, keys merged": (
                4 * queries * (left + text) * wide,
                2 * (queries + left + text) * wide * itemsize,
            ),
            "merge keys and values": (
                2 * tokens * wide,
                2 * (tokens + left) * wide * itemsize + 8 * (tokens + left),
            ),
            "find pairs": (
                2 * sources * (1 - sources) * tokens**2 * 2 * wide,
                2 * tokens * wide * itemsize + 12 * sources * tokens,
            ),
        }
        for work, (flops, moved) in works.items():
            computing = images * flops / flops_per_s
            moving = images * moved / bytes_per_s
            rows.append(
                {
                    "model": model,
                    "work": work,
                    "GFLOP": images * flops / 1e9,
                    "MB": images * moved / 1e6,
                    "us": 1e6 * max(computing, moving),
                    "bound": "arithmetic" if computing > moving else "memory",
                }
            )
    return pd.DataFrame(rows)


def main() -> None:
    """Print the table."""
    table = kernel_table()
    table["GPU"] = table["capability"].map(GPUS)
    with pd.option_context("display.width", 200, "display.max_rows", None):
        print(table.to_string(index=False, float_format="{:.1f}".format))
        for device in ("A100 80 GB SXM", "H100 SXM"):
            print(f"\nLeast times on {device}, float16:")
            print(least_times(device).to_string(index=False, float_format="{:.1f}".format))


if __name__ == "__main__":
    main()
