"""Similarity, drift and the frontier on a transformer beside a U-Net."""

import json
import re
import types

import numpy as np
import pandas as pd
import pytest
import torch

import catome
from catome import study, tiny
from catome.study import __main__ as command
from catome.study import methods
from catome.study.measure import quality
from catome.study.measure.comparison import QUALITY
from catome.study.measure.similarity import shares_above, short_name, variance_of_share
from catome.study.run.denoiser import topmost_blocks
from catome.study.run.generate import generate_batch
from catome.study.run.store import RECORDED, Store, fingerprint
from catome.study.studies import STUDIES, curves, transformer
from catome.study.studies import jobs as counting
from catome.study.studies.compose import HELD_OUT
from catome.study.studies.transformer import BOTH, KINDS, TRANSFORMER, UNET, Parameters
from helpers.paths import ROOT
from helpers.sentences import assert_says

GIVEN = dict(
    images=2,
    batch_size=2,
    steps=3,
    curve_images=1,
    curve_kinds=["ToDo", "fewer steps"],
    noises=(0.01,),
    gentle=(0.9,),
)


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    return Parameters(**GIVEN, output=str(tmp_path_factory.mktemp("transformer")))


@pytest.fixture(scope="module")
def found(params):
    return transformer.run(params, study.load(params), recorded=None)


def test_a_transformer_generates_by_each_kind(tmp_path):
    assert len(KINDS) == 8
    pipe = tiny.load_transformer()
    asked = Parameters(images=1, batch_size=1, steps=10, output=str(tmp_path))
    plain = generate_batch(pipe, asked, range(1))
    for kind in KINDS:
        method = list(curves.kinds(10)[kind].values())[-1]
        with method.applied(pipe):
            image = generate_batch(pipe, asked, range(1))
        assert 5 < quality.psnr(quality.to_uint8(image), quality.to_uint8(plain))[0] < 60, kind


def test_a_kind_that_needs_a_unet_is_refused():
    with pytest.raises(ValueError, match=r"curve_kinds=.*there is no 'DeepCache'"):
        Parameters(curve_kinds=["DeepCache"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": "tiny"}, "model='tiny' must have a transformer: 'tiny-pixart'"),
        ({"model": str(ROOT / "data/tiny-sd")}, "must have a transformer"),
        ({"model": str(ROOT)}, "must have a transformer"),
        ({"beside": "tiny-pixart"}, "beside='tiny-pixart' must have a U-Net: 'tiny'"),
    ],
)
def test_a_model_of_the_other_kind_is_refused(given, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        Parameters(**given)


def test_what_the_other_model_cannot_have_is_said_before_anything_is_loaded(tmp_path):
    tiny.load_transformer().save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match=r"classes=\['tabby cat'\].* has no 'tabby cat'"):
        Parameters.checked({"model": str(tmp_path / "own"), "classes": ["tabby cat"]})


@pytest.mark.parametrize("name", ["headline", "short", "compose", "curves", "distilled"])
def test_studies_with_methods_for_unets_refuse_a_transformer(name, tmp_path, capsys):
    given = [name, "--model", "tiny-pixart", "--images", "1", "--steps", "2", "--output", str(tmp_path)]
    assert command.main(given) == 2
    assert "model='tiny-pixart' must have a U-Net" in capsys.readouterr().err
    module = STUDIES[name]
    with pytest.raises(ValueError, match="must have a U-Net"):
        module.run(
            module.Parameters(model="tiny-pixart", images=1, output=str(tmp_path)), tiny.load_transformer()
        )


def test_a_transformers_guidance_is_not_rescaled():
    with pytest.raises(ValueError, match=r"guidance_rescale=1\.0 must be 0 with a transformer"):
        study.load(Parameters(guidance_rescale=1.0))


