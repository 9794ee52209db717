"""Is the distilled model good enough to study? ``python -m catome.tiny.evaluate_lcm`` writes its model card.

It is held against the embedded model, which it was distilled from, in as few steps and in many. For the same
seeds and prompts it is measured how many samples a held-out classifier names as asked for, and how far they
are from held-out renders. The figures go to ``figures.json`` beside the weights.
"""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import DPMSolverMultistepScheduler

from catome.tiny.evaluate import (
    HELD_OUT,
    evaluation_parser,
    held_out,
    load_judge,
    parsed,
    render_all,
    sample,
    stage_rows,
    surroundings,
)
from catome.tiny.features import accuracy, scene_fid, scene_statistics
from catome.tiny.lcm import STEPS, TEACHER_STEPS, find_lcm, load_lcm
from catome.tiny.model import find_model, load_pipeline, load_scene_net
from catome.tiny.scenes import CLASSES, prompt

AIM = 0.85
"""The share of samples in `STEPS` steps named correctly that is asked for."""

COUNTS = (2, STEPS, 8)
"""The numbers of steps that are measured."""

GUIDANCE = 1.0
"""None: that of its teacher is in the weights of the distilled model."""


def figures_of(lcm, plain, model: Path, per_class: int, steps: int, guidance: float) -> dict:
    """The figures of the distilled model, and of the embedded one beside it.

    Args:
        lcm: the distilled model's pipeline.
        plain: the embedded model's, with PLMS; it has that again in the end.
        model: folder of the embedded model, with the classifier and the feature extractor.
        per_class: samples of each class.
        steps: of PLMS.
        guidance: scale of the embedded model's.

    Returns:
        A dictionary that JSON can hold: under ``lcm`` and ``dpm`` the figures of each number of steps in
        `COUNTS`, under ``plms`` those of PLMS.
    """
    judge = load_judge(model / "judge" / "model.safetensors")
    net = load_scene_net(model)
    names, seeds, labels, renders = held_out(per_class)
    real = scene_statistics(net, renders)
    # seeds behind those of the other renders
    others = render_all(names, [HELD_OUT + len(names) + i for i in range(len(names))])

    def measured(pipe, count: int, scale: float) -> dict:
        images = sample(pipe, names, seeds, count, scale)
        named = accuracy(judge, images, labels).float().view(-1, per_class).mean(1)
        return {
            "named_correctly": named.mean().item(),
            "named_correctly_by_class": dict(zip(CLASSES, named.tolist(), strict=True)),
            "scene_fid": scene_fid(net, images, real),
        }

    few = {str(count): measured(lcm, count, GUIDANCE) for count in COUNTS}
    many = measured(plain, steps, guidance)
    own = plain.scheduler
    plain.scheduler = DPMSolverMultistepScheduler.from_config(own.config)
    try:
        beside = {str(count): measured(plain, count, guidance) for count in COUNTS}
    finally:
        plain.scheduler = own
    return {
        "guidance_scale": guidance,
        "plms_steps": steps,
        "samples": len(names),
        "lcm": few,
        "dpm": beside,
        "plms": many,
        "classifier_accuracy_on_held_out_renders": accuracy(judge, renders, labels).float().mean().item(),
        "scene_fid_of_other_renders": scene_fid(net, others, real),
    } | surroundings(lcm)


def write_card(folder: Path, figures: dict, training: dict) -> None:
    """The model card, ``README.md`` of the distilled model's folder, from what was measured."""
    rows = "\n".join(
        f"| {count} | {few['named_correctly']:.1%} | {few['scene_fid']:.2f} | "
        f"{figures['dpm'][count]['named_correctly']:.1%} | {figures['dpm'][count]['scene_fid']:.2f} |"
        for count, few in figures["lcm"].items()
    )
    work = stage_rows(training)
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
    own, many = figures["lcm"][str(STEPS)], figures["plms"]
    least = min(own["named_correctly_by_class"].values())
    reached = "It is reached." if own["named_correctly"] >= AIM else "It is not reached."
    (folder / "README.md").write_text(f"""# Model card of the distilled model

A latent consistency model (arXiv 2310.04378) as a LoRA of rank {training["rank"]} (arXiv 2311.05556), which is added to the U-Net of
`data/tiny-sd`. All other parts are those of `data/tiny-sd`. It makes an image in a few steps of diffusers' `LCMScheduler`, without
guidance. Safetensors, float16, {size:.1f} MB. Load it with `catome.tiny.load_lcm()`.

**Data.** The scenes of `catome.tiny.scenes`, as for `data/tiny-sd`: {len(CLASSES)} classes, {training["images"]:,} renders, prompted
with "{prompt("{class}")}".

**Recipe.** `{training["command"]}`, on {training["device"]}, torch {training["torch"]}, {training["precision"]}.
The teacher is `data/tiny-sd` with guidance {training["guidance"]}. It goes from noise to an image by DDIM in {TEACHER_STEPS} steps. The student learns to predict
the same image from both ends of each of these steps.
{training["note"]}

| stage | steps | samples seen | minutes |
|---|---|---|---|
{work}

**Measured** with `python -m catome.tiny.evaluate_lcm` ({figures["samples"]} samples, {figures["date"]}). The distilled model (LCM) has no guidance.
Beside it, `data/tiny-sd` makes images of the same prompts and from the same noise by DPM++ at guidance {figures["guidance_scale"]}. *Named* is the share of
samples that a held-out classifier names as asked for. *FID* is the scene FID to {figures["samples"]} held-out renders, and lower is closer.

| steps | LCM, named | LCM, FID | DPM++, named | DPM++, FID |
|---|---|---|---|---|
{rows}

In {figures["plms_steps"]} steps of PLMS at guidance {figures["guidance_scale"]}, `data/tiny-sd` has {many["named_correctly"]:.1%} named correctly and a FID of {many["scene_fid"]:.2f}. Of the held-out renders
the classifier names {figures["classifier_accuracy_on_held_out_renders"]:.1%}. As many other renders have a FID of {figures["scene_fid_of_other_renders"]:.2f}.

**Aim.** At least {AIM:.0%} of the samples named correctly in {STEPS} steps. {reached} **Limits.** Those of `data/tiny-sd`. The guidance of its teacher cannot be
changed. With other samplers than `LCMScheduler` it was not measured. Of every class at least {least:.0%} of the samples are named correctly in {STEPS} steps.
""")


def main(argv: list[str] | None = None) -> None:
    parser = evaluation_parser("catome.tiny.evaluate_lcm", __doc__)
    parser.add_argument("--lcm", type=Path, default=None, help="its folder (default: the embedded one)")
    parser.add_argument(
        "--model",
        type=Path,
        default=None,
        help="the model that it was distilled from (default: the embedded one)",
    )
    args = parsed(parser, argv)
    folder, model = find_lcm(args.lcm), find_model(args.model)
    lcm = load_lcm(folder, device=args.device, model=model)
    plain = load_pipeline(model, device=args.device)
    figures = figures_of(lcm, plain, model, args.per_class, args.steps, args.guidance)
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    write_card(folder, figures, json.loads((folder / "training.json").read_text()))
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
