"""Is the embedded model good enough to study? ``python -m catome.tiny.evaluate`` measures it and writes the
model card.

Measured: how well the VAE reconstructs held-out scenes; how many samples a held-out classifier names as asked
for; how selective the top-level self-attention is; how much merging costs. The figures go to ``figures.json``
beside the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from datetime import date
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import catome
from catome.models.registry import family_of, find_models
from catome.tiny import model as parts
from catome.tiny.features import accuracy
from catome.tiny.scenes import CLASSES, prompt, render

HELD_OUT = 10_000_000
"""Scene seeds from here on are never trained on."""


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """PSNR in dB of each image, ``[B]``, for images ``[B, ...]`` in [0, 1]."""
    return -10 * torch.log10((a - b).square().flatten(1).mean(1).clamp(min=1e-12))


@torch.no_grad()
def vae_reconstruction(pipe, per_class: int) -> dict[str, float]:
    """Mean PSNR (dB) of the VAE's reconstruction of held-out renders, for each class."""
    result = {}
    for name in CLASSES:
        images = np.stack([render(name, HELD_OUT + i) for i in range(per_class)])
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float().to(pipe.device) / 127.5 - 1
        y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        result[name] = psnr(x / 2 + 0.5, y / 2 + 0.5).mean().item()
    return result


def sample(
    pipe, names: list[str], seeds: list[int], steps: int, guidance: float, batch: int = 12
) -> torch.Tensor:
    """uint8 images ``[B, 3, H, W]``, each from noise of its own seed."""
    images = []
    for at in tqdm(range(0, len(names), batch), desc="samples", mininterval=10):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[at : at + batch]]
        prompts = [prompt(name) for name in names[at : at + batch]]
        out = pipe(
            prompts,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="pt",
        ).images
        images.append((out.cpu() * 255).round().to(torch.uint8))
    return torch.cat(images)


def attention_entropy(pipe, steps: int, guidance: float) -> list[float]:
    """exp(entropy)/N of each topmost self-attention of a pipeline (1: uniform, 1/N: one-hot), mean over
    heads, queries, steps, classes."""
    sums: dict[str, list[float]] = {}

    def watch(name):
        def look(attn, args, kwargs):
            x = args[0]
            q, k = (attn.head_to_batch_dim(project(x)) for project in (attn.to_q, attn.to_k))
            logp = (q @ k.transpose(1, 2) * attn.scale).log_softmax(-1)
            entropy = -(logp.exp() * logp).sum(-1)
            sums.setdefault(name, []).append((entropy.exp() / x.shape[1]).mean().item())

        return look

    model = find_models(pipe)[0]
    topmost = family_of(model).attentions(model, 1)
    handles = [one.module.register_forward_pre_hook(watch(one.name), with_kwargs=True) for one in topmost]
    try:
        with torch.no_grad():
            for name in CLASSES:
                sample(pipe, [name], [0], steps, guidance)
    finally:
        for handle in handles:
            handle.remove()
    return [float(np.mean(values)) for values in sums.values()]


def merging_cost(
    pipe, steps: int, guidance: float, thresholds=(0.95, 0.9, 0.8, 0.7, -1.0)
) -> dict[str, float]:
    """Mean PSNR (dB) against the unmerged image of the same seed, one image a class, pairs fresh at each
    step."""
    seeds = list(range(len(CLASSES)))
    plain = sample(pipe, list(CLASSES), seeds, steps, guidance) / 255
    result = {}
    for threshold in thresholds:
        with catome.patched(pipe, catome.PAPER, threshold=threshold, schedule=None):
            result[f"{threshold:g}"] = (
                psnr(sample(pipe, list(CLASSES), seeds, steps, guidance) / 255, plain).mean().item()
            )
    return result


