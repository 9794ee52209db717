"""The embedded model distilled to few steps: its recipe, its loss, how it loads and what its card says."""

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import catome
from catome import tiny
from catome.tiny import evaluate, evaluate_lcm, train_lcm
from catome.tiny.features import accuracy
from catome.tiny.lcm import STEPS, TEACHER_STEPS, WEIGHTS
from catome.tiny.model import build_scheduler
from catome.tiny.train_lcm import FLAT, LAYERS, distillation_loss
from helpers.paths import ROOT
from helpers.sentences import assert_says

SHIPPED = ROOT / "data" / "tiny-lcm"


# -- the loss, with U-Nets that know the latents of each prompt

TOLD = torch.linspace(-1.0, 1.0, 13).view(13, 1, 1)
"""In place of embeddings: the value of all latents of each prompt, and of no prompt."""
ALPHAS = build_scheduler().alphas_cumprod


def parts_of(t):
    alpha = ALPHAS[t].view(-1, 1, 1, 1)
    return alpha.sqrt(), (1 - alpha).sqrt()


def exact(noisy, t, text):
    """A U-Net that predicts the noise exactly."""
    image, noise = parts_of(t)
    return SimpleNamespace(sample=(noisy - image * text.view(-1, 1, 1, 1)) / noise)


def scaled(factor):
    """A U-Net that predicts so many times the noise."""
    return lambda *given: SimpleNamespace(sample=factor * exact(*given).sample)


def watched(network, calls):
    """A U-Net that notes what it is asked, and whether the answer counts for a gradient."""

    def asked(noisy, t, text):
        calls.append(SimpleNamespace(noisy=noisy, t=t, text=text, learns=torch.is_grad_enabled()))
        return network(noisy, t, text)

    return asked


def loss_of(student, guidance=1.0):
    """The loss over one image for each of the teacher's steps."""
    latents = TOLD[:-1].repeat_interleave(2, 0).unsqueeze(-1).expand(24, 4, 8, 8)
    compute = distillation_loss(exact, student, latents, TOLD, TEACHER_STEPS, guidance)
    return compute(0, torch.Generator().manual_seed(0)).item()


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_student_is_asked_at_both_ends_of_each_step_of_its_guided_teacher(guidance):
    calls = []
    loss_of(watched(exact, calls), guidance)
    before, now = calls
    assert now.t.tolist() == list(range(19, 1000, 20))
    assert before.t.tolist() == [0, *range(19, 980, 20)]
    assert (before.learns, now.learns) == (False, True)
    assert torch.equal(before.text, now.text)
    image, noise = parts_of(now.t)
    drawn = (now.noisy - image * now.text.view(-1, 1, 1, 1)) / noise
    # other latents than those of the prompt would leave their difference in the noise
    assert drawn.mean((1, 2, 3)).abs().max() < 0.35
    # noise is linear in the latents, so guidance leads beyond those of the prompt, away from those of none
    guided = (TOLD[-1] + guidance * (now.text - TOLD[-1])).view(-1, 1, 1, 1)
    drawn = (now.noisy - image * guided) / noise
    image, noise = parts_of(before.t)
    torch.testing.assert_close(before.noisy, image * guided + noise * drawn, atol=1e-4, rtol=1e-4)


def test_a_student_that_is_right_has_no_loss_but_that_of_the_last_step():
    calls = []
    loss = loss_of(watched(exact, calls))
    # there the teacher leaves a little noise, and the student none
    left = calls[0].noisy[0] - calls[1].text[0]
    assert left.abs().max() > 0.01
    expected = ((left.square() + FLAT**2).sqrt() - FLAT).mean().item() / TEACHER_STEPS
    assert loss == pytest.approx(expected, rel=0.02)
    assert loss < 1e-3


def test_the_more_wrong_a_student_is_the_higher_is_its_loss():
    right, nearly, wrong = (loss_of(scaled(factor)) for factor in (1.0, 0.9, 0.0))
    assert 5 * right < nearly
    assert 2 * nearly < wrong


def test_at_the_end_of_the_path_the_image_is_what_was_given():
    """Whatever the U-Net says there, which is at timestep 0, and there alone."""

    def wild_at(at):
        def say(noisy, t, text):
            return SimpleNamespace(sample=exact(noisy, t, text).sample + 100 * (t == at).view(-1, 1, 1, 1))

        return say

    right = loss_of(exact)
    assert loss_of(wild_at(0)) == right
    assert loss_of(wild_at(19)) > 10 * right


