"""Similarity, drift and the frontier on a transformer beside a U-Net."""

import numpy as np
import pandas as pd
import pytest

from catome import study
from catome.study.measure import quality
from catome.study.measure.similarity import short_name
from catome.study.studies import curves, transformer
from catome.study.studies import jobs as counting
from catome.study.studies.transformer import BOTH, KINDS, TRANSFORMER, UNET, Parameters

GIVEN = dict(images=2, batch_size=2, steps=3, curve_images=1, curve_kinds=["ToDo", "forecast"])


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    return Parameters(**GIVEN, output=str(tmp_path_factory.mktemp("transformer")))


@pytest.fixture(scope="module")
def found(params):
    return transformer.run(params, study.load(params), recorded=None)


def test_kinds_are_those_of_the_frontier_that_need_no_unet():
    assert set(KINDS) < set(curves.kinds())
    assert not any("DeepCache" in kind or kind in ("tomesd", "SiTo", "ToFu") for kind in KINDS)


def test_a_kind_that_needs_a_unet_is_refused():
    with pytest.raises(ValueError, match=r"curve_kinds=.*there is no 'DeepCache'"):
        Parameters(curve_kinds=["DeepCache"])


def test_both_models_make_the_same_images_by_the_same_methods(params):
    knobs = [params.knobs(setting) for setting in (params, params.of_unet)]
    assert [of.model for of in knobs] == ["tiny-pixart", "tiny"]
    assert {of.seed for of in knobs} == {curves.Parameters().seed}
    assert {of.images for of in knobs} == {1}
    assert [list(of.kinds) for of in knobs] == [["ToDo", "forecast"]] * 2
    assert params.knobs(params).recompute is False
    assert Parameters(**GIVEN, recompute=True).knobs(params).recompute is True


def test_fewer_images_are_timed_than_are_judged():
    many = Parameters(timed_images=3)
    knobs = many.knobs(many.of_unet)
    assert (knobs.images, knobs.timed.images) == (12, 3)


def test_what_there_is_to_generate_is_counted_for_both(params):
    table = counting.table(transformer.jobs(params))
    methods = [method.label for some in params.knobs(params).kinds.values() for method in some.values()]
    assert sorted(table["method"]) == sorted(2 * ["unmerged, watched", "unmerged, watched", "unmerged", *methods])


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
        of = found.models[name]
        exact = (of.seen.best >= 0.95).mean() * of.seen.best.shape[-1] / of.seen.tokens
        assert table.loc["t = 0.95", name].startswith(f"{exact:.0%} (")


def test_distances_are_those_of_the_drift(found):
    for name in BOTH:
        drift = found.models[name].drift
        matrix = drift.staleness("r = 0.5")
        assert drift.by_lag("r = 0.5")[1] == pytest.approx(np.mean([matrix[i, i + 1] for i in range(len(matrix) - 1)]))
        assert found.ages().loc[name, "1 step apart"] == f"{drift.by_lag('r = 0.5')[1]:.2f}"
        assert found.lags()[name].shape == (2, 3)
    assert list(found.ages().columns) == ["1 step apart", "2 steps apart"]


def test_variance_is_named_by_model(found):
    table = found.variance()
    assert list(table.columns) == [(name, part) for name in BOTH for part in ("step", "image")]
    assert all(cell.endswith("%") or cell == "nothing varies" for cell in table.to_numpy().ravel())


def drifting(own: float, other: float) -> transformer.Result:
    """A result whose pairs move so much from step to step."""

    def of(distance):
        rows = pd.DataFrame({"neighbour": [np.full(4, distance)] * 2})
        return transformer.OfModel(None, None, transformer.Drift(rows, rows, 5, {}), None)

    return transformer.Result(Parameters(**GIVEN), {TRANSFORMER: of(own), UNET: of(other)})


@pytest.mark.parametrize(
    ("own", "other", "said"),
    [
        (0.1, 0.3, "for longer on the transformer than"),
        (0.3, 0.1, "for longer on the U-Net than"),
        (0.2, 0.21, "about as long"),
    ],
)
def test_the_model_whose_pairs_last_longer_is_named(own, other, said):
    assert said in drifting(own, other).drifts()


def points(psnr) -> pd.DataFrame:
    names = {"kind": ["ToMe"] * len(psnr), "setting": [f"r = {i}" for i in range(len(psnr))]}
    return pd.DataFrame(names | {"PSNR": psnr, "flops": 0.5, "speed-up": 1.25, "PSNR low": psnr, "PSNR high": psnr})


def test_agreement_is_of_ranks():
    result = transformer.Result(Parameters(**GIVEN), {})
    assert result.agreement({TRANSFORMER: points([30.0, 31, 60]), UNET: points([10.0, 20, 21])}) == pytest.approx(1)
    assert result.agreement({TRANSFORMER: points([30.0, 31, 60]), UNET: points([9.0, 8, 7])}) == pytest.approx(-1)
    assert np.isnan(result.agreement({TRANSFORMER: points([30.0, 31]), UNET: points([9.0, 8])}))


def test_the_comparison_sets_the_same_settings_side_by_side():
    result = transformer.Result(Parameters(**GIVEN), {})
    table = result.compared({TRANSFORMER: points([30.0, 31]), UNET: points([10.0, 20])})
    assert list(table.columns) == [(name, what) for name in BOTH for what in ("PSNR (dB)", "work left", "speed-up")]
    assert table.loc[("ToMe", "r = 1"), (UNET, "PSNR (dB)")].startswith("20.0")


def test_times_are_taken_on_both_models_and_words_are_given(found, params):
    clocks = transformer.timed(found, found.models[TRANSFORMER].pipe, recorded=None)
    records = found.records(clocks)
    assert set(records) == set(BOTH)
    assert len(records[UNET]) == len(records[TRANSFORMER]) == 6
    words = found.words(records)
    assert words["settings"] == "6"
    assert words["layers"] == "6"
    assert words["tokens"] == "1,024"
    own = records[TRANSFORMER]
    best = own[quality.is_best(own["PSNR"].to_numpy(float), own["speed-up"].to_numpy(float))]
    assert all(setting in words["best_in_time"] for setting in best["setting"])


def test_the_report_has_both_models(found):
    report = found.report()
    assert "ToDo, 2x2" in report
    assert all(name in report for name in BOTH)
