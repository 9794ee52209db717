"""Train the embedded diffusion transformer: ``python -m catome.tiny.train_transformer``.

It learns the scenes, the prompts and the latents of the embedded Stable Diffusion, whose VAE and text encoder
stay as they are. A first stage reads patches of 2x2 latent pixels, 256 tokens an image, which takes a fifth
of the time. The second one goes on from there with single pixels, 1024 tokens. Both are resumable: started
again with the same ``--work`` folder, the command goes on where it was, and an interrupted run equals an
uninterrupted one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch

from catome.tiny import model as parts
from catome.tiny.scenes import CLASSES, prompt
from catome.tiny.train import (
    Trainer,
    check_positive,
    encode_set,
    noise_loss,
    render_set,
    training_parser,
    training_record,
)
from catome.tiny.transformer import build_transformer, refine

MODULE = "catome.tiny.train_transformer"


@torch.no_grad()
def encode_prompts(pipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode what the transformer is told: each class's prompt, and no prompt, as PixArt's pipeline encodes
    them.

    Returns:
        Embeddings ``[13, 16, 64]``, and which of their positions hold a word, ``[13, 16]``.
    """
    texts = [prompt(name) for name in CLASSES] + [""]
    words = pipe.tokenizer(
        texts, padding="max_length", max_length=parts.MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    words = words.to(pipe.device)
    return pipe.text_encoder(words.input_ids, attention_mask=words.attention_mask)[0], words.attention_mask


def digest_of(tensors: Iterable[torch.Tensor]) -> str:
    """A short name of the values of some tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.float().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:8]


def scene_latents(args, vae) -> torch.Tensor:
    """Render scenes and encode them by the VAE of a pipeline, once for each ``--work`` folder, number of
    scenes and VAE: latents of unit deviation, class-major, ``[12 * per_class, 4, 32, 32]``."""
    images = render_set(args.work / f"renders-{args.per_class}.npy", args.per_class)
    kept = args.work / f"latents-{args.per_class}-{digest_of(vae.state_dict().values())}.safetensors"
    return encode_set(args, vae, images, kept).to(args.device).float() * vae.config.scaling_factor


def train_stage(name: str, args, network, latents: torch.Tensor, told: tuple[torch.Tensor, torch.Tensor]):
    """Train ``network`` to predict the noise in ``latents``; returns the average of its weights, and the
    trainer."""
    steps, batch = getattr(args, f"{name}_steps"), getattr(args, f"{name}_batch")
    embeddings, mask = told
    # from other weights, latents or texts it would be another training, which goes on from no state of this
    # one
    begun = digest_of([*network.state_dict().values(), latents[:1], embeddings])
    trainer = Trainer(
        network, args.work / f"{name}-{begun}.safetensors", steps, args, args.rate, ema=args.ema
    )
    unconditioned = {"resolution": None, "aspect_ratio": None}

    def predict(noisy, timesteps, label):
        return network(
            noisy,
            encoder_hidden_states=embeddings[label],
            encoder_attention_mask=mask[label],
            timestep=timesteps,
            added_cond_kwargs=unconditioned,
        ).sample

    if trainer.step < steps:
        trainer.run(noise_loss(args.device, latents, batch, args.colour, predict), name)
    return trainer.best.eval().requires_grad_(False), trainer


def save_transformer(folder: Path, transformer, training: dict) -> None:
    """Write the transformer in float16, and how it was trained."""
    transformer.to("cpu", torch.float16).save_pretrained(folder, safe_serialization=True)
    (folder / "training.json").write_text(json.dumps(training, indent=1) + "\n")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments; it ends with status 2 for a wrong one."""
    parser = training_parser(MODULE, __doc__, "tiny-pixart")
    parser.add_argument(
        "--model", type=Path, default=None, help="whose VAE and text encoder (default: the embedded model's)"
    )
    parser.add_argument("--coarse-steps", type=int, default=2600)
    parser.add_argument("--coarse-batch", type=int, default=16)
    parser.add_argument("--fine-steps", type=int, default=1700)
    parser.add_argument("--fine-batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument(
        "--colour", type=float, default=0.5, help="weight of the loss on wide errors at high noise"
    )
    args = parser.parse_args(argv)
    check_positive(parser, args)
    args.device = torch.device(args.device)
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)  # on CPUs they are slow, and no gradient needs them
    pipe = parts.load_pipeline(args.model, device=str(args.device))
    latents = scene_latents(args, pipe.vae)
    told = encode_prompts(pipe)

    torch.manual_seed(args.seed)
    coarse, first = train_stage("coarse", args, build_transformer(2).to(args.device), latents, told)
    fine, second = train_stage("fine", args, refine(coarse).to(args.device), latents, told)
    stages = {"coarse": (first, args.coarse_batch), "fine": (second, args.fine_batch)}
    save_transformer(args.out, fine, training_record(MODULE, argv, args, len(latents), stages))
    rest = "" if args.model is None else f" --model {args.model}"
    print(f"wrote {args.out}; now: python -m catome.tiny.evaluate_transformer --transformer {args.out}{rest}")


if __name__ == "__main__":
    main()