# -- the recipe


def distil(folder, steps=2):
    """A folder made by the recipe, of few steps, at a rate by which each of them changes something."""
    arguments = (
        f"--per-class 2 --lora-steps {steps} --lora-batch 2 --precision float32 --rate 2 --device cpu "
        f"--work {folder / 'work'} --out {folder / 'model'}"
    )
    train_lcm.main(arguments.split())
    return folder / "model"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return distil(tmp_path_factory.mktemp("lcm"))


def test_the_recipe_makes_a_lora_that_loads_as_plain_layers(trained, pipe):
    unet = tiny.load_lcm(trained).unet
    kinds = [type(module) for module in unet.modules()]
    assert kinds == [type(module) for module in pipe.unet.modules()]
    assert type(unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q) is torch.nn.Linear
    assert not any(kind.__module__.startswith("peft") for kind in kinds)
    weights, own = unet.state_dict(), pipe.unet.state_dict()
    assert weights.keys() == own.keys()
    endings = tuple(f".{layer}" for layer in LAYERS)
    layers = {f"{name}.weight" for name, _ in pipe.unet.named_modules() if name.endswith(endings)}
    assert {name for name in own if not torch.equal(weights[name], own[name])} == layers
    assert all(torch.equal(weight.half().float(), weight) for weight in weights.values())


def test_the_loaded_pipeline_draws_other_images_than_the_embedded_model(trained):
    lcm, plain = tiny.load_lcm(trained), tiny.load_pipeline()
    plain.scheduler = lcm.scheduler

    def made(pipe):
        generator = torch.Generator().manual_seed(0)
        given = {"num_inference_steps": 2, "guidance_scale": 1, "generator": generator, "output_type": "pt"}
        return pipe(tiny.prompt("desert"), **given).images

    first = made(lcm)
    assert first.shape == (1, 3, 128, 128)
    assert torch.equal(made(lcm), first)
    assert not torch.allclose(made(plain), first, atol=1e-3)


def test_how_it_was_trained_is_kept(trained):
    training = json.loads((trained / "training.json").read_text())
    assert training["stages"]["lora"]["steps"] == 2
    assert training["stages"]["lora"]["samples"] == 4
    assert (training["rank"], training["guidance"], training["images"]) == (16, tiny.GUIDANCE_SCALE, 24)
    assert_says(training["command"], "python -m catome.tiny.train_lcm", "--lora-steps 2")
    assert "--out" not in training["command"]


@pytest.mark.slow
def test_the_recipe_goes_on_where_it_was(trained, tmp_path):
    """Two steps at once are one step, and then another one."""

    def weights(folder):
        # cloned: the file that they lie in is written anew
        return {name: weight.clone() for name, weight in load_file(folder / WEIGHTS).items()}

    once = weights(trained)
    first = weights(distil(tmp_path, 1))
    second = weights(distil(tmp_path, 2))
    assert len(list((tmp_path / "work").glob("lora-*.safetensors"))) == 1
    assert once.keys() == first.keys() == second.keys()
    learnt = [name for name in first if "lora_B" in name]
    assert learnt
    assert not any(torch.equal(first[name], second[name]) for name in learnt)
    assert all(torch.equal(once[name], second[name]) for name in once)


