"""The PSNR of images that are subtracted as unsigned bytes: one explanation of the constant PSNR in the
paper's Table I."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from catome.study.measure import quality


def wrapped_psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """PSNR in dB of images of bytes whose differences and squares wrap around at 256: ``[B]`` of two uint8
    ``[B, H, W, 3]``."""
    square = ((a - b) ** 2).astype(float).mean((1, 2, 3))  # as bytes subtract and multiply
    return 10 * np.log10(255**2 / square)


def wrapped_beside_right(images: np.ndarray, others: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Both ways to compute PSNR, to be read.

    Args:
        images: uint8 ``[B, H, W, 3]``.
        others: by name, what they are compared with, of the same shape.

    Returns:
        A row for each name: the mean of the wrapped PSNR with its range, and the mean of the right one.
    """
    rows = {}
    for name, other in others.items():
        wrapped = wrapped_psnr(images, other)
        right = quality.psnr(images, other)
        rows[name] = {
            "bytes that wrap": f"{wrapped.mean():.1f} dB ({wrapped.min():.1f} to {wrapped.max():.1f})",
            "floating point": f"{right.mean():.1f} dB",
        }
    return pd.DataFrame(rows).T.rename_axis("against")
