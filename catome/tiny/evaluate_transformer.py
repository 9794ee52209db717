"""Is the embedded transformer good enough to study? ``python -m catome.tiny.evaluate_transformer`` writes its
model card.

Judged as the embedded Stable Diffusion is: how many samples a held-out classifier names as asked for, how
selective its self-attention is, and how much merging costs. The figures go to ``figures.json`` beside the
weights.
"""

from __future__ import annotations

import json
from pathlib import Path

from catome.tiny.evaluate import evaluation_parser, figures_of, parsed, stage_rows
from catome.tiny.model import find_model
from catome.tiny.scenes import CLASSES, prompt
from catome.tiny.transformer import HEAD_CHANNELS, HEADS, LAYERS, SIZE, find_transformer, load_transformer

AIM = 0.85
"""The share of samples named correctly that is asked for."""


def write_card(folder: Path, figures: dict, training: dict) -> None:
    """The model card, ``README.md`` of the transformer's folder, from what was measured."""
    by_class = "\n".join(f"| {name} | {figures['named_correctly_by_class'][name]:.0%} |" for name in CLASSES)
    attention = ", ".join(f"{value:.2f}" for value in figures["attention_exp_entropy_over_n"])
    cost = ", ".join(
        f"{value:.1f} dB at t = {t}" for t, value in figures["merging_psnr_db_by_threshold"].items()
    )
    work = stage_rows(training)
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
    reached = "It is reached." if figures["named_correctly"] >= AIM else "It is not reached."
    (folder / "README.md").write_text(f"""# Model card of the transformer

A `diffusers.PixArtTransformer2DModel` of {LAYERS} layers and {HEADS} heads of {HEAD_CHANNELS} channels. It reads {SIZE}x{SIZE} latents
as {SIZE * SIZE} tokens of one latent pixel each; every layer attends over all of them. Text encoder, VAE, tokenizer and scheduler
are those of `data/tiny-sd`. Safetensors, float16, {size:.1f} MB. Load it with `catome.tiny.load_transformer()`.

**Data.** The scenes of `catome.tiny.scenes`, as for `data/tiny-sd`: {len(CLASSES)} classes, {training["images"]:,} renders, prompted
with "{prompt("{class}")}".

**Recipe.** `{training["command"]}`, on {training["device"]}, torch {training["torch"]}, {training["precision"]}.
The coarse stage reads patches of 2x2 latent pixels; the fine one goes on from there with single pixels. {training["note"]}

| stage | steps | samples seen | minutes |
|---|---|---|---|
{work}

**Measured** with `python -m catome.tiny.evaluate_transformer` ({figures["plms_steps"]} PLMS steps, guidance
{figures["guidance_scale"]}, {figures["samples"]} samples, {figures["date"]}): a held-out classifier names {figures["named_correctly"]:.1%} of the
samples as asked for ({figures["classifier_accuracy_on_held_out_renders"]:.1%} of held-out renders). exp(entropy)/N of the self-attentions,
first to last (1 where attention is spread evenly over all N keys, near 0 where it rests on one): {attention}. PSNR against the unmerged image of the same seed, pairs fresh at each step: {cost}.

| class | samples named correctly |
|---|---|
{by_class}

**Aim.** At least {AIM:.0%} of the samples named correctly. {reached} **Limits.** Those of `data/tiny-sd`, and it is trained less.
""")


def main(argv: list[str] | None = None) -> None:
    parser = evaluation_parser("catome.tiny.evaluate_transformer", __doc__)
    parser.add_argument(
        "--transformer", type=Path, default=None, help="its folder (default: the embedded one)"
    )
    parser.add_argument(
        "--model",
        type=Path,
        default=None,
        help="whose VAE, text encoder and judge (default: the embedded model's)",
    )
    args = parsed(parser, argv)
    folder = find_transformer(args.transformer)
    pipe = load_transformer(folder, device=args.device, model=args.model)
    judge = find_model(args.model) / "judge" / "model.safetensors"
    figures = figures_of(pipe, judge, args.per_class, args.steps, args.guidance)
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    write_card(folder, figures, json.loads((folder / "training.json").read_text()))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
