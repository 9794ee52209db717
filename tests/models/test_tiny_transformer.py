"""The embedded diffusion transformer: its parts, its recipe, and that catome and the studies take it as it
is."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import catome
from catome import study, tiny
from catome.study.run.denoiser import denoiser, topmost_blocks, topmost_downsample, transformer_blocks
from catome.study.run.store import fingerprint
from catome.tiny import evaluate_transformer, train_transformer
from catome.tiny.transformer import LAYERS, build_transformer, refine


@pytest.fixture(scope="module")
def coarse():
    torch.manual_seed(0)
    return build_transformer(2).eval()


def test_a_latent_pixel_is_embedded_as_a_patch_of_four_equal_ones(coarse):
    fine = refine(coarse).eval()
    few = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    many = few.repeat_interleave(2, 2).repeat_interleave(2, 3)
    of_patches = coarse.pos_embed.proj(many)
    of_pixels = fine.pos_embed.proj(many)
    torch.testing.assert_close(of_pixels[:, :, ::2, ::2], of_patches, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(of_pixels[:, :, 1::2, 1::2], of_patches, atol=1e-5, rtol=1e-5)


def test_the_finer_transformer_begins_with_the_mean_of_a_patch(coarse):
    fine = refine(coarse).eval()
    hidden = torch.randn(1, 3, coarse.proj_out.in_features, generator=torch.Generator().manual_seed(2))
    of_patch = coarse.proj_out(hidden).view(1, 3, 2, 2, 4)  # as the model puts it back: row, column, channel
    torch.testing.assert_close(fine.proj_out(hidden), of_patch.mean((2, 3)))


def test_positions_are_counted_alike_in_both_sizes(coarse):
    fine = refine(coarse)
    of_patches = coarse.pos_embed.pos_embed.view(16, 16, -1)
    of_pixels = fine.pos_embed.pos_embed.view(32, 32, -1)
    torch.testing.assert_close(of_pixels[::2, ::2], of_patches)
    assert not torch.equal(of_pixels[0, 0], of_pixels[0, 1])


def test_what_lies_between_the_two_layers_is_taken_over(coarse):
    fine = refine(coarse).state_dict()
    own = {"pos_embed.proj.weight", "proj_out.weight", "proj_out.bias"}
    for name, weight in coarse.state_dict().items():
        assert name in own or torch.equal(weight, fine[name]), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder made by the recipe, of a step or two each."""
    folder = tmp_path_factory.mktemp("transformer")
    arguments = "--per-class 2 --coarse-steps 2 --coarse-batch 2 --fine-steps 1 --fine-batch 2 --device cpu"
    train_transformer.main(
        ["--work", str(folder / "work"), "--out", str(folder / "model"), *arguments.split()]
    )
    return folder / "model"


def test_the_recipe_makes_a_transformer_that_loads(trained):
    pipe = tiny.load_transformer(trained)
    assert pipe(tiny.prompt("desert"), num_inference_steps=1, output_type="np").images.shape == (
        1,
        128,
        128,
        3,
    )
    stages = json.loads((trained / "training.json").read_text())["stages"]
    assert [stages[name]["samples"] for name in ("coarse", "fine")] == [4, 2]


def test_the_recipe_goes_on_where_it_was(tmp_path):
    """Two steps at once are one step, and then another one."""

    def weights(name, *runs):
        for steps in runs:
            arguments = (
                f"--per-class 2 --coarse-steps 2 --coarse-batch 2 --fine-steps {steps} --fine-batch 2 "
                "--device cpu"
            )
            arguments += f" --precision float32 --work {tmp_path / name} --out {tmp_path / name / 'model'}"
            train_transformer.main(arguments.split())
        return tiny.load_transformer(tmp_path / name / "model").transformer.state_dict()

    once = weights("once", 2)
    again = weights("again", 1, 2)
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_a_training_from_other_beginnings_goes_on_from_no_state_of_this_one(tmp_path, monkeypatch):
    """Whatever a stage begins with is in the name of its state: weights, latents, and texts."""
    args = train_transformer.parse(
        ["--coarse-steps", "1", "--coarse-batch", "1", "--device", "cpu", "--work", str(tmp_path)]
    )
    latents, told = torch.zeros(1, 4, 32, 32), (torch.zeros(13, 16, 64), torch.ones(13, 16))
    states = []
    monkeypatch.setattr(
        train_transformer, "Trainer", lambda network, state, *rest, **more: states.append(state) or Trained()
    )

    def begin(seed=0, latents=latents, told=told):
        torch.manual_seed(seed)
        train_transformer.train_stage("coarse", args, build_transformer(2), latents, told)
        return states[-1]

    first = begin()
    assert begin() == first
    assert len({first, begin(seed=1), begin(latents=latents + 1), begin(told=(told[0] + 1, told[1]))}) == 4


class Trained:
    """A trainer that has nothing left to do."""

    step, best = 1, torch.nn.Identity()


