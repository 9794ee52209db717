"""The figures that the paper prints (arXiv 2501.00946), to stand beside measured ones. Nothing here was
measured by this project.

Setting: Tesla V100S, Stable Diffusion v1.5, 512x512, 50 PLMS steps, guidance 7.5 with rescale 1, 2 images for
each of ImageNet's 1000 classes, FID against 5000 validation images.
"""

from __future__ import annotations

import pandas as pd

THRESHOLDS = pd.DataFrame(
    {
        "threshold": [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
        "FID": [35.28, 35.46, 35.56, 34.30, 33.80, 33.42, 33.66],
        "seconds": [6.07, 6.07, 6.10, 6.23, 6.58, 6.92, 7.61],
        "PSNR": [27.900, 27.909, 27.908, 27.910, 27.904, 27.907, 27.905],
        "SSIM": [0.191, 0.208, 0.218, 0.234, 0.239, 0.238, 0.241],
    }
).set_index("threshold")
"""Table I; a threshold of 1.0 stands for no merging. PSNR (dB) and SSIM against real images of the class."""

SCHEDULES = pd.DataFrame(
    {
        "schedule": ["CONFIG_1", "CONFIG_2", "CONFIG_3", "CONFIG_4", "CONF_ADAPTIVE", "CONFIG_FIVE"],
        "FID": [36.14, 34.33, 34.05, 34.82, 35.56, 35.20],
        "seconds": [6.18, 6.13, 6.09, 6.12, 6.19, 6.14],
    }
).set_index("schedule")
"""Table III: the schedules of Table II at a threshold of 0.7."""

METHODS = pd.DataFrame(
    {
        "method": ["baseline", "ToMe, r = 0.5", "CA-ToMe, t = 0.7, CONFIG_3"],
        "FID": [33.66, 34.16, 34.05],
        "seconds": [7.61, 6.39, 6.09],
    }
).set_index("method")
"""Table IV."""
