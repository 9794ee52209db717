"""Distil the embedded model to few steps: ``python -m catome.tiny.train_lcm``.

Latent consistency distillation (arXiv 2310.04378) with weights of low rank (arXiv 2311.05556). The student
learns to say the same of two neighbouring points of a path of its teacher, which leads from noise to an
image: what image the path ends in. The teacher is the embedded model with guidance, and the path that of
DDIM. Started again with the same ``--work`` folder, the command goes on where it was, and an interrupted run
equals an uninterrupted one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from catome.tiny import model as parts
from catome.tiny.lcm import TEACHER_STEPS, WEIGHTS
from catome.tiny.scenes import CLASSES, prompt
from catome.tiny.train import (
    Trainer,
    check_positive,
    training_parser,
    training_record,
)
from catome.tiny.train_transformer import digest_of, scene_latents

MODULE = "catome.tiny.train_lcm"

LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"),
)
"""The layers of the U-Net that get a LoRA, as diffusers' own recipe for Stable Diffusion has it."""

DEVIATION = 0.5
"""Of the data, as the boundary condition assumes it (``sigma_data``), and `TIMES` its scale of timesteps: the
values of diffusers' ``LCMScheduler``."""
TIMES = 10.0

FLAT = 1e-3
"""The error at which the pseudo-Huber loss turns from a square into an absolute value."""


@torch.no_grad()
def encode_prompts(pipe) -> torch.Tensor:
    """Encode each class's prompt, and no prompt: ``[13, 16, 64]``."""
    texts = [prompt(name) for name in CLASSES] + [""]
    words = pipe.tokenizer(texts, padding="max_length", max_length=parts.MAX_TOKENS, return_tensors="pt")
    return pipe.text_encoder(words.input_ids.to(pipe.device))[0]


def distillation_loss(
    teacher, student, latents: torch.Tensor, told: torch.Tensor, batch: int, guidance: float
):
    """The loss of latent consistency distillation, as a function of the step and its generator
    (`catome.tiny.train.Trainer.run`).

    Args:
        teacher: the U-Net whose paths are followed.
        student: the same with a LoRA.
        latents: of unit deviation, class-major, ``[12 * N, 4, H, W]``.
        told: embeddings of the prompts, and of no prompt behind them.
        batch: images a step.
        guidance: scale of the teacher's guidance.
    """
    alphas = parts.build_scheduler().alphas_cumprod.to(latents.device)
    per_class = len(latents) // len(CLASSES)
    leap = len(alphas) // TEACHER_STEPS

    def parts_of(t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of the image and of the noise at some timesteps, ``[B, 1, 1, 1]`` each."""
        alpha = alphas[t].view(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def consistent(noisy: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """The student's image at the end of the path; at its beginning, this is what it was given."""
        image, noise = parts_of(t)
        predicted = (noisy - noise * student(noisy, t, text).sample.float()) / image
        scaled = (t * TIMES).view(-1, 1, 1, 1)
        skip = DEVIATION**2 / (scaled**2 + DEVIATION**2)
        out = scaled / (scaled**2 + DEVIATION**2).sqrt()
        return skip * noisy + out * predicted

    def loss_of(step, generator):
        index = torch.randint(len(latents), (batch,), generator=generator)
        # stratified over the batch: fewer lucky and unlucky steps
        place = (torch.arange(batch) + torch.rand(batch, generator=generator)) * (TEACHER_STEPS / batch)
        t = ((place.long().clamp(0, TEACHER_STEPS - 1) + 1) * leap - 1).to(latents.device)
        before = (t - leap).clamp(min=0)
        text = told[(index // per_class).to(told.device)]
        clean = latents[index.to(latents.device)]
        drawn = torch.randn(clean.shape, generator=generator).to(latents.device)
        image, noise = parts_of(t)
        noisy = image * clean + noise * drawn
        with torch.no_grad():
            both = torch.cat([told[-1:].expand_as(text), text])
            without, given = teacher(noisy.repeat(2, 1, 1, 1), t.repeat(2), both).sample.float().chunk(2)
            guided = without + guidance * (given - without)
            image_before, noise_before = parts_of(before)
            earlier = image_before * (noisy - noise * guided) / image + noise_before * guided
            target = consistent(earlier, before, text)
        error = consistent(noisy, t, text) - target
        return ((error.square() + FLAT**2).sqrt() - FLAT).mean()

    return loss_of


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments; it ends with status 2 for a wrong one."""
    parser = training_parser(MODULE, __doc__, "tiny-lcm")
    parser.set_defaults(per_class=200, precision="float32")
    parser.add_argument("--model", type=Path, default=None, help="the teacher (default: the embedded model)")
    parser.add_argument("--lora-steps", type=int, default=400)
    parser.add_argument("--lora-batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--ema", type=float, default=0.98)
    parser.add_argument("--guidance", type=float, default=parts.GUIDANCE_SCALE)
    args = parser.parse_args(argv)
    check_positive(parser, args)
    if args.rank < 1:
        parser.error(f"--rank={args.rank}: must be at least 1")
    args.device = torch.device(args.device)
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)  # on CPUs they are slow, and no gradient needs them
    pipe = parts.load_pipeline(args.model, device=str(args.device))
    latents = scene_latents(args, pipe.vae)
    told = encode_prompts(pipe)

    teacher = pipe.unet.requires_grad_(False)
    torch.manual_seed(args.seed)
    student = parts.load_pipeline(args.model, device=str(args.device)).unet.requires_grad_(False)
    student.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=list(LAYERS)))
    begun = digest_of([*student.state_dict().values(), latents[:1], told])
    # another guidance, or other renders, make another training
    state = args.work / f"lora-{args.per_class}-{args.guidance:g}-{begun}.safetensors"
    trainer = Trainer(student, state, args.lora_steps, args, args.rate, ema=args.ema)
    if trainer.step < args.lora_steps:
        loss_of = distillation_loss(teacher, student, latents, told, args.lora_batch, args.guidance)
        trainer.run(loss_of, "lora")

    args.out.mkdir(parents=True, exist_ok=True)
    layers = get_peft_model_state_dict(trainer.best)
    StableDiffusionPipeline.save_lora_weights(args.out, unet_lora_layers=layers, weight_name=WEIGHTS)
    file = args.out / WEIGHTS
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    training = training_record(MODULE, argv, args, len(latents), {"lora": (trainer, args.lora_batch)})
    training |= {"rank": args.rank, "guidance": args.guidance}
    (args.out / "training.json").write_text(json.dumps(training, indent=1) + "\n")
    rest = "" if args.model is None else f" --model {args.model}"
    print(f"wrote {args.out}; now: python -m catome.tiny.evaluate_lcm --lcm {args.out}{rest}")


if __name__ == "__main__":
    main()
