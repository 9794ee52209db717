"""Pipelines and images: real Stable Diffusion or the embedded model, through the same code."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PixArtSigmaPipeline,
    StableDiffusionXLPipeline,
)
from tqdm import tqdm

from catome import tiny
from catome.study.run.denoiser import denoiser, topmost_downsample
from catome.study.run.parameters import DTYPES, EMBEDDED, LCM, SAMPLERS, Setting
from catome.study.run.store import image_size
from catome.tiny.lcm import without_warnings
from catome.tiny.model import read_pipeline
from catome.tiny.transformer import PixArtPipeline

T = TypeVar("T")

_SAMPLERS = dict(zip(SAMPLERS, (DPMSolverMultistepScheduler, EulerDiscreteScheduler), strict=True))
_SAMPLERS[LCM] = LCMScheduler
_LOADERS = {"tiny": tiny.load_pipeline, "tiny-pixart": tiny.load_transformer, "tiny-lcm": tiny.load_lcm}


def load(setting: Setting):
    """The pipeline of ``setting.model``: an embedded one, a diffusers folder or a name on the Hub.

    Real models get PNDM (PLMS), as in the paper, and load safetensors only.

    Raises:
        OSError: if the model is neither a whole folder nor to be had from the Hub.
        ValueError: for a transformer and a ``guidance_rescale``, which its pipeline does not have; and for
            the distilled model in a study that does not use its sampler.
    """
    if setting.model == "tiny-lcm" and getattr(setting, "sampler", None) != LCM:
        raise ValueError(
            f"model={setting.model!r} makes images by the sampler {LCM!r} alone, which the studies "
            "'distilled' and 'curves' have"
        )
    if setting.guidance_rescale and (
        setting.model == "tiny-pixart" or (not setting.embedded and is_pixart(setting.model))
    ):
        raise ValueError(
            f"guidance_rescale={setting.guidance_rescale!r} must be 0 with a transformer: its pipeline has "
            "none"
        )
    if setting.embedded:
        return _LOADERS[setting.model](dtype=DTYPES[setting.dtype], device=setting.device)
    from diffusers import PNDMScheduler

    given = (
        f"model={setting.model!r} must be {', '.join(map(repr, EMBEDDED))}, a folder "
        "with a whole Stable Diffusion (1, 2 or XL) or PixArt-Sigma in safetensors or a name on the Hub"
    )
    kind, options = None, {"safety_checker": None, "requires_safety_checker": False}
    if is_pixart(setting.model):
        kind, options = PixArtPipeline, {}
    elif _pipeline_class(setting.model) == StableDiffusionXLPipeline.__name__:
        # a watermark, which diffusers draws where its package is installed, would be one more difference
        kind, options = StableDiffusionXLPipeline, {"add_watermarker": False}
    pipe = read_pipeline(setting.model, given, kind, dtype=DTYPES[setting.dtype], **options)
    pipe.scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(setting.device)


def is_pixart(model: str) -> bool:
    """Return True if a folder, or a name on the Hub, says that it is a PixArt-Sigma pipeline; False for what
    says nothing."""
    return _pipeline_class(model) in (PixArtSigmaPipeline.__name__, PixArtPipeline.__name__)


def _pipeline_class(model: str) -> str | None:
    """The name of the class of pipelines that a folder, or a name on the Hub, says it is; None for what says
    nothing."""
    try:
        config = DiffusionPipeline.load_config(model)
    except (OSError, ValueError):
        return None  # what it is instead is said where it is read
    return config.get("_class_name") if isinstance(config, dict) else None


@contextmanager
def with_sampler(pipe, name: str | None) -> Iterator:
    """The pipeline with another sampler, "DPM++", "Euler" or "LCM" (None: its own); afterwards its own
    again."""
    own = pipe.scheduler
    if name is not None:
        with without_warnings():
            pipe.scheduler = _SAMPLERS[name].from_config(own.config)
    try:
        yield pipe
    finally:
        pipe.scheduler = own


def batches(setting: Setting) -> list[range]:
    """The images of a study, cut into batches."""
    return [
        range(at, min(at + setting.batch_size, setting.images))
        for at in range(0, setting.images, setting.batch_size)
    ]


def generate_batch(
    pipe, setting: Setting, images: range, progress: Callable[[], object] | None = None
) -> np.ndarray:
    """Images ``images`` of the study, float ``[B, H, W, 3]`` in [0, 1].

    Each image has noise of its own, seeded with ``setting.seed`` and its number, whatever batch it is in."""

    def ticked(pipeline, step, timestep, tensors):
        if progress is not None:
            progress()
        return tensors

    height, width = image_size(pipe, setting)  # both: a pipeline that is given one of the two uses neither
    with warnings.catch_warnings(), _vae_as_it_was(pipe):
        warnings.filterwarnings("ignore", "`upcast_vae` is deprecated", FutureWarning)  # diffusers calls it
        return pipe(
            [setting.prompts[i] for i in images],
            height=height,
            width=width,
            num_inference_steps=setting.steps,
            guidance_scale=setting.guidance,
            guidance_rescale=setting.guidance_rescale,
            generator=[torch.Generator().manual_seed(setting.seed * 1_000_003 + i) for i in images],
            callback_on_step_end=ticked,
            output_type="np",
        ).images


class _Called(Exception):
    """Ends a generation at the first call of its model."""


def first_call(pipe, setting: Setting) -> tuple[tuple, dict]:
    """The arguments, without and with names, with which the first image's generation calls its model first.
    Models need different ones beside the latents, the timestep and the text."""
    found = []

    def seen(module, args, kwargs):
        found.append((args, {name: value for name, value in kwargs.items() if name != "return_dict"}))
        raise _Called

    hook = denoiser(pipe).register_forward_pre_hook(seen, with_kwargs=True)
    try:
        generate_batch(pipe, setting, range(1))
    except _Called:
        pass
    finally:
        hook.remove()
    return found[0]


@contextmanager
def _vae_as_it_was(pipe) -> Iterator:
    """Put the VAE's precision back: Stable Diffusion XL decodes half precision in float32, and an error on
    the way leaves the VAE so."""
    dtype = pipe.vae.dtype
    try:
        yield
    finally:
        if pipe.vae.dtype != dtype:
            pipe.vae.to(dtype)


def by_halves(make: Callable[[range], T], images: range) -> list[T]:
    """Return what ``make`` gives for a batch, or, where the device lacks the memory, for its halves one by
    one, and so on.

    Raises:
        torch.OutOfMemoryError: if even a single image does not fit.
    """
    try:
        return [make(images)]
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise
    torch.cuda.empty_cache()  # out here, where the error no longer holds what was on the device
    half = (len(images) + 1) // 2
    warnings.warn(f"out of memory with batches of {len(images)}: going on with {half}", stacklevel=2)
    return by_halves(make, images[:half]) + by_halves(make, images[half:])


def generate(pipe, setting: Setting, label: str = "images") -> np.ndarray:
    """All images of a study, float ``[images, H, W, 3]`` in [0, 1], with a progress bar over denoising
    steps."""
    parts = batches(setting)
    with tqdm(total=len(parts) * setting.calls, desc=label, unit="step", leave=False) as bar:
        made = [
            by_halves(lambda images: generate_batch(pipe, setting, images, bar.update), part)
            for part in parts
        ]
        return np.concatenate([images for batch in made for images in batch])


def tokens_of(pipe, setting: Setting) -> int:
    """Tokens of one image in the topmost transformer blocks."""
    height, width = setting.height or 0, setting.width or 0
    latent = denoiser(pipe).config.sample_size
    rows, columns = (height // pipe.vae_scale_factor or latent), (width // pipe.vae_scale_factor or latent)
    down = topmost_downsample(denoiser(pipe))
    return math.ceil(rows / down) * math.ceil(columns / down)