@pytest.mark.parametrize(
    "argument", ["--per-class=0", "--lora-steps=0", "--lora-batch=-1", "--rank=0", "--precision=float64"]
)
def test_the_recipe_refuses_nonsense(argument, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        train_lcm.main([argument, "--work", str(tmp_path / "work")])
    assert caught.value.code == 2
    assert argument.split("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


# -- loading


def test_no_distilled_model_is_said_in_one_sentence(tmp_path):
    for look in (tiny.find_lcm, tiny.load_lcm):
        with pytest.raises(FileNotFoundError) as caught:
            look(tmp_path)
        said = str(caught.value)
        assert_says(
            said, str(tmp_path), "no embedded distilled model", f"{WEIGHTS} is missing", "data/tiny-lcm"
        )
    (tmp_path / WEIGHTS).write_bytes(b"no weights")
    assert tiny.find_lcm(tmp_path) == tmp_path
    with pytest.raises(OSError, match=WEIGHTS) as caught:
        tiny.load_lcm(tmp_path)
    assert not isinstance(caught.value, FileNotFoundError)


def test_without_peft_it_says_what_to_install(trained, monkeypatch):
    monkeypatch.setattr("diffusers.utils.USE_PEFT_BACKEND", False)
    with pytest.raises(ImportError, match="pip install peft"):
        tiny.load_lcm(trained)


# -- the evaluation and the card


def test_it_is_judged_beside_the_model_that_it_was_distilled_from(tmp_path, trained, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(tiny.find_model(), other)
    seen = []
    for name in ("load_lcm", "load_pipeline"):
        monkeypatch.setattr(evaluate_lcm, name, lambda *args, **given: seen.append((args, given)))
    monkeypatch.setattr(evaluate_lcm, "figures_of", lambda *args: seen.append(args) or sys.exit(0))
    given = f"--lcm {trained} --model {other} --per-class 3 --steps 7 --device cpu"
    with pytest.raises(SystemExit):
        evaluate_lcm.main(given.split())
    assert seen[0] == ((trained,), {"device": "cpu", "model": other})
    assert seen[1] == ((other,), {"device": "cpu"})
    assert seen[2] == (None, None, other, 3, 7, tiny.GUIDANCE_SCALE)


@pytest.mark.parametrize("argument", ["--per-class=0", "--steps=0", "--guidance=nan", "--lcm-steps=4"])
def test_the_evaluation_refuses_nonsense(argument, trained, capsys):
    with pytest.raises(SystemExit) as caught:
        evaluate_lcm.main([argument, "--lcm", str(trained)])
    assert caught.value.code == 2
    assert argument.split("=")[0] in capsys.readouterr().err


def test_each_model_has_its_own_sampler_and_guidance(monkeypatch):
    """Held-out renders take the place of samples, but the LCM's are black in two steps."""
    names, seeds, _, renders = evaluate.held_out(2)
    own = build_scheduler()
    lcm = SimpleNamespace(scheduler=SimpleNamespace(), device=torch.device("cpu"))
    plain = SimpleNamespace(scheduler=own, device=torch.device("cpu"))
    seen = []

    def drawn(pipe, asked, noise, steps, guidance):
        assert (asked, noise) == (names, seeds)
        seen.append((pipe is lcm, type(pipe.scheduler).__name__, steps, guidance))
        return renders * (0 if pipe is lcm and steps == 2 else 1)

    monkeypatch.setattr(evaluate_lcm, "sample", drawn)
    figures = evaluate_lcm.figures_of(lcm, plain, tiny.find_model(), 2, 50, 7.5)
    solver = "DPMSolverMultistepScheduler"
    assert seen == [
        *((True, "SimpleNamespace", steps, 1.0) for steps in (2, 4, 8)),
        (False, "PNDMScheduler", 50, 7.5),
        *((False, solver, steps, 7.5) for steps in (2, 4, 8)),
    ]
    assert plain.scheduler is own
    assert (figures["samples"], figures["plms_steps"], figures["guidance_scale"]) == (24, 50, 7.5)
    of_renders, others = (
        figures[name] for name in ("classifier_accuracy_on_held_out_renders", "scene_fid_of_other_renders")
    )
    assert of_renders > 0.9
    for same in (figures["lcm"]["4"], figures["lcm"]["8"], *figures["dpm"].values(), figures["plms"]):
        assert same["named_correctly"] == pytest.approx(of_renders)
        assert abs(same["scene_fid"]) < 0.01 * others
    black = figures["lcm"]["2"]
    assert black["named_correctly"] == pytest.approx(1 / 12)
    assert sorted(black["named_correctly_by_class"].values()) == [0] * 11 + [1]
    assert 0 < others < black["scene_fid"]
    assert json.loads(json.dumps(figures)) == figures


def made_up(named=0.9, least=0.5):
    """Figures in which every number is another one."""
    by_class = dict.fromkeys(tiny.CLASSES, 0.95) | {tiny.CLASSES[3]: least}

    def row(named, fid):
        return {"named_correctly": named, "scene_fid": fid, "named_correctly_by_class": by_class}

    return {
        "guidance_scale": 6.5,
        "plms_steps": 49,
        "samples": 36,
        "lcm": {"2": row(0.11, 1.25), "4": row(named, 2.25), "8": row(0.33, 3.25)},
        "dpm": {"2": row(0.44, 4.25), "4": row(0.55, 5.25), "8": row(0.66, 6.25)},
        "plms": row(0.77, 7.25),
        "classifier_accuracy_on_held_out_renders": 0.88,
        "scene_fid_of_other_renders": 8.25,
        "date": "2026-12-01",
    }


def test_the_card_says_what_was_measured(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "model")
    training = json.loads((trained / "training.json").read_text()) | {"rank": 5, "note": "A NOTE."}
    training["stages"]["lora"]["seconds"] = 180

    def card(figures):
        evaluate_lcm.write_card(tmp_path / "model", figures, training)
        return (tmp_path / "model" / "README.md").read_text()

    said = card(made_up())
    assert_says(said, "# Model card of the distilled model", "rank 5", "`catome.tiny.load_lcm()`")
    assert_says(said, f"`{training['command']}`", "A NOTE.", "| lora | 2 | 4 | 3 |")
    assert "| 2 | 11.0% | 1.25 | 44.0% | 4.25 |\n| 4 | 90.0% | 2.25 | 55.0% | 5.25 |\n" in said
    assert "| 8 | 33.0% | 3.25 | 66.0% | 6.25 |\n" in said
    assert_says(said, "36 samples", "at guidance 6.5", "36 held-out renders")
    assert_says(said, "49 steps of PLMS", "77.0%", "7.25", "88.0%", "8.25")
    assert_says(
        said, "At least 85% of the samples", "in 4 steps. It is reached.", "Of every class at least 50%"
    )
    assert "It is reached." in card(made_up(named=0.85))
    assert_says(card(made_up(named=0.84)), "in 4 steps. It is not reached.")


def test_the_shipped_card_is_what_would_be_written(tmp_path):
    model = shutil.copytree(SHIPPED, tmp_path / "model")
    figures, training = (json.loads((model / name).read_text()) for name in ("figures.json", "training.json"))
    assert figures["samples"] >= 240
    evaluate_lcm.write_card(model, figures, training)
    assert (model / "README.md").read_text() == (SHIPPED / "README.md").read_text()
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".safetensors", ".json", ".md"}
    assert sum(file.stat().st_size for file in files) <= 3e6


@pytest.mark.slow
def test_the_evaluation_from_end_to_end(trained, tmp_path, monkeypatch):
    """Of one sample of each class, in few steps."""
    model = shutil.copytree(trained, tmp_path / "model")
    monkeypatch.setattr(evaluate_lcm, "COUNTS", (STEPS,))
    evaluate_lcm.main(["--lcm", str(model), "--per-class", "1", "--steps", "1", "--device", "cpu"])
    figures = json.loads((model / "figures.json").read_text())
    assert figures["samples"] == 12
    assert list(figures["lcm"]) == list(figures["dpm"]) == [str(STEPS)]
    row = f"| {STEPS} | {figures['lcm'][str(STEPS)]['named_correctly']:.1%} |"
    assert row in (model / "README.md").read_text()


# -- the shipped model


@pytest.fixture(scope="module")
def lcm():
    return tiny.load_lcm()


def test_by_default_the_shipped_one_is_loaded(lcm):
    assert tiny.find_lcm() == SHIPPED
    assert type(lcm).__name__ == "StableDiffusionPipeline"
    assert type(lcm.scheduler).__name__ == "LCMScheduler"
    assert lcm.scheduler.config.original_inference_steps == TEACHER_STEPS


@pytest.mark.slow
def test_it_draws_what_was_asked_for_in_four_steps(lcm):
    """Two samples of each class; the card has more."""
    names, seeds, labels, _ = evaluate.held_out(2)
    images = evaluate.sample(lcm, names, seeds, STEPS, evaluate_lcm.GUIDANCE)
    judge = evaluate.load_judge(tiny.find_model() / "judge" / "model.safetensors")
    assert accuracy(judge, images, labels).float().mean() >= evaluate_lcm.AIM


def test_it_is_the_same_in_every_precision(lcm):
    """Its weights are rounded to half precision once, whatever it computes in."""
    double = tiny.load_lcm(dtype=torch.float64).unet.state_dict()
    assert all(torch.equal(weight.double(), double[name]) for name, weight in lcm.unet.state_dict().items())


def test_merging_changes_it_and_leaves_no_trace(lcm):
    def made():
        generator = torch.Generator().manual_seed(0)
        given = {"num_inference_steps": 2, "guidance_scale": 1, "generator": generator, "output_type": "pt"}
        return lcm(tiny.prompt("volcano"), **given).images

    plain = made()
    with catome.patched(lcm, catome.RECOMMENDED, threshold=0.5):
        assert not torch.equal(made(), plain)
    assert torch.equal(made(), plain)
