"""The embedded diffusion transformer: a small PixArt that draws the same scenes, beside the embedded Stable
Diffusion.

It has the text encoder, the VAE, the tokenizer and the scheduler of the other model, and reads 32x32 latents
as 1024 tokens of one latent pixel each. All of its blocks attend over all of these tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import count
from pathlib import Path

import torch
from diffusers import PixArtSigmaPipeline, PixArtTransformer2DModel

from catome.tiny.model import GUIDANCE_SCALE, TEXT, find_part, load_pipeline, read_whole

PARTS = ("config.json", "diffusion_pytorch_model.safetensors")
SIZE = 32
"""Rows, and columns, of the latents."""
LAYERS, HEADS, HEAD_CHANNELS = 6, 3, 64
_LONGEST_TEXT = 300  # in tokens, of PixArt-Sigma


def build_transformer(patch_size: int = 1) -> PixArtTransformer2DModel:
    """A transformer with weights that are not trained yet.

    Args:
        patch_size: 1 for the model that is shipped. Training begins with 2, that is with a quarter of the
            tokens.
    """
    return PixArtTransformer2DModel(
        sample_size=SIZE,
        patch_size=patch_size,
        # positions count in patches of size 2 for both sizes, so that what was learnt of them with 2 holds
        # with 1
        interpolation_scale=2 // patch_size,
        in_channels=4,
        out_channels=4,
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_CHANNELS,
        cross_attention_dim=HEADS * HEAD_CHANNELS,
        caption_channels=TEXT["hidden_size"],
        use_additional_conditions=False,
    )


@torch.no_grad()
def refine(coarse: PixArtTransformer2DModel) -> PixArtTransformer2DModel:
    """The transformer with patches of size 1 that begins where one with patches of size 2 has come.

    A latent pixel is embedded as a patch would be whose four pixels equal it, and the noise that is predicted
    for it is the mean of the patch's four. Everything between the two layers is taken over.
    """
    fine = build_transformer(1)
    weights = coarse.state_dict()
    kernel = weights["pos_embed.proj.weight"]
    weights["pos_embed.proj.weight"] = kernel.sum((2, 3), keepdim=True)
    # the last layer's rows are (row in the patch, column in the patch, channel)
    for name in ("proj_out.weight", "proj_out.bias"):
        rows = weights[name]
        weights[name] = rows.view(4, 4, *rows.shape[1:]).mean(0)
    fine.load_state_dict(weights)
    return fine


class PixArtPipeline(PixArtSigmaPipeline):
    """`diffusers.PixArtSigmaPipeline`, called as `diffusers.StableDiffusionPipeline` is, with images of the
    size asked for."""

    @torch.no_grad()
    def __call__(
        self,
        prompt=None,
        *,
        num_inference_steps: int = 50,
        guidance_scale: float = GUIDANCE_SCALE,
        guidance_rescale: float = 0.0,
        callback_on_step_end=None,
        **options,
    ):
        """Generate images.

        Args:
            prompt: one or several.
            num_inference_steps: of the scheduler.
            guidance_scale: of classifier-free guidance.
            guidance_rescale: 0; a PixArt pipeline has no other.
            callback_on_step_end: called as ``callback_on_step_end(pipe, step, timestep, {})`` after each
                step.
            options: of `diffusers.PixArtSigmaPipeline`.

        Returns:
            What `diffusers.PixArtSigmaPipeline` returns.

        Raises:
            ValueError: if ``guidance_rescale`` is not 0.
        """
        if guidance_rescale:
            raise ValueError(f"guidance_rescale={guidance_rescale!r} must be 0: a PixArt pipeline has none")
        # by default diffusers takes the nearest of its own image sizes, and text as long as T5 can read
        length = min(self.tokenizer.model_max_length, _LONGEST_TEXT)
        options = {
            "clean_caption": False,
            "use_resolution_binning": False,
            "max_sequence_length": length,
        } | options
        with self._told_of_steps(callback_on_step_end):
            return super().__call__(
                prompt, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, **options
            )

    @contextmanager
    def _told_of_steps(self, callback: Callable | None) -> Iterator[None]:
        """Call back after each step of the scheduler: the callback of diffusers' own pipeline leaves out the
        first of PLMS."""
        given, step, done = self.scheduler.__dict__.get("step"), self.scheduler.step, count()

        @wraps(step)  # the pipeline looks at its parameters
        def told(output, timestep, *args, **kwargs):
            found = step(output, timestep, *args, **kwargs)
            callback(self, next(done), timestep, {})
            return found

        if callback is not None:
            self.scheduler.step = told
        try:
            yield
        finally:
            self.scheduler.__dict__.pop("step", None)
            if given is not None:  # somebody else had put one there
                self.scheduler.step = given


def find_transformer(path: str | os.PathLike | None = None) -> Path:
    """The folder of the embedded transformer: ``path``, else ``data/tiny-pixart`` of this checkout.

    Raises:
        FileNotFoundError: if there is no transformer in that folder.
    """
    return find_part(path, "tiny-pixart", PARTS, "transformer")


def load_transformer(
    path: str | os.PathLike | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    model: str | os.PathLike | None = None,
) -> PixArtPipeline:
    """Load the embedded diffusion transformer with the other parts of the embedded model; no network is used.

    Args:
        path: folder of the transformer; by default the one of this checkout (see `find_transformer`).
        dtype: computing precision; the files are float16.
        device: where to put it.
        model: folder of the embedded model, which has the other parts; as ``path`` of
            `catome.tiny.load_pipeline`.

    Returns:
        A PixArt pipeline; ``pipe(prompt(name))`` gives a 128x128 image.

    Raises:
        FileNotFoundError: if the folder holds no transformer, or there is no embedded model.
        OSError: if a file is damaged.
        TypeError: if ``dtype`` is no floating-point type.
    """
    rest = load_pipeline(model, dtype=dtype, device=device)
    folder = find_transformer(path)
    given = f"path={str(folder)!r} must be the folder of the whole embedded transformer"
    transformer = read_whole(PixArtTransformer2DModel, folder, given, torch_dtype=dtype)
    pipe = PixArtPipeline(rest.tokenizer, rest.text_encoder, rest.vae, transformer.eval(), rest.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