def test_both_models_make_the_same_images_by_the_same_methods(params):
    knobs = [params.knobs(setting) for setting in (params, params.of_unet)]
    assert [of.model for of in knobs] == ["tiny-pixart", "tiny"]
    assert {of.seed for of in knobs} == {curves.Parameters().seed}
    assert {of.images for of in knobs} == {1}
    assert [list(of.kinds) for of in knobs] == [["ToDo", "fewer steps"]] * 2
    assert params.knobs(params).recompute is False
    assert Parameters(**GIVEN, recompute=True).knobs(params).recompute is True


def test_fewer_images_are_timed_than_are_judged():
    many = Parameters(timed_images=3)
    knobs = many.knobs(many.of_unet)
    assert (knobs.images, knobs.timed.images) == (12, 3)


def test_what_there_is_to_generate_is_counted_for_both(params):
    table = counting.table(transformer.jobs(params))
    held_against = [method.label for method in transformer.controls(params).values()]
    alone = [method.label for method in transformer.one_by_one(params, 6).values()]
    labels = [method.label for some in params.knobs(params).kinds.values() for method in some.values()]
    of_both = 2 * ["unmerged, watched", "unmerged, watched", "unmerged", *labels, "unmerged", *held_against]
    assert sorted(table["method"]) == sorted([*of_both, *alone, *alone[:5]])
    assert table.groupby("phase")["images"].nunique().eq(1).all()  # pieces of a phase are of as many images
    assert sorted(table["phase"].unique()) == [*range(1, 9)]


def test_layers_have_short_names(found):
    assert short_name("transformer_blocks.4") == "layer 4"
    assert found.models[TRANSFORMER].seen.blocks == [f"layer {i}" for i in range(6)]
    assert found.models[UNET].seen.blocks[0] == "down 0"


def test_shares_fall_as_the_threshold_rises(found):
    table = found.shares()
    assert list(table.index) == ["t = 0.95", "t = 0.9", "t = 0.8", "t = 0.7"]
    assert list(table.columns) == list(BOTH)
    for name in BOTH:
        means = [float(cell.split("%")[0]) for cell in table[name]]
        assert means == sorted(means)
        assert means[0] < means[-1]
        of = found.models[name]
        exact = (of.seen.best >= 0.95).mean() * of.seen.best.shape[-1] / of.seen.tokens
        assert table.loc["t = 0.95", name].startswith(f"{exact:.0%} (")


def test_distances_are_those_of_the_drift(found):
    for name in BOTH:
        drift = found.models[name].drift
        matrix = drift.staleness("r = 0.5")
        assert drift.by_lag("r = 0.5")[1] == pytest.approx(
            np.mean([matrix[i, i + 1] for i in range(len(matrix) - 1)])
        )
        assert found.ages().loc[name, "1 step apart"] == f"{drift.by_lag('r = 0.5')[1]:.2f}"
        assert found.lags()[name].shape == (2, 3)
    assert list(found.ages().columns) == ["1 step apart", "2 steps apart"]


