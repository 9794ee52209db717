"""The reconstructions that a VAE makes of images, and how close they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from catome.study.measure.quality import psnr


@torch.no_grad()
def reconstructed(vae, images: np.ndarray) -> np.ndarray:
    """Images of eight bits ``[B, H, W, 3]`` after the way through the latents and back; the latents are the
    encoder's means."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    y = vae.decode(vae.encode(x).latent_dist.mean).sample
    return ((y.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def words(scenes: Mapping[str, np.ndarray], restored: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The closeness of the reconstructions, for the page about the embedded model, by its names there, with _
    for -.

    Args:
        scenes: images of eight bits ``[B, H, W, 3]`` by class.
        restored: what was made of them; of the first ones, where it has fewer.
    """
    found = {name: float(psnr(scenes[name][: len(again)], again).mean()) for name, again in restored.items()}
    hardest = min(found, key=found.get)
    return {
        "decibels": f"{np.mean(list(found.values())):.1f}",
        "hardest": hardest,
        "hardest_decibels": f"{found[hardest]:.1f}",
    }
