"""The parts of the embedded Stable Diffusion: sizes, tokenizer, networks, and the shipped pipeline's
loader."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten

import torch
from torch import nn

from catome.tiny.scenes import CLASSES, prompt

PARTS = ("model_index.json", "unet", "vae", "text_encoder", "tokenizer", "scheduler")
GUIDANCE_SCALE = 7.5
"""The guidance scale that the model card's figures were measured with, and that the notebooks use."""

MAX_TOKENS = 16
UNET = dict(
    sample_size=32,
    in_channels=4,
    out_channels=4,
    block_out_channels=(64, 96, 128),
    layers_per_block=2,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    attention_head_dim=4,
    cross_attention_dim=64,
    norm_num_groups=16,
)
VAE = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    block_out_channels=(32, 64, 96),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    sample_size=128,
    mid_block_add_attention=False,
)
TEXT = dict(
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=MAX_TOKENS,
    projection_dim=64,
)


def build_tokenizer(folder: Path):
    """Write a byte-pair tokenizer, whose merges were learnt from the scene prompts, to ``folder`` and load it
    as CLIP's.

    Any text tokenizes (every byte is in the vocabulary); each word of the scene prompts is one token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(False, False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=5000,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        min_frequency=1,
        show_progress=False,
    )
    learner.train_from_iterator([prompt(name) for name in CLASSES], trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    words = alphabet + [letter + "</w>" for letter in alphabet]
    words += [token for token in ("".join(pair) for pair in merges) if token not in set(words)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({word: i for i, word in enumerate(words)}, ensure_ascii=False)
    )
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
    )
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer):
    from transformers import CLIPTextConfig, CLIPTextModel

    special = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    config = CLIPTextConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.eos_token_id, **special, **TEXT)
    return CLIPTextModel(config)


def build_unet():
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**UNET)


def build_vae():
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(**VAE)
    with torch.no_grad():  # start almost deterministic: log-variance about -4
        vae.quant_conv.bias[VAE["latent_channels"] :].fill_(-4.0)
    return vae


def build_scheduler():
    from diffusers import PNDMScheduler

    return PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


class SceneNet(nn.Module):
    """A small convolutional network on scenes: its pooled features and three readings of them.

    It is trained to name the class, to recall the coarse layout (8x8 RGB) and to measure how blurred and how
    noisy an image was made; the last two keep in the features what a class label alone would let them
    forget."""

    features = 128

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        previous = 3
        for width in widths:
            layers += [
                nn.Conv2d(previous, width, 3, stride=2, padding=1),
                nn.GroupNorm(8, width),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.GroupNorm(8, width),
                nn.SiLU(),
            ]
            previous = width
        self.body = nn.Sequential(*layers)
        self.project = nn.Linear(previous * 5, self.features)
        self.name = nn.Linear(self.features, len(CLASSES))
        self.layout = nn.Linear(self.features, 8 * 8 * 3)
        self.damage = nn.Linear(self.features, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images ``[B, 3, H, W]`` in [-1, 1] to features ``[B, 128]``: global mean and the means of the
        quadrants."""
        maps = self.body(images)
        pooled = [nn.functional.adaptive_avg_pool2d(maps, n).flatten(1) for n in (1, 2)]
        return self.project(torch.cat(pooled, 1))

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Class logits ``[B, 12]`` in the order of `catome.tiny.CLASSES`."""
        return self.name(nn.functional.silu(self.forward(images)))


def find_model(path: str | os.PathLike | None = None) -> Path:
    """The folder of the embedded model: ``path``, else ``CATOME_TINY_MODEL``, else ``data/tiny-sd`` of this
    checkout.

    Raises:
        FileNotFoundError: if there is no complete model in that folder; the message says how to name one.
    """
    checkout = Path(__file__).resolve().parents[2] / "data" / "tiny-sd"
    folder = Path(path if path is not None else os.environ.get("CATOME_TINY_MODEL") or checkout)
    missing = [part for part in PARTS if not (folder / part).exists()]
    if missing:
        raise FileNotFoundError(
            f"path={str(folder)!r} holds no embedded model ({missing[0]} is missing): "
            "it comes with a checkout of the repository, not with the installed package; "
            "give the path of its data/tiny-sd folder as path= or in CATOME_TINY_MODEL"
        )
    return folder


def find_part(path: str | os.PathLike | None, name: str, files: Sequence[str], what: str) -> Path:
    """The folder of something that belongs to the embedded model: ``path``, else ``data/<name>`` of this
    checkout.

    Args:
        path: as its loader was given it.
        name: of its folder in ``data``.
        files: that must be there.
        what: it is, in the error.

    Raises:
        FileNotFoundError: if one of the files is not there.
    """
    folder = Path(path) if path is not None else Path(__file__).resolve().parents[2] / "data" / name
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        raise FileNotFoundError(
            f"path={str(folder)!r} holds no embedded {what} ({missing[0]} is "
            "missing): it comes with a checkout of the repository, not with the "
            f"installed package; give the path of its data/{name} folder as path="
        )
    return folder


def read_pipeline(model: str, given: str, kind=None, **options):
    """``kind.from_pretrained(model)`` of safetensors alone: nothing is unpickled.

    Args:
        model: a folder, or a name on the Hub.
        given: how the error begins.
        kind: a class of pipelines; None for `diffusers.StableDiffusionPipeline`.
        options: of ``from_pretrained``.

    Raises:
        OSError: in one sentence that begins with ``given``, whatever of the model is missing, damaged or
            foreign.
    """
    from diffusers import StableDiffusionPipeline

    pipe = read_whole(kind or StableDiffusionPipeline, model, given, **options)
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = getattr(pipe, name, None)
        # no error for diffusers, which makes a lost tokenizer anew
        if tokenizer is not None and len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise OSError(f"{given}: the vocabulary of its {name} is missing")
    return pipe


def read_whole(kind: type, model: str | os.PathLike, given: str, **options):
    """``kind.from_pretrained(model)`` of safetensors alone, with all of its weights.

    Args:
        kind: a class of pipelines or of models.
        model, given, options: as in `read_pipeline`.

    Raises:
        OSError: as in `read_pipeline`.
    """
    try:
        found = kind.from_pretrained(model, use_safetensors=True, **options)
    except (ImportError, MemoryError):
        raise
    # of every kind: diffusers, transformers, tokenizers and safetensors have no common one
    except Exception as error:
        raise OSError(f"{given}: {shorten(str(error), 300)}") from None
    # no error for diffusers: weights that no file has stay without data
    for part, module in getattr(found, "components", {"": found}).items():
        if isinstance(module, nn.Module) and any(weight.is_meta for weight in module.parameters()):
            raise OSError(f"{given}: weights{f' of its {part}' if part else ''} are missing")
    return found


def load_pipeline(
    path: str | os.PathLike | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu"
):
    """Load the embedded model as a plain ``diffusers.StableDiffusionPipeline``; no network is used.

    Args:
        path: folder of the model; by default the one of this checkout (see `find_model`).
        dtype: computing precision; the files are float16.
        device: where to put it.

    Returns:
        The pipeline, with PNDM and without a safety checker; ``pipe(prompt(name))`` gives a 128x128 image.

    Raises:
        FileNotFoundError: if the folder holds no complete model.
        OSError: if a file of it is damaged.
        TypeError: if ``dtype`` is no floating-point type.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype={dtype!r} must be a floating-point torch.dtype, such as torch.float32")
    folder = find_model(path)
    given = f"path={str(folder)!r} must be the folder of the whole embedded model"
    pipe = read_pipeline(str(folder), given, dtype=dtype, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def load_scene_net(path: str | os.PathLike | None = None, device: str = "cpu") -> SceneNet:
    """Load the shipped feature extractor (`SceneNet`), in evaluation mode.

    Raises:
        FileNotFoundError: if there is no complete model (see `find_model`), or no extractor in it.
        OSError: if the extractor's file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = find_model(path) / "scene_net" / "model.safetensors"
    if not file.exists():
        raise FileNotFoundError(
            f"path={str(file)!r} does not exist: this model folder ships no feature extractor"
        )
    net = SceneNet()
    try:
        net.load_state_dict({key: value.float() for key, value in load_file(file).items()})
    except (SafetensorError, RuntimeError) as error:
        raise OSError(
            f"path={str(file)!r} must be a whole feature extractor: {shorten(str(error), 300)}"
        ) from None
    return net.eval().requires_grad_(False).to(device)