@torch.no_grad()
def test_noise_has_the_size_asked_for_and_does_not_depend_on_the_batch(pipe):
    rng = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 4, 32, 32, generator=rng), torch.randn(2, 16, 64, generator=rng)
    latents[1] *= 0.2  # so that the two rows have noise of different scales

    def called(timestep, rows=slice(None)):
        return pipe.unet(latents[rows], timestep, encoder_hidden_states=text[rows]).sample

    plain = called(500)
    with methods.noise(0.1).applied(pipe):
        noisy, again, later = called(500), called(500), called(20)
        alone, second = called(500, slice(1)), called(500, slice(1, 2))
        in_words = pipe.unet(
            sample=latents, timestep=torch.tensor(500), encoder_hidden_states=text, return_dict=False
        )[0]
    added = noisy - plain
    ratios = added.flatten(1).std(1) / plain.flatten(1).std(1)
    assert ratios.tolist() == pytest.approx([0.1, 0.1], rel=0.05)
    torch.testing.assert_close(noisy, again)
    torch.testing.assert_close(noisy, in_words)
    torch.testing.assert_close(noisy[:1], alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(noisy[1:], second, atol=1e-4, rtol=1e-4)  # each row has a scale of its own
    torch.testing.assert_close(called(500), plain)
    other = later - called(20)
    assert abs(torch.corrcoef(torch.stack([added.flatten(), other.flatten()]))[0, 1]) < 0.1


def test_each_layer_is_merged_alone(found):
    tables = found.layers()
    assert list(tables[TRANSFORMER].index) == [f"layer {i}" for i in range(6)]
    assert len(tables[UNET]) == 5
    for name in BOTH:
        made = found.models[name].controls
        for layer, said in enumerate(tables[name]["PSNR (dB), merged in this layer alone"]):
            psnr = made.of(f"keys in one layer(layer={layer}, ratio=0.5)")["psnr"].mean()
            assert said.startswith(f"{psnr:.1f} [")
            assert psnr < 80
    spread = json.loads((ROOT / "data/tiny-pixart/figures.json").read_text())["attention_exp_entropy_over_n"]
    assert tables[TRANSFORMER]["exp(entropy)/N of its attention"].tolist() == [
        f"{value:.2f}" for value in spread
    ]
    assert transformer.selectivity("somebody/something") is None


def test_layers_that_are_merged_alone_are_evenly_spaced():
    assert list(transformer.one_by_one(Parameters(single_layers=6), 6)) == [0, 1, 2, 3, 4, 5]
    assert list(transformer.one_by_one(Parameters(single_layers=6), 5)) == [0, 1, 2, 3, 4]
    assert list(transformer.one_by_one(Parameters(single_layers=4), 28)) == [0, 9, 18, 27]
    assert list(transformer.one_by_one(Parameters(single_layers=1), 28)) == [0]


class Made:
    """Rows of a comparison: the PSNR of each method's images."""

    def __init__(self, psnr: dict):
        self.psnr = psnr

    def of(self, method):
        return pd.DataFrame({"psnr": np.atleast_1d(self.psnr[method.label]).astype(float)})

    def share_of_image(self, method):
        return 0.5, 0.25


def with_controls(own: dict, other: dict, **given) -> transformer.Result:
    models = {
        name: transformer.OfModel(
            None,
            types.SimpleNamespace(blocks=[f"layer {i}" for i in range(layers)]),
            None,
            None,
            Made(psnr),
        )
        for name, psnr, layers in zip(BOTH, (own, other), (6, 5), strict=True)
    }
    return transformer.Result(Parameters(**GIVEN | given), models)


@pytest.mark.parametrize(
    ("own", "other", "says"),
    [
        # in the order of their selectivity, as far as the cards have one: exactly, and not at all
        ([45, 31, 32, 33, 41, 46], [48, 49, 52, 47, 51], ("is 1.00 over the transformer's 6", "p = 0.003")),
        ([45, 31, 32, 33, 41, 46], [48, 49, 52, 47, 51], ("stays", "on the transformer", "fewer tokens")),
        ([46, 33, 32, 31, 41, 45], [48, 49, 52, 47, 51], ("5 layers", "neither is", "so few layers")),
        ([31, 46, 45, 44, 33, 30], [48, 49, 52, 47, 51], ("is -1.00", "stays", "more tokens lose more")),
    ],
)
def test_selective_layers_are_held_against_what_they_lose(own, other, says):
    of_own, of_other = (
        {f"keys in one layer(layer={layer}, ratio=0.5)": value for layer, value in enumerate(psnr)}
        for psnr in (own, other)
    )
    assert_says(with_controls(of_own, of_other).by_selectivity(), *says)
    assert "not known" in with_controls(of_own, of_other, single_layers=2).by_selectivity()


def test_how_selective_layers_are_is_said_of_embedded_models():
    found = with_controls({}, {})
    assert found.spread_of_layers(TRANSFORMER) == "0.59, 0.11, 0.11, 0.11, 0.37 and 0.59"
    assert found.spread_of_layers(UNET).startswith("0.68, 0.57, ")
    other = transformer.Result(types.SimpleNamespace(model="somebody/something", beside="tiny"), {})
    assert other.spread_of_layers(TRANSFORMER) == "not known here"


SPREAD = np.linspace(-1, 1, 12)


@pytest.mark.parametrize(
    ("noise", "merging", "says"),
    [
        # PSNR (dB) on the transformer; on the U-Net both controls leave 50
        (49 + 5 * SPREAD, 30 + SPREAD, ("+1.0 [-", "+20.0 [+", "25% of the tokens", "is 5% of", "at most")),
        (
            49 + 5 * SPREAD,
            30 + SPREAD,
            ("interval of -", "accounts for at most", "and not detectably for any"),
        ),
        (40 + SPREAD, 30 + SPREAD, ("is 50% of", "to 5", "at most", "for at least 4")),
        (15 + SPREAD, 30 + SPREAD, ("is 175% of", "accounts for all of the loss")),
        (31 + 9 * SPREAD, 30 + SPREAD, ("at least", "perhaps for all")),
        (40 + 60 * SPREAD, 30 + SPREAD, ("may account for none of the loss, or for all",)),
        (49 + SPREAD, 50 + 9 * SPREAD, ("not shown that merging costs more",)),
        (49 + SPREAD, np.full(12, np.inf), ("cannot be compared",)),
    ],
)
def test_noise_tells_the_model_from_the_merging(noise, merging, says):
    names = ("noise(share=0.01)", transformer.controls(Parameters(**GIVEN))["merged keys, t = 0.9"].label)
    own = dict(zip(names, (noise, merging), strict=True))
    result = with_controls(own, dict.fromkeys(names, np.full(12, 50.0)))
    assert_says(result.sensitivity(), "noise of 1.0% leaves 50.0 dB", "merged keys, t = 0.9", *says)
    assert result.sensitivity().endswith(f" {result.accounts()}")
    assert_says(result.accounts(), says[-1])


def test_the_controls_that_change_the_unets_images_alike_are_compared():
    given = Parameters(**GIVEN | {"noises": (0.01, 0.03), "gentle": (0.9, 0.95)})
    labels = [method.label for method in transformer.controls(given).values()]
    psnr = dict(zip(labels, (60.0, 50.0, 45.0, 51.0), strict=True))
    found = with_controls(psnr, psnr, noises=(0.01, 0.03), gentle=(0.9, 0.95))
    assert found._alike() == ("noise of 3.0%", "merged keys, t = 0.95")
    # controls that change nothing are not alike
    psnr = dict(zip(labels, (np.inf, 50.0, np.inf, 53.0), strict=True))
    unlike = with_controls(psnr, psnr, noises=(0.01, 0.03), gentle=(0.9, 0.95))
    assert unlike._alike() == ("noise of 3.0%", "merged keys, t = 0.95")


@pytest.mark.parametrize("merging", [51.1, 48.9, np.inf])
def test_controls_that_are_not_alike_are_not_compared(merging):
    names = ("noise(share=0.01)", transformer.controls(Parameters(**GIVEN))["merged keys, t = 0.9"].label)
    own = dict.fromkeys(names, np.full(12, 40.0))
    result = with_controls(own, dict(zip(names, (50.0, merging), strict=True)))
    said = result.sensitivity()
    assert said == result.accounts()
    assert_says(said, "No control by noise and none by merging", "alike", "1 dB", "nothing is said")
    assert "gap by noise" not in said


@torch.no_grad()
def test_keys_are_merged_in_the_layer_that_is_named_and_in_no_other(pipe):
    rng = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 32, 32, generator=rng), torch.randn(1, 16, 64, generator=rng)
    blocks = list(topmost_blocks(pipe.unet).values())
    seen = []
    handles = [
        block.attn1.register_forward_hook(lambda module, args, out: seen.append(out)) for block in blocks
    ]

    def outputs():
        seen.clear()
        pipe.unet(latents, 500, encoder_hidden_states=text)
        return list(seen)

    plain = outputs()
    with methods.keys_in_layer(2).applied(pipe):
        merged = outputs()
    again = outputs()
    for handle in handles:
        handle.remove()
    assert [torch.equal(a, b) for a, b in zip(plain, merged, strict=True)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_controls_stand_beside_the_methods(found):
    table = found.held_against()
    assert list(table.index) == ["noise of 1.0%", "merged keys, t = 0.9"]
    assert list(table.columns) == [(name, what) for name in BOTH for what in ("PSNR (dB)", "merged")]
    for name in BOTH:
        made = found.models[name].controls
        psnr = made.of("noise(share=0.01)")["psnr"].mean()
        assert table.loc["noise of 1.0%", (name, "PSNR (dB)")].startswith(f"{psnr:.1f} [")
        assert table.loc["noise of 1.0%", (name, "merged")] == ""
        assert 0 < float(table.loc["merged keys, t = 0.9", (name, "merged")]) < 0.75


def test_variance_is_named_by_model(found):
    table = found.variance()
    assert list(table.columns) == [(name, part) for name in BOTH for part in ("step", "image")]
    for name in BOTH:
        exact = variance_of_share(shares_above(found.models[name].seen, [0.9])).loc[0.9]
        assert table.loc["t = 0.9", name].tolist() == [f"{exact[part]:.0%}" for part in ("step", "image")]


def drifting(own: float, other: float) -> transformer.Result:
    """A result of twelve images of three classes whose pairs move so much from step to step, give or take
    0.02, in two layers."""

    def of(distance, seed):
        scatter = np.random.default_rng(seed).permutation(np.linspace(-0.02, 0.02, 12))
        rows = pd.DataFrame(
            [
                {"image": image, "class": f"class {image % 3}", "by_lag": np.full(4, distance + by)}
                for image, by in enumerate(scatter)
                for _ in range(2)
            ]
        )
        return transformer.OfModel(None, None, transformer.Drift(rows, rows, 5, {}), None, None)

    return transformer.Result(Parameters(**GIVEN), {TRANSFORMER: of(own, 0), UNET: of(other, 1)})


@pytest.mark.parametrize(
    ("own", "other", "said"),
    [
        (0.1, 0.3, "for longer on the transformer"),
        (0.3, 0.1, "for longer on the U-Net"),
        (0.2, 0.201, "not shown that pairs can be reused for longer"),
    ],
)
def test_the_model_whose_pairs_last_longer_is_named(own, other, said):
    assert_says(drifting(own, other).drifts(), said)


@pytest.mark.parametrize(
    ("shares", "distances", "said"),
    [
        (
            (0.6, 0.3),
            (0.1, 0.2),
            (
                *("both measures", "less on the transformer", "+0.30 [", "-0.100 [", "over 12 images."),
                *("For other prompts these intervals are [+0.", " and [-0."),
            ),
        ),
        ((0.3, 0.6), (0.2, 0.1), ("both measures", "less on the U-Net", "-0.30 [", "+0.100 [")),
        ((0.6, 0.3), (0.2, 0.1), ("the first measure", "less on the transformer", "second", "on the U-Net")),
        ((0.3, 0.6), (0.1, 0.2), ("the first measure", "less on the U-Net", "second", "on the transformer")),
        ((0.5, 0.5), (0.1, 0.2), ("the first measure nothing is decided", "second", "on the transformer")),
        ((0.6, 0.3), (0.2, 0.2), ("the first measure", "on the transformer", "the second nothing")),
        ((0.5, 0.5), (0.2, 0.2), ("Neither measure tells",)),
    ],
)
def test_what_the_papers_arguments_lead_to_expect(shares, distances, said, monkeypatch):
    own = dict(zip(BOTH, shares, strict=True))
    scatter = {TRANSFORMER: np.linspace(-0.01, 0.01, 12), UNET: np.linspace(0.01, -0.01, 12)}
    monkeypatch.setattr(transformer.Result, "_shares_of_images", lambda self, name: own[name] + scatter[name])
    assert_says(drifting(*distances).expected(), *said)


def test_shares_of_images_are_means_over_thresholds_steps_and_layers(found):
    for name in BOTH:
        shares = shares_above(found.models[name].seen, found.params.thresholds)
        exact = [shares.loc[shares["image"] == image, "share"].mean() for image in range(2)]
        assert found._shares_of_images(name) == pytest.approx(exact)


def with_gaps(monkeypatch, gaps: dict, classes) -> transformer.Result:
    monkeypatch.setattr(transformer.Result, "gaps", lambda self: gaps)
    monkeypatch.setattr(transformer.Result, "_classes", np.asarray(classes))
    return transformer.Result(Parameters(**GIVEN), {})


def test_gaps_are_told_one_by_one_and_for_other_prompts(monkeypatch):
    by_two = np.repeat([9.0, 9.0, 0.0], 4)  # certain for these images, and not for other prompts
    gaps = {
        ("ToDo", "2x2"): 3 + SPREAD / 5,
        ("ToMe", "r = 0.5"): by_two + SPREAD / 5,
        ("forecast", "x"): SPREAD,
    }
    result = with_gaps(monkeypatch, gaps, np.repeat(["a", "b", "c"], 4))
    most = quality.mean_interval(SPREAD)[2]
    said = ("all 3 settings", "detectable in 2 of them", quality.held_words(2, 1), f"more than {most:.1f} dB")
    assert_says(result.farther_told(), *said)
    table = result.gap_table()
    assert table["after Holm"].tolist() == ["closer on the U-Net"] * 2 + [quality.UNTOLD]
    assert table.loc[("ToMe", "r = 0.5"), quality.OVER_CLASSES].startswith("[-")
    each = with_gaps(monkeypatch, gaps, [f"class {i}" for i in range(12)])
    assert_says(each.farther_told(), "detectable in 2 of them", quality.ONE_OF_EACH, "more than")
    assert quality.held_words(2, 2) not in each.farther_told()
    assert quality.OVER_CLASSES not in each.gap_table()
    one = with_gaps(monkeypatch, gaps, np.full(12, "a"))
    assert "prompts" not in one.farther_told()
    for name, said in (("2x2", "is detectable."), ("x", "is not detectable.")):
        single = {key: values for key, values in gaps.items() if key[1] == name}
        told = with_gaps(monkeypatch, single, np.full(12, "a")).farther_told()
        assert_says(told, f"In the one setting here this {said}")


def points(psnr) -> pd.DataFrame:
    names = {"kind": ["ToMe"] * len(psnr), "setting": [f"r = {i}" for i in range(len(psnr))]}
    quality_of = {"PSNR": psnr, "PSNR low": psnr, "PSNR high": psnr, "poor": 0.25, "distance": 0.125}
    return pd.DataFrame(names | quality_of | {"flops": 0.5, "speed-up": 1.25})


def test_agreement_is_of_ranks():
    result = transformer.Result(Parameters(**GIVEN), {})
    assert result.agreement(
        {TRANSFORMER: points([30.0, 31, 60]), UNET: points([10.0, 20, 21])}
    ) == pytest.approx(1)
    assert result.agreement(
        {TRANSFORMER: points([30.0, 31, 60]), UNET: points([9.0, 8, 7])}
    ) == pytest.approx(-1)
    assert np.isnan(result.agreement({TRANSFORMER: points([30.0, 31]), UNET: points([9.0, 8])}))


def test_the_comparison_sets_the_same_settings_side_by_side():
    result = transformer.Result(Parameters(**GIVEN), {})
    table = result.compared({TRANSFORMER: points([30.0, 31]), UNET: points([10.0, 20])})
    assert list(table.columns) == [
        (name, what)
        for name in BOTH
        for what in ("PSNR (dB)", "below 30 dB", "feature distance", "work left", "speed-up")
    ]
    shown = table.loc[("ToMe", "r = 1"), UNET]
    assert shown[["below 30 dB", "feature distance"]].tolist() == ["25%", "0.12"]
    assert table.loc[("ToMe", "r = 1"), (UNET, "PSNR (dB)")].startswith("20.0")


def test_times_are_taken_on_both_models_and_words_are_given(found, params):
    clocks = transformer.timed(found, found.models[TRANSFORMER].pipe, recorded=None)
    records = found.records(clocks)
    assert set(records) == set(BOTH)
    assert len(records[UNET]) == len(records[TRANSFORMER]) == 5
    for name in BOTH:
        of = found.models[name].curves
        away = of.made.of(of.kinds["ToDo"]["2x2"])["feature_distance"].mean()
        row = records[name][(records[name]["kind"] == "ToDo") & (records[name]["setting"] == "2x2")]
        assert row["distance"].item() == pytest.approx(away)
        assert away > 0
    words = found.words(records)
    assert len(found.gaps()) == 5
    assert re.search(r" 5 settings .*at once.*Holm.* detectable in [0-5] of them", words["farther_told"])
    assert words["settings"] == "5"
    assert words["layers"] == "6"
    assert words["tokens"] == "1,024"
    own = records[TRANSFORMER]
    best = own[quality.unbeaten(own["PSNR"].to_numpy(float), own["speed-up"].to_numpy(float))]
    assert all(setting in words["best_in_time"] for setting in best["setting"])
    table = found.models[TRANSFORMER].curves.unbeaten(own)
    assert [setting for (_, setting), where in table["unbeaten in"].items() if "time" in where] == list(
        best["setting"]
    )
    assert words["curve_resamples"] == "1,000"


def test_one_setting_of_each_kind_is_shown(found):
    shown = found.shown()
    assert list(shown) == ["unmerged", "ToDo,\n2x2", "fewer steps,\n1 steps"]
    kinds = curves.kinds(3)
    assert [way.label for way in shown.values()][1:] == [
        kinds["ToDo"]["2x2"].label,
        kinds["fewer steps"]["1 steps"].label,
    ]


def test_the_readme_says_how_much_the_transformers_images_change():
    said = re.search(
        r"the first row comes to ([\d.]+) dB \(([\d.]+) to ([\d.]+)\) "
        r"and ToDo with every second column to ([\d.]+) dB \(([\d.]+) to ([\d.]+)\), over (\d+) images",
        " ".join((ROOT / "README.md").read_text().split()),
    )
    model = fingerprint(tiny.load_transformer())
    found = []
    for method in (methods.named_configuration(catome.RECOMMENDED, "EVEN_13"), methods.todo(2, rows=1)):
        rows = Store(QUALITY, RECORDED, None).find(model=model, seed=HELD_OUT, steps=50, method=method.label)
        found += [
            f"{value:.1f}"
            for value in quality.mean_interval(rows.sort_values("image")["psnr"].to_numpy(float))
        ]
    assert list(said.groups()) == [*found, str(len(rows))]
    gentle = methods.merged_keys(0.95, schedule="EVEN_13", compare="keys")
    psnr = (
        Store(QUALITY, RECORDED, None)
        .find(model=model, seed=HELD_OUT, steps=50, method=gentle.label)["psnr"]
        .mean()
    )
    said = re.search(
        r"threshold of 0\.7 gives ([\d.]+) dB there, and 0\.95 gives ([\d.]+) dB",
        (ROOT / "book/library.md").read_text(),
    )
    assert list(said.groups()) == [found[0], f"{psnr:.1f}"]
