"""The embedded model distilled to few steps: a latent consistency model (arXiv 2310.04378) as a LoRA.

It is the embedded Stable Diffusion with weights of low rank added (arXiv 2311.05556). It makes an image in
four steps of its own sampler, and needs no guidance: that of its teacher is in its weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import LCMScheduler
from diffusers.utils import logging

from catome.tiny.model import find_part, load_pipeline

WEIGHTS = "pytorch_lora_weights.safetensors"
"""The name under which diffusers saves a LoRA."""

TEACHER_STEPS = 50
"""The steps of the teacher's solver, one of which the model learns to leap over; the sampler picks its own
among them."""

STEPS = 4
"""For which its card's figures hold."""


@contextmanager
def without_warnings() -> Iterator[None]:
    """Let diffusers log errors alone: it warns of text encoders that a LoRA has no weights for, and of fields
    of one scheduler that another one has not."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def find_lcm(path: str | os.PathLike | None = None) -> Path:
    """The folder of the distilled model's weights: ``path``, else ``data/tiny-lcm`` of this checkout.

    Raises:
        FileNotFoundError: if that folder has no such weights.
    """
    return find_part(path, "tiny-lcm", (WEIGHTS,), "distilled model")


def load_lcm(
    path: str | os.PathLike | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    model: str | os.PathLike | None = None,
):
    """Load the embedded model, distilled to few steps; no network is used.

    Args:
        path: folder of the LoRA; by default the one of this checkout (see `find_lcm`).
        dtype: computing precision; the files are float16.
        device: where to put it.
        model: folder of the embedded model that the LoRA belongs to; as ``path`` of
            `catome.tiny.load_pipeline`.

    Returns:
        A plain ``diffusers.StableDiffusionPipeline`` with diffusers' ``LCMScheduler``. The LoRA is fused into
        its U-Net, so its modules are those of the embedded model.
        ``pipe(prompt(name), num_inference_steps=4, guidance_scale=1)`` gives a 128x128 image.

    Raises:
        FileNotFoundError: if the folder holds no LoRA, or there is no embedded model.
        OSError: if a file is damaged.
        TypeError: if ``dtype`` is no floating-point type.
        ImportError: if peft is not installed, by which diffusers reads a LoRA.
    """
    folder = find_lcm(path)
    pipe = load_pipeline(model, dtype=dtype)
    with without_warnings():
        # added in double precision and rounded to half, the weights are the same on every machine, bit by bit
        pipe.unet.to(torch.float64)
        try:
            pipe.load_lora_weights(folder, weight_name=WEIGHTS, local_files_only=True)
        except ValueError as error:
            if "PEFT" in str(error):
                raise ImportError("a LoRA is read by peft: pip install peft") from None
            raise
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        pipe.unet.half().to(dtype)
        own = {"original_inference_steps": TEACHER_STEPS}
        pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, **own)
    return pipe.to(device)