def test_a_transformer_is_judged_with_the_parts_it_was_trained_with(tmp_path, trained, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(tiny.find_model(), other)
    seen = []
    own = evaluate_transformer.load_transformer
    monkeypatch.setattr(
        evaluate_transformer,
        "load_transformer",
        lambda *args, **given: seen.append(given) or own(*args, **given),
    )
    monkeypatch.setattr(
        evaluate_transformer, "figures_of", lambda pipe, judge, *rest: seen.append(judge) or sys.exit(0)
    )
    with pytest.raises(SystemExit):
        evaluate_transformer.main(["--transformer", str(trained), "--model", str(other)])
    assert seen[0]["model"] == other
    assert seen[1] == other / "judge" / "model.safetensors"


@pytest.mark.parametrize(
    "argument", ["--per-class=0", "--coarse-steps=0", "--fine-batch=-1", "--precision=float64"]
)
def test_the_recipe_refuses_nonsense(argument, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        train_transformer.main([argument, "--work", str(tmp_path / "work")])
    assert caught.value.code == 2
    assert argument.split("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_no_transformer_is_said_in_one_sentence(tmp_path, trained):
    with pytest.raises(FileNotFoundError, match=r"no embedded transformer.*config\.json is missing"):
        tiny.load_transformer(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((trained / "config.json").read_text())
    (broken / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(OSError, match="must be the folder of the whole embedded transformer"):
        tiny.load_transformer(broken)


def test_missing_weights_are_said(tmp_path, trained):
    (tmp_path / "config.json").write_text((trained / "config.json").read_text())
    weights = load_file(trained / "diffusion_pytorch_model.safetensors")
    weights.pop("proj_out.weight")
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(OSError, match=r"the whole embedded transformer.* weights are missing"):
        tiny.load_transformer(tmp_path)


@pytest.fixture(scope="module")
def transformer():
    return tiny.load_transformer()


def test_guidance_is_not_rescaled(transformer):
    with pytest.raises(ValueError, match=r"guidance_rescale=0.5 must be 0"):
        transformer(tiny.prompt("desert"), guidance_rescale=0.5)


def test_the_studies_see_a_denoising_model_with_blocks(transformer):
    model = denoiser(transformer)
    assert model is transformer.transformer
    assert len(transformer_blocks(model)) == LAYERS
    assert list(topmost_blocks(model)) == list(transformer_blocks(model))
    assert topmost_downsample(model) == 1


def test_the_studies_load_it_by_its_name(transformer, tmp_path):
    setting = study.Setting(model="tiny-pixart", images=2, steps=1, output=str(tmp_path))
    loaded = study.load(setting)
    assert fingerprint(loaded) == fingerprint(transformer)
    assert study.generate(loaded, setting).shape == (2, 128, 128, 3)


def test_a_saved_pipeline_is_loaded_as_a_model_from_the_hub_would_be(transformer, tmp_path):
    transformer.save_pretrained(tmp_path / "saved")
    loaded = study.load(study.Setting(model=str(tmp_path / "saved"), output=str(tmp_path / "out")))
    for name, weight in transformer.transformer.state_dict().items():
        assert torch.equal(weight, loaded.transformer.state_dict()[name])
    one = study.Setting(
        model=str(tmp_path / "saved"), classes=["desert"], images=1, steps=1, output=str(tmp_path / "out")
    )
    again = study.Setting(model="tiny-pixart", images=1, steps=1, output=str(tmp_path / "out"))
    assert (study.generate(loaded, one) == study.generate(transformer, again)).all()


def test_its_name_tells_its_weights(transformer):
    name = fingerprint(transformer)
    weight = next(transformer.transformer.parameters())
    with torch.no_grad():
        before = weight.clone()
        weight.add_(1)
        assert fingerprint(transformer) != name
        weight.copy_(before)
    assert fingerprint(transformer) == name


def test_steps_are_told_as_they_are_done(transformer):
    seen = []

    def done(pipe, step, timestep, tensors):
        seen.append(step)

    transformer(tiny.prompt("desert"), num_inference_steps=3, output_type="latent", callback_on_step_end=done)
    assert seen == [0, 1, 2, 3]  # PLMS calls the model once more


def test_merging_changes_it_and_leaves_no_trace(transformer):
    def made():
        generator = torch.Generator().manual_seed(0)
        return transformer(
            tiny.prompt("volcano"), num_inference_steps=2, generator=generator, output_type="pt"
        ).images

    plain = made()
    with catome.patched(transformer, catome.RECOMMENDED, threshold=0.5):
        assert not torch.equal(made(), plain)
    assert torch.equal(made(), plain)


def test_the_probe_sees_every_layer_and_changes_nothing(transformer):
    def made():
        generator = torch.Generator().manual_seed(0)
        return transformer(
            tiny.prompt("volcano"), num_inference_steps=2, generator=generator, output_type="pt"
        ).images

    plain = made()
    inputs = []
    first = transformer.transformer.transformer_blocks[0]
    handle = first.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    with catome.probe(transformer, keep_tokens=True) as record:
        watched = made()
    handle.remove()
    assert torch.equal(watched, plain)
    assert record.blocks() == [f"transformer_blocks.{i}" for i in range(LAYERS)]
    assert len(record.steps()) == 3
    seen = record.at(1, 0)
    assert seen.matches.grid == (32, 32)
    assert torch.equal(seen.tokens, inputs[1])
    assert record.similarity().shape == (3, LAYERS, 2, 768)