def evaluate(folder: Path, device: str, per_class: int, steps: int, guidance: float) -> dict:
    """All figures of the model in ``folder``, as a dictionary that JSON can hold."""
    pipe = parts.load_pipeline(folder, device=device)
    vae = vae_reconstruction(pipe, max(2, per_class // 2))
    measured = figures_of(pipe, folder / "judge" / "model.safetensors", per_class, steps, guidance)
    return measured | {"vae_psnr_db": float(np.mean(list(vae.values()))), "vae_psnr_db_by_class": vae}


def load_judge(file: Path) -> parts.SceneNet:
    """Load the classifier that names samples, in evaluation mode."""
    from safetensors.torch import load_file

    judge = parts.SceneNet()
    judge.load_state_dict({key: value.float() for key, value in load_file(file).items()})
    return judge.eval()


def held_out(per_class: int) -> tuple[list[str], list[int], torch.Tensor, torch.Tensor]:
    """Names and seeds of samples, and the renders that they are held against.

    Args:
        per_class: samples of each class.

    Returns:
        Of each sample the name and the seed, class-major; the labels of these names, ``[12 * per_class]``;
        and renders of the same names and seeds, uint8 ``[12 * per_class, 3, 128, 128]``.
    """
    names = [name for name in CLASSES for _ in range(per_class)]
    seeds = [HELD_OUT + i for i in range(len(names))]
    labels = torch.tensor([CLASSES.index(name) for name in names])
    return names, seeds, labels, render_all(names, seeds)


def render_all(names: list[str], seeds: list[int]) -> torch.Tensor:
    """Scenes of some names and seeds, uint8 ``[B, 3, 128, 128]``."""
    images = np.stack([render(name, seed) for name, seed in zip(names, seeds, strict=True)])
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def surroundings(pipe) -> dict[str, str]:
    """The date, the device and the versions with which a pipeline is measured."""
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name()
        if pipe.device.type == "cuda"
        else f"{os.cpu_count()} CPU cores",
        "torch": torch.__version__,
        "catome": catome.__version__,
    }


def figures_of(pipe, judge_file: Path, per_class: int, steps: int, guidance: float) -> dict:
    """The figures of a pipeline: of its samples, of how selective its attention is and of what merging costs
    it.

    Args:
        pipe: a pipeline that draws scenes.
        judge_file: weights of the classifier.
        per_class: samples of each class.
        steps: of PLMS.
        guidance: scale.
    """
    judge = load_judge(judge_file)
    names, seeds, labels, renders = held_out(per_class)
    named = (
        accuracy(judge, sample(pipe, names, seeds, steps, guidance), labels)
        .float()
        .view(-1, per_class)
        .mean(1)
    )
    return {
        "guidance_scale": guidance,
        "plms_steps": steps,
        "samples": len(names),
        "named_correctly": named.mean().item(),
        "named_correctly_by_class": dict(zip(CLASSES, named.tolist(), strict=True)),
        "classifier_accuracy_on_held_out_renders": accuracy(judge, renders, labels).float().mean().item(),
        "attention_exp_entropy_over_n": attention_entropy(pipe, min(steps, 20), guidance),
        "merging_psnr_db_by_threshold": merging_cost(pipe, steps, guidance),
    } | surroundings(pipe)


def _aims(figures: dict) -> list[tuple[bool, str, str]]:
    """The bar that the model was trained for: of each aim whether it is reached, what it is, and what was
    found."""
    worst = min(figures["named_correctly_by_class"], key=figures["named_correctly_by_class"].get)
    selective = sum(value < 0.6 for value in figures["attention_exp_entropy_over_n"])
    cost = figures["merging_psnr_db_by_threshold"]
    dearer = cost["0.9"] - cost["-1"]
    least = figures["named_correctly_by_class"][worst]
    return [
        (
            figures["named_correctly"] >= 0.9,
            "at least 90% of the samples named correctly",
            f"{figures['named_correctly']:.0%} of samples named correctly, aim 90 %",
        ),
        (least >= 0.6, "at least 60% of every class", f"{least:.0%} of {worst!r} named correctly, aim 60 %"),
        (
            figures["vae_psnr_db"] >= 27,
            "a VAE that reconstructs at 27 dB or more",
            f"VAE reconstructs at {figures['vae_psnr_db']:.1f} dB, aim 27 dB",
        ),
        (
            selective >= 3,
            "at least three of the five top self-attentions with exp(entropy)/N below 0.6",
            f"{selective} of 5 top blocks have exp(entropy)/N below 0.6, aim 3",
        ),
        (
            dearer > 2,
            "merging everything to cost over 2 dB of PSNR more than merging at t = 0.9",
            f"merging everything costs only {dearer:.1f} dB, aim 2 dB",
        ),
    ]


def shortfalls(figures: dict) -> list[str]:
    """The parts not reached of the bar that the model was trained for, in words; empty if it is good enough
    to study."""
    return [found for reached, _, found in _aims(figures) if not reached]


def stage_rows(training: dict) -> str:
    """The rows of a card's table about the stages of a training: name, steps, samples, minutes."""
    return "\n".join(
        f"| {stage} | {run['steps']:,} | {run['samples']:,} | {run['seconds'] / 60:.0f} |"
        for stage, run in training["stages"].items()
    )


def write_card(folder: Path, figures: dict, training: dict) -> None:
    """The model card, ``README.md`` of the model's folder, from what was measured."""
    by_class = "\n".join(
        f"| {name} | {figures['named_correctly_by_class'][name]:.0%} | "
        f"{figures['vae_psnr_db_by_class'][name]:.1f} |"
        for name in CLASSES
    )
    attention = ", ".join(f"{value:.2f}" for value in figures["attention_exp_entropy_over_n"])
    cost = ", ".join(
        f"{value:.1f} dB at t = {t}" for t, value in figures["merging_psnr_db_by_threshold"].items()
    )
    missed = shortfalls(figures)
    aims = "\n".join(f"- {aim}" for _, aim, _ in _aims(figures))
    limits = (
        "\n".join(f"- Not reached: {words}." for words in missed) or "Every aim of its evaluation is reached."
    )
    work = stage_rows(training)
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
    (folder / "README.md").write_text(f"""# Model card

A `diffusers.StableDiffusionPipeline`, tiny but whole: CLIP tokenizer and text encoder, VAE (factor 4, 4 latent channels),
`UNet2DConditionModel` with {parts.UNET["block_out_channels"]} channels and transformer blocks where Stable Diffusion v1.5 has its
topmost (two in the first down block, three in the last up block; one in the middle), PNDM. 128x128 pixels, 32x32 latents, 1024
tokens at the top. Safetensors, float16, {size:.1f} MB in all. Load it with `catome.tiny.load_pipeline()`.

**Data.** Scenes drawn by `catome.tiny.scenes`: {len(CLASSES)} classes of landscape, {training["images"]:,} renders, prompted with
"{parts.prompt("{class}")}". No photograph, no person, no third party's work.

**Recipe.** `{training["command"]}`, on {training["device"]}, torch {training["torch"]}, {training["precision"]}.
{training["note"]}

| stage | steps | samples seen | minutes |
|---|---|---|---|
{work}

**Measured** with `python -m catome.tiny.evaluate` ({figures["plms_steps"]} PLMS steps, guidance {figures["guidance_scale"]},
{figures["samples"]} samples, {figures["date"]}): a held-out classifier names {figures["named_correctly"]:.1%} of the samples as asked
for ({figures["classifier_accuracy_on_held_out_renders"]:.1%} of held-out renders). The VAE reconstructs held-out renders at
{figures["vae_psnr_db"]:.1f} dB. exp(entropy)/N of the five top self-attentions (1 where attention is spread evenly over all N keys, near 0 where it rests on one): {attention}. PSNR against the unmerged image of the
same seed, pairs fresh at each step: {cost}.

| class | samples named correctly | VAE PSNR (dB) |
|---|---|---|
{by_class}

**Beside it.** `scene_net/` is the feature extractor behind the scene FID and KID of `catome.tiny.features`: these compare images of
this world with each other and are no Inception FID. `judge/` is the classifier of the figures above; it was trained on other renders than
`scene_net/`.

**Limits.** It knows {len(CLASSES)} prompts and nothing else. Its tokens have fewer channels than those of Stable Diffusion, and how similar those are was not measured; conclusions about thresholds carry over in kind, not in number.

**Aims.** Its evaluation asks for

{aims}

That merging everything costs more than merging little was therefore asked of the model, and is no finding of a study on it.

{limits}
""")


def evaluation_parser(module: str, about: str) -> argparse.ArgumentParser:
    """The parser that all commands that measure a model share, without the model.

    Args:
        module: that is run.
        about: its docstring.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about.split("\n\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--per-class", type=int, default=20, help="samples of each class")
    parser.add_argument("--steps", type=int, default=50, help="of PLMS")
    parser.add_argument(
        "--guidance", type=float, default=parts.GUIDANCE_SCALE, help="scale, where the model has guidance"
    )
    return parser


def parsed(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The arguments of such a command, None for those of the process; it ends with status 2 for a wrong
    one."""
    args = parser.parse_args(argv)
    if args.per_class < 1 or args.steps < 1 or not math.isfinite(args.guidance):
        parser.error("--per-class and --steps must be at least 1, --guidance a finite number")
    return args


def main(argv: list[str] | None = None) -> None:
    parser = evaluation_parser("catome.tiny.evaluate", __doc__)
    parser.add_argument(
        "--model", type=Path, default=None, help="the model's folder (default: the embedded one)"
    )
    args = parsed(parser, argv)
    folder = parts.find_model(args.model)
    figures = evaluate(folder, args.device, args.per_class, args.steps, args.guidance)
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    write_card(folder, figures, json.loads((folder / "training.json").read_text()))
    print(json.dumps(figures, indent=1))
    for words in shortfalls(figures):
        print("not reached:", words)


if __name__ == "__main__":
    main()
