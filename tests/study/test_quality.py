"""Metrics, methods, and the studies that put them together."""

import itertools
import json
import warnings
from contextlib import contextmanager
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch_fidelity
from PIL import Image
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch_fidelity.utils import create_feature_extractor

import catome
from catome import tiny
from catome.study import from_papers, methods
from catome.study.measure import quality
from catome.study.measure.comparison import (
    COST,
    compare,
    cost,
    speed_ups,
    time_ratio,
    timed_blocks,
    timed_on,
)
from catome.study.measure.drift import held_out
from catome.study.measure.real_images import (
    check_reference,
    files_by_class,
    image_files,
    read_image,
    real_images,
)
from catome.study.measure.searches import searches, searches_made, staleness_of
from catome.study.online import online
from catome.study.plots import figures
from catome.study.run.generate import generate_batch
from catome.study.run.parameters import imagenet_classes
from catome.study.studies import released, weights
from catome.tiny.evaluate import HELD_OUT
from catome.tiny.features import LAYER, register
from helpers.labels import from_label
from helpers.sentences import assert_says
from helpers.settings import setting


@pytest.fixture(scope="module")
def scenes():
    """Two sets of 40 uint8 images ``[B, H, W, 3]`` that differ."""
    return [np.stack([tiny.render(tiny.CLASSES[i % n], i + 100 * n) for i in range(40)]) for n in (12, 7)]


def test_our_path_is_torch_fidelity_on_folders(scenes, tmp_path):
    for name, images in zip("ab", scenes, strict=True):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / name / f"{i:03}.png")
    direct = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "a"),
        input2=str(tmp_path / "b"),
        cuda=False,
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=30,
        kid_subsets=50,
        feature_extractor=register(),
        feature_layer_fid=LAYER,
        feature_layer_kid=LAYER,
        feature_layer_prc=LAYER,
        verbose=False,
        cache=False,
    )
    net = quality.extractor(embedded=True)
    a, b = (net(images) for images in scenes)
    assert quality.fid(a, b) == pytest.approx(direct["frechet_inception_distance"], rel=1e-3)
    assert quality.kid(a, b, subset=30) == pytest.approx(direct["kernel_inception_distance_mean"], rel=1e-3)
    assert quality.fid(a, b) > 10 * abs(quality.fid(a, a))
    assert net.label == "scene"


def test_features_may_be_kept_as_half_precision(scenes):
    net = quality.extractor(embedded=True)
    a, b = (net(images) for images in scenes)
    half = a.astype(np.float16).astype(np.float32)
    assert quality.fid(half, b) == pytest.approx(quality.fid(a, b), rel=1e-3)


def test_psnr_and_ssim_are_scikit_images(scenes):
    a, b = scenes[0][:6], scenes[1][:6]
    for x, y, psnr, ssim in zip(a, b, quality.psnr(a, b), quality.ssim(a, b), strict=True):
        assert psnr == pytest.approx(peak_signal_noise_ratio(x, y))
        options = dict(channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        assert ssim == pytest.approx(structural_similarity(x, y, **options))
    assert np.isinf(quality.psnr(a, a)).all()
    assert quality.psnr(a, b).max() < 22  # uint8 differences do not wrap


def test_verdicts_are_what_intervals_say():
    table = quality.paired_table(
        {"a": (1.0, 0.5, 1.5), "b": (-1.0, -2.0, -0.1), ("c", "d"): (0.2, -0.1, 0.5)}
    )
    assert table["verdict"].tolist() == ["closer", "farther", "not told apart"]
    assert table["difference (dB)"].tolist() == [
        "+1.00 [+0.50, +1.50]",
        "-1.00 [-2.00, -0.10]",
        "+0.20 [-0.10, +0.50]",
    ]
    assert quality.verdict(0.1, 0.2, better="better") == "better"


def test_holms_method():
    assert quality.holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]  # 0.03 is above 0.05 / 2
    assert quality.holm([0.04, float("nan")]) == [False, False]
    assert quality.holm([0.04]) == [True]
    assert quality.holm([]) == []


@pytest.mark.parametrize("images", [3, 12, 14, 15, 60])
def test_p_values_are_those_of_changed_signs(images):
    """By scipy's test of paired samples, whose signs change in all ways or in as many as are drawn here."""
    values = np.random.default_rng(images).normal(0.3, 1, size=images)
    expected = stats.permutation_test(
        (values, np.zeros(images)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**14,
    )
    allowed = 1e-6 if images <= quality.ALL_SIGNS else 0.02
    assert quality.mean_chance(values) == pytest.approx(expected.pvalue, abs=allowed)


def test_few_images_cannot_show_much():
    """However large the difference: of n images, two choices of signs out of 2 ** n are as far from zero."""
    for images in (1, 2, 6):
        assert quality.mean_chance([5.0] * images) == pytest.approx(2 / 2**images)
    assert quality.mean_chance([np.inf, np.inf]) == pytest.approx(0.5)
    assert quality.mean_chance([np.inf] * 12) < 0.001
    assert quality.mean_chance(np.zeros(5)) == 1
    assert quality.mean_chance([1.0] * 100) == pytest.approx(1e-4)
    assert np.isnan(quality.mean_chance([1.0, np.nan]))
    assert np.isnan(quality.mean_chance([]))


@pytest.mark.parametrize("images", [6, 12, 24])
def test_p_values_are_below_a_twentieth_in_one_of_twenty_studies(images):
    rng = np.random.default_rng(0)
    chances = [quality.mean_chance(rng.normal(size=images)) for _ in range(400)]
    assert 0.02 < np.mean(np.array(chances) < 0.05) < 0.08


def test_an_image_that_is_unchanged_in_both_cases_is_no_difference():
    found = quality.difference([31, np.inf, np.inf, 30], [30, np.inf, 30, np.inf])
    assert found.tolist() == [1, 0, np.inf, -np.inf]


def test_how_many_hold_for_other_prompts_is_said():
    assert quality.held_words(0, 0) == "No difference is detected."
    assert "one difference detected does not hold" in quality.held_words(1, 0)
    assert "one difference detected holds" in quality.held_words(1, 1)
    for holds, words in enumerate(("none holds", "one holds", "2 hold", "all hold")):
        assert words in quality.held_words(3, holds)
    assert quality.one_of_each(["a", "b"])
    assert not quality.one_of_each(["a", "b", "a"])
    assert quality.other_prompts([1.0, 2.0], ["a", "b"]) == quality.ONE_OF_EACH
    differences = {"x": [1.0, 2.0, 4.0]}
    assert quality.OVER_CLASSES not in quality.difference_table(differences, classes=["a", "b", "c"])
    assert quality.OVER_CLASSES in quality.difference_table(differences, classes=["a", "b", "a"])


def test_a_share_of_resamples_is_said_where_it_is_small():
    assert quality.by_chance(0.39) == " [in only 39% of resamples]"
    assert quality.by_chance(quality.SURE) == quality.by_chance(float("nan")) == ""


def test_what_was_not_measured_is_not_unbeaten():
    psnr, speed = np.array([30.0, np.nan, 35.0]), np.array([1.5, 2.0, np.nan])
    assert quality.unbeaten(psnr, speed).tolist() == [True, False, False]


def test_a_table_of_many_comparisons_says_what_stays_when_all_are_looked_at():
    rng = np.random.default_rng(0)
    noise = [(values - values.mean()) / values.std() for values in rng.normal(size=(4, 60))]
    differences = {name: values + 2.2 / np.sqrt(60) for name, values in zip("abc", noise[:3], strict=True)}
    differences["far"] = noise[3] - 3
    table = quality.difference_table(differences)
    assert table["verdict"].tolist() == ["closer"] * 3 + ["farther"]
    assert table["after Holm"].tolist() == ["not told apart"] * 3 + ["farther"]
    alone = quality.difference_table({"a": differences["a"]})
    assert alone["after Holm"].tolist() == ["closer"]
    as_ever = quality.paired_table(
        {name: quality.mean_interval(found) for name, found in differences.items()}
    )
    assert table[as_ever.columns].equals(as_ever)


def test_paired_intervals_are_narrower():
    rng = np.random.default_rng(0)
    images = rng.normal(size=200)
    a, b = images + rng.normal(size=200) * 0.1, images + rng.normal(size=200) * 0.1 + 0.05
    _, low, high = quality.mean_interval(b - a)
    assert 0 < low < 0.05 < high < 0.1
    alone = quality.mean_interval(a)
    assert alone[2] - alone[1] > 5 * (high - low)


def test_intervals_cover():
    """A 95 % interval of a mean holds the true mean about 95 times of 100."""
    rng = np.random.default_rng(0)
    inside, seeds = 0, 200
    for seed in range(seeds):
        _, low, high = quality.mean_interval(rng.normal(size=60), seed=seed, resamples=500)
        inside += low <= 0 <= high
    assert 0.89 <= inside / seeds <= 0.99


EVERY_METHOD = [
    methods.unmerged(),
    methods.tome(0.5),
    methods.tomesd(0.5),
    methods.ca_tome(0.9, "CONFIG_3"),
    methods.ca_tome(0.9, [0, 2]),
    online(0.9),
    methods.batch_maximum(0.9, None, 2),
    methods.todo(2),
    methods.deep_cache(2),
    methods.together(methods.ca_tome(0.9, [0, 2]), methods.deep_cache(2)),
]


@pytest.mark.parametrize("method", EVERY_METHOD, ids=str)
def test_a_method_does_something_and_leaves_nothing(pipe, tmp_path, method):
    chosen = setting(tmp_path, images=2)
    before = generate_batch(pipe, chosen, range(2))
    state = {name: set(vars(module)) for name, module in pipe.unet.named_modules()}
    with method.applied(pipe):
        first, again = (generate_batch(pipe, chosen, range(2)) for _ in range(2))
    assert np.isfinite(first).all()
    assert np.array_equal(first, again)
    assert np.array_equal(first, before) == (method.family == "unmerged")
    assert np.array_equal(before, generate_batch(pipe, chosen, range(2)))
    if method.family != "tomesd":  # whose package leaves notes of its own on the modules
        assert state == {name: set(vars(module)) for name, module in pipe.unet.named_modules()}


def test_tome_is_tomesd(pipe, tmp_path):
    chosen = setting(tmp_path, images=2)
    made = []
    for method in (methods.tome(0.5), methods.tomesd(0.5)):
        with method.applied(pipe):
            made.append(generate_batch(pipe, chosen, range(2)))
    assert np.abs(made[0] - made[1]).mean() < 1e-3


def test_the_batch_maximum_merges_below_the_threshold(pipe, tmp_path):
    chosen = setting(tmp_path, images=2, classes=["city at night", "misty forest"])
    with methods.batch_maximum(0.9, None, 2).applied(pipe), catome.probe(pipe) as record:
        generate_batch(pipe, chosen, range(2))
    for step in record.steps():
        merged = record.at(step, 0).plan.merged_share
        own = record.merged_share(threshold=0.9)[step, 0]
        assert len(set(merged.tolist())) == 1
        assert merged.max() == own.max()
    assert own.min() < own.max()


def test_todo_has_a_quarter_of_the_keys(pipe, tmp_path):
    keys = []
    handle = (
        pipe.unet.down_blocks[0]
        .attentions[0]
        .transformer_blocks[0]
        .attn1.to_k.register_forward_hook(lambda module, args, output: keys.append(output.shape[1]))
    )
    with methods.todo(2).applied(pipe):
        generate_batch(pipe, setting(tmp_path, images=1, steps=2), range(1))
    handle.remove()
    assert set(keys) == {256}


def test_todo_keeps_the_top_left_token_of_each_window(pipe, tmp_path):
    seen = []
    attention = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    with methods.todo(2).applied(pipe):
        handle = attention.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
        )
        generate_batch(pipe, setting(tmp_path, images=1, steps=2), range(1))
        handle.remove()
    args, kwargs = seen[0]
    grid = args[0].unflatten(1, (32, 32))
    assert torch.equal(kwargs["encoder_hidden_states"], grid[:, 0::2, 0::2].flatten(1, 2))
    assert not torch.equal(kwargs["encoder_hidden_states"], grid[:, 1::2, 1::2].flatten(1, 2))


@pytest.mark.parametrize(("interval", "deep"), [(2, 4), (3, 4), (5, 2)])
def test_deep_cache_runs_the_deep_part_every_so_many_steps(pipe, tmp_path, interval, deep):
    """It counts timesteps, of which PLMS takes the second twice: 0, 1, 1, 3, 4 and so on to 9."""
    calls = []
    with methods.deep_cache(interval).applied(pipe):
        inner = pipe.unet.mid_block.forward
        pipe.unet.mid_block.forward = lambda *args, **kwargs: calls.append(1) or inner(*args, **kwargs)
        generate_batch(pipe, setting(tmp_path, images=1, steps=9), range(1))
    assert len(calls) >= 10  # it wraps the whole block, and skips what is inside
    inside = []
    handle = pipe.unet.mid_block.resnets[0].register_forward_hook(lambda *_: inside.append(1))
    with methods.deep_cache(interval).applied(pipe):
        generate_batch(pipe, setting(tmp_path, images=1, steps=9), range(1))
    handle.remove()
    assert len(inside) == deep


def test_features_are_compared_with_the_unmerged_image_of_the_same_seed(pipe, tmp_path):
    chosen = setting(tmp_path, images=2)
    found = compare(pipe, chosen, [methods.unmerged(), methods.tome(0.75)], recorded=None)
    plain, merged = (found.features(method) for method in found.methods)
    away = np.linalg.norm(merged - plain, axis=1)
    assert np.allclose(found.of("ToMe(ratio=0.75, schedule=every step)")["feature_distance"], away, rtol=0.02)
    assert not np.allclose(np.linalg.norm(merged - plain[::-1], axis=1), away, rtol=0.1)


def test_methods_take_turns(pipe, tmp_path, monkeypatch):
    """Each round begins with another one, so that what the machine does meanwhile hits all alike."""
    order = []
    ways = []
    for name in "abc":

        @contextmanager
        def applied(pipe, name=name):
            order.append(name)
            yield pipe

        ways.append(methods.Method(name, name, applied))
    cost(pipe, setting(tmp_path, images=1, batch_size=1, steps=1), ways, repetitions=3, recorded=None)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"  # the warm-up first


def test_kid_is_over_subsets_of_a_hundred():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(150, 8)).astype(np.float32)
    b = rng.normal(0.2, 1, size=(150, 8)).astype(np.float32)
    assert quality.kid(a, b) == quality.kid(a, b, subset=100)
    assert quality.kid(a, b) != quality.kid(a, b, subset=10)


def test_a_comparison_needs_more_images_the_more_its_differences_vary():
    rng = np.random.default_rng(0)
    differences = rng.normal(0, 3, 200)
    spread = differences.std(ddof=1)
    assert quality.images_needed(differences) == int(np.ceil((2.8016 * spread) ** 2))  # 1.96 + 0.8416
    assert quality.images_needed(differences, effect=2) == int(np.ceil((2.8016 * spread / 2) ** 2))
    assert quality.images_needed(differences, power=0.5) == int(np.ceil((1.95996 * spread) ** 2))
    assert quality.images_needed([1.0, 1.0, np.inf]) == 2
    assert quality.images_needed([1.0, np.inf]) == 0


def test_that_many_images_find_the_difference_in_four_studies_of_five():
    rng = np.random.default_rng(0)
    needed = quality.images_needed(rng.normal(0, 3, 100_000))
    studies = rng.normal(1, 3, (2000, needed))
    error = studies.std(1, ddof=1) / np.sqrt(needed)
    assert ((studies.mean(1) / error) > 1.96).mean() == pytest.approx(0.8, abs=0.04)


def test_the_images_that_are_needed_stand_beside_those_that_there_are():
    said = quality.power_words([[0.0, 2.0, 4.0], [0.0, 1.0, 2.0]])
    assert_says(said, " 1 dB", "four studies out of five", "need from 8 to 32 images", "there are 3.")
    assert "need 8 images" in quality.power_words([[0.0, 1.0, 2.0]])
    assert quality.power_words([[0.0, 1.0], [0.0, 1.0, 2.0]]).endswith("there are from 2 to 3.")
    assert "nobody can say" in quality.power_words([[1.0]])


def test_a_table_of_no_differences_has_its_columns():
    assert list(quality.difference_table({}, "dB")) == ["dB", "verdict", "after Holm"]
    assert len(quality.difference_table({})) == 0


def test_an_interval_for_other_classes_is_that_of_their_means():
    """A class with many images counts once, however alike they are."""
    values, classes = [1.0, 1.0, 1.0, 3.0, 8.0, np.inf], ["a", "a", "a", "b", "c", "c"]
    mean, low, high = quality.over_classes(values, classes)
    assert mean == pytest.approx(4)
    expected = stats.t.interval(0.95, 2, loc=4, scale=stats.sem([1.0, 3.0, 8.0]))
    assert (low, high) == pytest.approx(expected)
    assert np.isnan(quality.over_classes([1.0, 2.0], ["a", "a"])).all()
    table = quality.difference_table({"x": values[:5], "y": values[:3]}, classes=classes)
    assert table[quality.OVER_CLASSES].tolist() == [f"[{low:+.2f}, {high:+.2f}]", ""]
    assert quality.OVER_CLASSES not in quality.difference_table({"x": values[:5]})


def test_which_verdicts_stay_and_hold_over_classes():
    scatter, classes = np.tile([-0.1, 0.1], 6), np.repeat(["a", "b", "c"], 4)
    of_two = np.repeat([-9.0, -9.0, 0.0], 4)  # certain for these images, and not for other classes
    found = {"all": scatter + 3, "two": scatter + of_two, "none": scatter, "nan": np.full(12, np.nan)}
    assert quality.held_over_classes(found, classes) == (["all", "two"], ["all"])
    assert quality.held_over_classes({}, classes) == ([], [])
    few = {"first": np.full(6, 3.0) + scatter[:6]}
    assert quality.held_over_classes(few, classes) == (["first"], ["first"])


def test_what_other_prompts_would_give_is_said_beside_the_verdict_on_these():
    scatter, classes = np.tile([-0.1, 0.1], 6), ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    assert_says(quality.other_prompts(scatter + 1, classes), "This holds for other prompts", "([+1.00, ")
    assert_says(quality.other_prompts(scatter - 1, classes), "This holds for other prompts", "([-1.00, ")
    by_one = scatter + np.repeat([0.0, 0.0, 9.0], 4)  # certain for these images, and not for other classes
    said = quality.other_prompts(by_one, [*classes, "d"])
    _, low, high = quality.over_classes(by_one, classes)
    assert said == f"For other prompts like these this is not decided ([{low:+.2f}, {high:+.2f}] dB)."
    assert low < 0 < high
    assert_says(quality.other_prompts(scatter, classes), "other prompts", "nothing is decided, either")
    assert_says(quality.other_prompts(scatter, ["a"] * 12), "so few prompts")


def test_the_chance_of_a_rank_correlation_is_of_all_orders():
    agreement, chance = quality.rank_correlation([1, 2, 3, 4], [10, 20, 30, 99])
    assert (agreement, chance) == (pytest.approx(1), pytest.approx(2 / 24))  # two orders of 24 agree so well
    agreement, chance = quality.rank_correlation([1, 2, 3], [1, 3, 2])
    assert (agreement, chance) == (pytest.approx(0.5), pytest.approx(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(quality.rank_correlation([1, 1, 1], [1, 2, 3])).all()
        assert np.isnan(quality.rank_correlation([1, 2, 3], [1, 1, 1])).all()
        assert np.isnan(quality.rank_correlation([1.0, np.nan, 3.0], [1, 2, 3])).all()
        assert np.isnan(quality.rank_correlation([], [])).all()
    assert quality.rank_correlation([1, 2, 3], [1, 2, np.inf]) == pytest.approx((1, 2 / 6))
    x, y = np.random.default_rng(0).normal(size=(2, 12))
    drawn = quality.rank_correlation(x, y)
    assert drawn[0] == pytest.approx(stats.spearmanr(x, y).statistic)
    assert drawn[1] == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.03)
    assert quality.rank_correlation(x, x, draws=99)[1] == pytest.approx(0.01)  # the observed order alone


def test_directions_that_images_span():
    assert quality.rank_words(np.zeros((120, 128))).endswith("120 images span at most 119 of them.")
    assert quality.rank_words(np.zeros((2000, 1024))).endswith("2,000 images can span all of them.")


def test_images_of_a_class_that_are_alike_make_intervals_within_classes_narrow():
    values, classes = [0.0, 0.2, 4.0, 4.2], ["a", "a", "b", "b"]
    assert quality.within_classes(values, classes) == pytest.approx(np.sqrt(0.02) / np.std(values, ddof=1))
    assert quality.within_classes([0.0, 2.0, 2.0, 0.0], classes) == pytest.approx(np.sqrt(2 / (4 / 3)))
    assert np.isnan(quality.within_classes(values, ["a", "a", "b", "c"]))
    assert np.isnan(quality.within_classes([1.0] * 4, classes))


def polynomial(a, b) -> float:
    return (float(a @ b) / len(a) + 1) ** 3


def test_the_change_of_kid_is_that_of_all_pairs():
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(6, 5))
    made = plain + rng.normal(0.3, 0.1, size=(6, 5))
    real = rng.normal(size=(9, 5))

    def distance(images) -> float:
        own = np.mean([polynomial(a, b) for a, b in itertools.permutations(images, 2)])
        return own - 2 * np.mean([polynomial(a, b) for a in images for b in real])

    change, low, high = quality.kid_change(made, plain, real, groups=[0, 0, 1, 1, 2, 2])
    assert change == pytest.approx(distance(made) - distance(plain))
    assert low < change < high
    assert quality.kid_change(plain, plain, real, groups=3) == (0, 0, 0)
    assert np.isnan(quality.kid_change(made[:1], plain[:1], real)).all()


def test_the_change_of_kid_is_near_that_of_torch_fidelity():
    rng = np.random.default_rng(1)
    plain = rng.normal(size=(100, 8)).astype(np.float32)
    made = plain + rng.normal(0.4, 0.1, size=(100, 8)).astype(np.float32)
    real = rng.normal(size=(100, 8)).astype(np.float32)
    change, low, high = quality.kid_change(made, plain, real)
    subsets = quality.kid(made, real, subset=100) - quality.kid(plain, real, subset=100)  # of all images
    assert change == pytest.approx(subsets, rel=1e-3)
    assert 0 < low < change < high


@pytest.mark.parametrize(("seeds", "size", "shift"), [(8, 3, 0.5), (8, 12, 0.1)])
def test_the_chance_of_a_change_of_fid_is_that_of_all_exchanges(seeds, size, shift):
    """With more images than dimensions, and with fewer; the expected value is by torch-fidelity's FID."""
    rng = np.random.default_rng(3)
    plain = rng.normal(size=(seeds, size))
    made = plain + rng.normal(shift, 0.6, size=(seeds, size))
    real = rng.normal(size=(50, size))

    def change(exchanged) -> float:
        swap = np.array(exchanged)[:, None]
        return quality.fid(np.where(swap, plain, made), real) - quality.fid(np.where(swap, made, plain), real)

    every = np.array([change(swap) for swap in itertools.product([False, True], repeat=seeds)])
    exact = np.mean(np.abs(every) >= abs(every[0]) - 1e-6)
    assert 0.05 < exact < 0.6  # or the test could not tell
    assert quality.fid_chance(made, plain, real) == pytest.approx(exact, abs=0.04)


def test_the_chance_of_a_change_of_fid_at_its_ends():
    rng = np.random.default_rng(0)
    plain, real = rng.normal(size=(40, 6)), rng.normal(size=(60, 6))
    assert quality.fid_chance(plain, plain, real) == 1
    assert quality.fid_chance(plain + 1, plain, quality.fid_statistics(real)) == 1 / 2000
    assert np.isnan(quality.fid_chance(plain[:1], plain[:1], real))


def test_a_change_of_fid_by_chance_is_told_as_seldom_as_it_should():
    rng = np.random.default_rng(5)
    real = quality.fid_statistics(rng.normal(size=(200, 3)))
    found = []
    for _ in range(200):
        common = rng.normal(size=(12, 3))
        sides = [common + rng.normal(0, 0.5, size=(12, 3)) for _ in range(2)]
        found.append(quality.fid_chance(*sides, real, draws=399))
    assert np.mean(np.array(found) <= 0.05) <= 0.09
    assert 0.35 < np.mean(np.array(found) <= 0.5) < 0.65


def test_an_online_schedule_is_counted_in_the_rows_with_a_prompt(pipe, tmp_path):
    chosen = setting(tmp_path, images=2, batch_size=2, steps=8)
    method = online(0.8, 0.3)
    count = searches_made(searches(pipe, chosen, method, recorded=None))
    with method.applied(pipe), catome.probe(pipe) as record:
        generate_batch(pipe, chosen, range(2))

    def found(rows) -> float:
        made = []
        for block, row in itertools.product(range(len(record.blocks())), rows):
            plans = [record.at(step, block).plan.target[row] for step in record.steps()]
            made.append(1 + sum(not torch.equal(a, b) for a, b in itertools.pairwise(plans)))
        return float(np.mean(made))

    assert count == found([2, 3]) != found([0, 1])


def test_compare_and_its_record(pipe, tmp_path, monkeypatch):
    made = []
    real = generate_batch

    def counted(pipe, chosen, images, *rest):
        made.append(list(images))
        return real(pipe, chosen, images, *rest)

    monkeypatch.setattr("catome.study.measure.comparison.generate_batch", counted)
    chosen, asked = setting(tmp_path), [methods.unmerged(), methods.ca_tome(0.9, None), methods.tome(0.5)]
    real_set = real_images(chosen, quality.extractor(embedded=True), (128, 128), per_class=2)
    found = compare(pipe, chosen, asked, real_set, recorded=None)
    assert made == [[0, 1]] * 3 + [[2]] * 3
    assert found.rows.groupby("method").size().tolist() == [3, 3, 3]
    assert np.isinf(found.of("unmerged")["psnr"]).all()
    assert len(found.of("unmerged")["merged_share"][0]) == 0
    row = found.of(asked[1]).iloc[2]
    assert len(row["merged_share"]) == 5
    plain = quality.to_uint8(real(pipe, chosen, range(2, 3)))
    with catome.patched(pipe, catome.PAPER, threshold=0.9, schedule=None), catome.probe(pipe) as record:
        images = quality.to_uint8(real(pipe, chosen, range(2, 3)))
    assert row["psnr"] == pytest.approx(quality.psnr(images, plain)[0], abs=0.5)
    assert np.allclose(row["merged_share"].astype(float), record.merged_share()[:, :, 1].mean(1), atol=5e-3)
    assert np.allclose(found.of(asked[2])["merged_share"][0].astype(float), 0.5, atol=1e-3)
    assert found.features(asked[1]).shape == (3, 128)
    assert row["psnr_real"] == pytest.approx(quality.psnr(images, real_set.like(2)[None])[0], abs=0.5)
    assert row["ssim_real"] == pytest.approx(quality.ssim(images, real_set.like(2)[None])[0], abs=0.05)
    made.clear()
    compare(pipe, chosen, asked, real_set, recorded=None)
    assert made == []
    compare(pipe, chosen, [*asked, methods.tome(0.25)], real_set, recorded=None)
    assert made == [[0, 1], [0, 1], [2], [2]]  # the unmerged images to compare with, and the new method
    made.clear()
    # rows with real images serve where none are asked for
    alone = compare(pipe, chosen, asked, recorded=None)
    assert made == []
    assert alone.rows["psnr"].tolist() == found.rows["psnr"].tolist()
    assert alone.rows["psnr_real"].isna().all()
    assert found.rows["psnr_real"].notna().all()
    again = compare(pipe, chosen, asked[:1], recorded=None, recompute=True)
    assert made == [[0, 1], [2]]
    assert len(again.rows) == 3
    assert not set(again.rows["run"]) & set(alone.rows["run"])  # those without real images come first
    made.clear()
    # and do not serve where real images are asked for
    elsewhere = tmp_path / "elsewhere"
    compare(pipe, chosen, asked[:1], folder=elsewhere, recorded=None)
    made.clear()
    compare(pipe, chosen, asked[:1], real_set, folder=elsewhere, recorded=None)
    assert made == [[0, 1], [2]]
    made.clear()
    compare(pipe, replace(chosen, guidance=3.0), asked[:1], recorded=None)
    assert made == [[0, 1], [2]]  # with other guidance nothing fits
    with pytest.raises(ValueError, match="each may be named once"):
        compare(pipe, chosen, [methods.tome(0.5), methods.tome(0.5)])
    with catome.patched(pipe, catome.PAPER), pytest.raises(ValueError, match="pipe is patched"):
        compare(pipe, chosen, asked)


def test_cost(pipe, tmp_path):
    chosen = setting(tmp_path, images=1, batch_size=1, steps=2)
    asked = [methods.unmerged(), methods.tome(0.75)]
    rows = cost(pipe, chosen, asked, repetitions=2, recorded=None)
    assert rows.groupby("method").size().tolist() == [2, 2]
    assert (rows["block_seconds"] < rows["seconds"]).all()
    assert (rows["block_seconds"] > 0).all()
    flops = rows.groupby("method")["flops"].first()
    assert flops["unmerged"] > flops[asked[1].label] > 0
    again = cost(pipe, chosen, asked, repetitions=2, recorded=None)
    assert again["seconds"].tolist() == rows["seconds"].tolist()
    more = cost(pipe, chosen, [*asked, methods.todo(2)], repetitions=1, recorded=None)
    assert len(set(more["run"])) == 1  # only turns of one run are compared
    assert set(more["run"]) != set(rows["run"])
    # neither has replaced the other's times
    for together, expected in ((asked, rows), ([*asked, methods.todo(2)], more)):
        again = cost(pipe, chosen, together, repetitions=1, recorded=None)
        assert again["seconds"].tolist() == expected["seconds"].tolist()


def test_cost_of_another_machine_is_used_and_said(pipe, tmp_path):
    chosen = setting(tmp_path, images=1, batch_size=1, steps=1)
    asked = [methods.unmerged(), methods.tome(0.75)]
    cost(pipe, chosen, asked, repetitions=1, recorded=None)
    file = tmp_path / "cost.parquet"
    table = pq.read_table(file)
    (tmp_path / "shipped").mkdir()
    for kind, seconds in (("cpu", 7.0), ("cuda", 8.0)):
        elsewhere = table.to_pandas().assign(device="an abacus", threads=99, seconds=seconds, kind=kind)
        stored = pa.Table.from_pandas(elsewhere, COST.schema, preserve_index=False).replace_schema_metadata(
            table.schema.metadata
        )
        pq.write_table(stored, tmp_path / "shipped/cost.parquet")
        file.unlink(missing_ok=True)
        rows = cost(pipe, chosen, asked, repetitions=1, recorded=tmp_path / "shipped")
        if kind == "cpu":
            assert set(rows["seconds"]) == {7.0}
            told = ("on an abacus, 99 threads", "image 0 (desert) alone", "in turns", " 1 times", "warm-up")
            assert_says(timed_on(rows), *told)
        else:
            assert set(rows["seconds"]) != {8.0}
    file.unlink()
    rows = cost(pipe, chosen, asked, repetitions=1, recorded=tmp_path / "shipped", recompute=True)
    assert "an abacus" not in set(rows["device"])


def test_times_say_which_image_was_timed_also_where_another_one_is_asked_for(pipe, tmp_path):
    chosen = setting(tmp_path, images=2, batch_size=2, steps=1, classes=["volcano"])
    asked = [methods.unmerged()]
    first = timed_on(cost(pipe, chosen, asked, repetitions=1, recorded=None))
    assert_says(first, "images 0 to 1 together", "image 0: volcano", "in turns")
    kept = cost(pipe, replace(chosen, classes=["lighthouse"]), asked, repetitions=1, recorded=None)
    assert timed_on(kept) == first
    table = pq.read_table(tmp_path / "cost.parquet")
    runs = json.loads(table.schema.metadata[b"runs"])
    for run in runs.values():
        assert run.pop("timed") == ["volcano", "volcano"]
    (tmp_path / "shipped").mkdir()
    pq.write_table(
        table.replace_schema_metadata({"runs": json.dumps(runs)}), tmp_path / "shipped/cost.parquet"
    )
    again = replace(chosen, output=str(tmp_path / "own"))
    assert "(image 0: desert)" in timed_on(
        cost(pipe, again, asked, repetitions=1, recorded=tmp_path / "shipped")
    )


def test_speed_ups_are_of_the_same_turn():
    rows = [
        ("unmerged", 0, 4.0),
        ("unmerged", 1, 8.0),
        ("unmerged", 2, 4.0),
        ("a", 1, 4.0),
        ("a", 0, 1.0),
        ("a", 2, 1.0),
    ]
    clock = pd.DataFrame(rows, columns=["method", "repetition", "seconds"])
    found = speed_ups(clock)
    # the ratios are 4, 2 and 4; their logarithms have a standard error of log(2) / 3
    middle, reach = 32 ** (1 / 3), 2 ** (stats.t.ppf(0.975, 2) / 3)
    assert found.loc["a"].tolist() == pytest.approx([middle, middle / reach, middle * reach])
    assert found.loc["unmerged"].tolist() == [1.0, 1.0, 1.0]
    assert found.columns.tolist() == ["speed-up", "speed-up low", "speed-up high"]
    # turned upside down, it is the time, and one method may be set against any other
    expected = [1 / middle, 1 / middle / reach, reach / middle]
    assert list(time_ratio(clock, "a")) == pytest.approx(expected)
    assert list(time_ratio(clock, "unmerged", "a")) == pytest.approx(found.loc["a"].tolist())


def test_one_turn_has_no_interval():
    rows = [("unmerged", 0, 4.0), ("a", 0, 1.0)]
    found = speed_ups(pd.DataFrame(rows, columns=["method", "repetition", "seconds"]))
    assert found.loc["a", "speed-up"] == pytest.approx(4)
    assert found[["speed-up low", "speed-up high"]].isna().all(axis=None)
    assert figures.with_interval(found, "speed-up").tolist() == ["1.00", "4.00"]


def test_block_times_leave_nothing_behind(pipe):
    state = {name: len(module._forward_hooks) for name, module in pipe.unet.named_modules()}
    with timed_blocks(pipe, "cpu") as spent:
        pipe(tiny.prompt("volcano"), num_inference_steps=1, output_type="latent")
    assert len(spent) == 6
    assert all(isinstance(seconds, float) for seconds in spent)
    assert state == {name: len(module._forward_hooks) for name, module in pipe.unet.named_modules()}


def test_summary_and_paired_differences(pipe, tmp_path):
    asked = [methods.unmerged(), methods.ca_tome(0.9, None), methods.ca_tome(0.6, None)]
    found = compare(pipe, setting(tmp_path, images=4, batch_size=4, steps=3), asked, recorded=None)
    table = found.summary(np.random.default_rng(0).normal(size=(50, 128)).astype(np.float32))
    assert np.isinf(table.loc["unmerged", "PSNR"])
    for label in (asked[1].label, asked[2].label):
        row = table.loc[label]
        assert row["PSNR low"] <= row["PSNR"] <= row["PSNR high"]
        assert row["PSNR"] == pytest.approx(found.of(label)["psnr"].mean())
        assert row["FID low"] < row["FID"] < row["FID high"]
        assert row["FID change"] == pytest.approx(row["FID"] - table.loc["unmerged", "FID"])
    assert table.loc[asked[2].label, "share"] > table.loc[asked[1].label, "share"]
    mean, low, high = found.paired("psnr", *asked[1:])
    assert mean == pytest.approx((found.of(asked[1])["psnr"] - found.of(asked[2])["psnr"]).mean(), rel=1e-5)
    assert low <= mean <= high
    assert found.paired("psnr", asked[0], asked[0]) == (0, 0, 0)
    shares = [row.astype(float).mean() for row in found.of(asked[1])["merged_share"]]
    assert found.share_of_image(asked[1]) == pytest.approx((shares[0], np.mean(shares)))
    assert found.share_of_image(asked[1], 3)[0] == pytest.approx(shares[3])
    assert found.share_of_image(asked[1])[1] == pytest.approx(table.loc[asked[1].label, "share"])
    assert np.isnan(found.share_of_image("unmerged")).all()


def test_an_online_schedule_is_counted(pipe, tmp_path):
    chosen = setting(tmp_path, images=1, batch_size=1)
    staleness = 1 - np.eye(5)
    always = searches(pipe, chosen, online(0.8, 0.0), recorded=None)
    once = searches(pipe, chosen, online(0.8, 1.0), recorded=None)
    assert searches_made(once) == 1
    assert staleness_of(once, staleness) == pytest.approx(4 / 5)
    assert 1 < searches_made(always) <= 5
    assert staleness_of(always, staleness) < 4 / 5


def test_searches_are_kept_and_belong_to_their_image_and_method(pipe, tmp_path, monkeypatch):
    chosen = setting(tmp_path, images=3, batch_size=2, steps=6)
    method = online(0.9, 0.4)
    first = searches(pipe, chosen, method, recorded=None)
    assert len(first) == 3
    assert first[0] != first[1]

    def generates(*given):
        raise AssertionError("generated")

    monkeypatch.setattr("catome.study.measure.searches.generate_batch", generates)
    assert searches(pipe, chosen, method, recorded=None) == first
    assert searches(pipe, replace(chosen, images=2), method, recorded=None) == first[:2]
    for other in (replace(chosen, seed=1), replace(chosen, classes=("desert",)), replace(chosen, images=4)):
        with pytest.raises(AssertionError, match="generated"):
            searches(pipe, other, method, recorded=None)


def test_a_folder_of_real_images(tmp_path):
    rng = np.random.default_rng(0)
    modes = {"L": (40, 60), "CMYK": (90, 50, 4), "RGB": (300, 200, 3), "RGBA": (64, 64, 4), "P": (50, 50)}
    for group in ("n01440764", "n01443537"):
        (tmp_path / group).mkdir()
        for i, (mode, shape) in enumerate([*modes.items(), *modes.items()]):
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            image = (
                Image.fromarray(pixels, "L").convert("P") if mode == "P" else Image.fromarray(pixels, mode)
            )
            suffix = "JPEG" if mode in ("L", "CMYK", "RGB") else "png"
            image.save(tmp_path / group / f"ILSVRC2012_val_{i:08}.{suffix}")
    (tmp_path / "n01440764" / "notes.txt").write_text("no image")
    files = image_files(tmp_path)
    assert [file.parent.name for file in files] == ["n01440764"] * 5 + ["n01443537"] * 5
    for file in files:
        image = read_image(file, 48, 32)
        assert image.shape == (48, 32, 3)
        assert image.dtype == np.uint8
    grey = read_image(files[0], 48, 32)
    assert np.array_equal(grey[..., 0], grey[..., 1])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "missing", "must be a folder of images"),
        (lambda folder: folder, "holds 0 images: at least 2"),
    ],
)
def test_a_reference_folder_that_cannot_do(make, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        image_files(make(tmp_path))


def test_a_broken_reference_image_is_named(tmp_path):
    Image.fromarray(tiny.render("volcano", 0)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"b\.jpg is not a whole image"):
        read_image(tmp_path / "b.jpg", 32, 32)


def test_real_images_are_read_once_and_fit(tmp_path, monkeypatch):
    chosen, net = setting(tmp_path), quality.extractor(embedded=True)
    first = real_images(chosen, net, (128, 128), per_class=2)
    assert first.features.shape == (24, 128)
    assert np.array_equal(first.like(1), tiny.render(chosen.names[1], HELD_OUT + 1))
    monkeypatch.setattr(tiny, "render", None)  # not drawn again
    assert np.array_equal(first.features, real_images(chosen, net, (128, 128), per_class=2).features)
    with pytest.raises(ValueError, match="reference=None"):
        real_images(replace(chosen, model="/some/model"), net, (128, 128))
    folder = tmp_path / "real"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((130, 200, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    real = real_images(chosen, net, (128, 128), folder)
    assert real.features.shape == (3, 128)
    assert [int(real.like(i).mean()) for i in range(3)] == [0, 40, 80]
    Image.fromarray(np.full((130, 200, 3), 250, np.uint8)).save(folder / "1.png")
    other = real_images(chosen, net, (128, 128), folder)
    assert other.name != real.name
    assert not np.array_equal(real.features, other.features)


def test_a_folder_for_each_class_gives_images_of_the_class(tmp_path):
    chosen = setting(tmp_path, classes=["desert", "lighthouse"], images=6)
    for i, group in enumerate(["n01", "n02"]):
        (tmp_path / "real" / group).mkdir(parents=True)
        for k in range(2):
            Image.fromarray(np.full((128, 128, 3), 100 * i + 10 * k, np.uint8)).save(
                tmp_path / "real" / group / f"{k}.png"
            )
    real = real_images(chosen, quality.extractor(embedded=True), (128, 128), tmp_path / "real")
    assert [int(real.like(i).mean()) for i in range(6)] == [0, 100, 10, 110, 0, 100]


def test_a_class_without_a_folder_is_named(tmp_path):
    """Its neighbours in the alphabet are no stand-in where other folders have the names of classes."""
    chosen = setting(tmp_path, classes=["desert", "lighthouse"], images=2)
    files = [tmp_path / "real" / group / "0.png" for group in ("light house", "desert")]
    with pytest.raises(ValueError, match="none for 'lighthouse'"):
        files_by_class(chosen, tmp_path / "real", files)


def test_real_images_that_are_dealt_out_in_another_way_are_others(tmp_path):
    folder = tmp_path / "real"
    for i, group in enumerate(["n01", "n02"]):
        (folder / group).mkdir(parents=True)
        Image.fromarray(np.full((128, 128, 3), 100 * i, np.uint8)).save(folder / group / f"{i}.png")
    net = quality.extractor(embedded=True)

    def name(*classes):
        return real_images(setting(tmp_path, classes=list(classes), images=2), net, (128, 128), folder).name

    assert name("desert", "lighthouse") == name("volcano", "desert")  # by their place in both
    (folder / "n01").rename(folder / "desert")
    (folder / "n02").rename(folder / "lighthouse")
    assert name("desert", "lighthouse") != name("lighthouse", "desert")


def test_folders_are_the_classes_of_their_names(tmp_path):
    """Also where the setting names them in another order, or only some of them."""
    for i, group in enumerate(["desert", "lighthouse", "volcano"]):
        (tmp_path / "real" / group).mkdir(parents=True)
        for k in range(2):
            Image.fromarray(np.full((128, 128, 3), 100 * i + 10 * k, np.uint8)).save(
                tmp_path / "real" / group / f"{k}.png"
            )
    files = image_files(tmp_path / "real")
    turned = setting(tmp_path, classes=["lighthouse", "desert"])
    assert [
        [file.parent.name for file in some] for some in files_by_class(turned, tmp_path / "real", files)
    ] == [
        ["lighthouse"] * 2,
        ["desert"] * 2,
    ]
    real = real_images(turned, quality.extractor(embedded=True), (128, 128), tmp_path / "real")
    assert [int(real.like(i).mean()) for i in range(3)] == [100, 0, 110]


def test_folders_that_are_no_classes_are_refused_before_any_work(tmp_path):
    for group in ("a", "b", "c"):
        (tmp_path / "real" / group).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "real" / group / "0.png")
    files = image_files(tmp_path / "real")
    with pytest.raises(ValueError, match=r"has 3 folders.* not .* 2 classes"):
        files_by_class(setting(tmp_path, classes=["desert", "lighthouse"]), tmp_path / "real", files)
    asked = replace(weights.Parameters(classes=["desert", "lighthouse"]), reference=str(tmp_path / "real"))
    with pytest.raises(ValueError, match="has 3 folders"):
        check_reference(asked)


def test_the_folders_of_wordnet_are_imagenets_classes(tmp_path):
    """A setting with some of ImageNet's classes finds each among the thousand folders."""
    known = imagenet_classes()
    files = [tmp_path / f"n{position:08}" / "0.jpg" for position in range(len(known))]
    some = setting(tmp_path, model="/some/model", classes=[known[7], known[2]])
    assert files_by_class(some, tmp_path, files) == [[files[7]], [files[2]]]
    assert files_by_class(some, tmp_path, [tmp_path / f"{i}.jpg" for i in range(3)]) == []


def test_the_psnr_of_bytes_that_wrap():
    """Chapter 3: any two unrelated images come to 27.90 dB when uint8 differences wrap."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 1, 256, 256, 3), dtype=np.uint8)
    wrapped = ((a - b) ** 2).astype(float).mean()
    assert 10 * np.log10(255**2 / wrapped) == pytest.approx(27.90, abs=0.02)
    assert quality.psnr(a, b)[0] == pytest.approx(7.7, abs=0.2)


def test_means_leave_out_what_nothing_changed():
    mean, low, high = quality.mean_interval([30.0, np.inf, 34.0, 38.0])
    assert mean == 34.0
    assert 30 <= low < 34 < high <= 38
    assert quality.mean_interval([np.inf, np.inf]) == (np.inf, np.inf, np.inf)
    assert np.isnan(quality.mean_interval([1.0, np.nan])).all()


def test_the_geometric_mean_of_ratios_and_of_their_inverses():
    """In powers of two the ratios are -1, 1, 2 and 2: their mean is 1, with a standard error of the root of a
    half."""
    reach = 2 ** (stats.t.ppf(0.975, 3) * 0.5**0.5)
    ratios = np.array([0.5, 2.0, 4.0, 4.0])
    assert list(quality.geometric_mean(ratios)) == pytest.approx([2, 2 / reach, 2 * reach])
    assert list(quality.geometric_mean(1 / ratios)) == pytest.approx([1 / 2, 1 / 2 / reach, reach / 2])
    assert quality.geometric_mean([1.0, 1.0]) == (1, 1, 1)
    mean, *interval = quality.geometric_mean([2.0])
    assert mean == pytest.approx(2)
    assert np.isnan(interval).all()
    assert np.isnan(quality.geometric_mean([1.0, np.nan])).all()


def test_metrics_of_too_few_images_are_not_numbers():
    features = np.random.default_rng(0).normal(size=(6, 16))
    assert np.isnan(quality.fid(features[:1], features))
    assert np.isfinite(quality.fid(features[:2], features))


def test_intervals_in_words():
    table = pd.DataFrame(
        {"x": [1.234, np.inf, np.nan], "x low": [1.0, np.inf, np.nan], "x high": [2.0, np.inf, np.nan]}
    )
    assert figures.with_interval(table, "x").tolist() == ["1.23 [1.00,\u00a02.00]", "unchanged", ""]
    assert figures.with_interval(table, "x", 0).tolist()[0] == "1 [1,\u00a02]"
    alone = pd.DataFrame({"x": [1.234], "x low": [np.nan], "x high": [np.nan]})
    assert figures.with_interval(alone, "x").tolist() == ["1.23"]
    assert figures.with_interval(table.iloc[:0], "x").tolist() == []
    assert quality.bracketed((1.234, 1.0, 2.0)) == "1.23 [1.00, 2.00]"
    assert quality.bracketed((1.234, np.nan, np.nan)) == "1.23"


def test_schedules_are_tried_on_images_they_were_not_derived_from(tmp_path):
    unseen, tried = held_out(setting(tmp_path, images=48), 120)
    assert (list(unseen), list(tried)) == ([2, 3, 4], [0, 1])
    assert list(held_out(setting(tmp_path, images=49), 73)[0]) == [3]
    with pytest.raises(ValueError, match=r"drift_images=72 must be above 72: images=49"):
        held_out(setting(tmp_path, images=49), 72)


@pytest.mark.parametrize(
    "method",
    [
        methods.unmerged(),
        methods.tome(0.5),
        methods.tome(0.333, "CONFIG_3"),
        methods.ca_tome(0.9, None),
        methods.ca_tome(-1, (0,)),
        methods.ca_tome(0.7, (0, 5, 9)),
        online(0.9, 0.25),
        methods.tomesd(0.5),
        methods.batch_maximum(0.9, "CONFIG_1", 12),
        methods.todo(3),
        methods.deep_cache(3),
        methods.forecast(4, 2, 3),
        methods.forecast(1, 1, 6, 1.25),
        methods.fewer_steps(17),
        methods.merged_keys(0.7),
        methods.merged_keys(ratio=0.5, stride=(4, 4), weighted=False, measure="cosine", compare="input"),
        methods.together(methods.ca_tome(0.9, "CONFIG_3"), methods.deep_cache(2)),
        from_papers.average_pooling(3),
        from_papers.tofu(0.25),
        from_papers.sito(0.5, 0.2),
        *released.ways_of(released.Parameters(schedule=[0, 3])).values(),
    ],
    ids=str,
)
def test_a_method_is_found_by_its_label(method):
    found = from_label(method.label)
    assert (found.label, found.family) == (method.label, method.family)


@pytest.mark.parametrize(
    "label",
    [
        "",
        "ToMee(ratio=0.5)",
        "ToMe",
        "ToMe(0.5)",
        "ToMe(share=0.5)",
        "ToMe(ratio=half)",
        "unmerged + ",
        "ToMe(ratio=0.50)",
        "SiTo(ratio=0.5)",
        "CA-ToMe as released(threshold=0.9, schedule=CONFIG_3)",
        "CA-ToMe as released(threshold=0.9, schedule=CONFIG_3, by the fullest row, batch=12)",
        "fixed shares(by=step, as t = 0.9, 00000000)",
        "fixed shares(by=image, as t = 0.9, 22215d14)",
        "fixed shares(by=step, as t = 0.123, 22215d14)",
    ],
)
def test_labels_of_no_method(label):
    with pytest.raises(ValueError, match=r"label=|could not convert"):
        from_label(label)


def test_a_label_is_of_the_setting_whose_batch_fills_the_cache(pipe, tmp_path, monkeypatch):
    """Neither the seed nor the number of steps is in the label."""
    filled = []
    monkeypatch.setattr(released, "generate_batch", lambda pipe, *batch: filled.append(batch))
    chosen = setting(tmp_path, images=2, batch_size=2, seed=4)
    kept = "CA-ToMe as released(threshold=0.9, schedule=CONFIG_3, steps from 1, pairs kept)"
    for given in (chosen, None):
        with from_label(kept, given).applied(pipe):
            pass
    (before, images), (recorded, twelve) = filled
    assert (before.seed, before.steps, before.names) == (5, 4, chosen.names[::-1])
    assert (recorded.seed, recorded.steps, recorded.images) == (1, 50, 12)
    assert (images, twelve) == (range(2), range(12))
    with pytest.raises(ValueError, match=r"the nearest is .*batch=2"):
        from_label(kept.removesuffix(")") + ", random dst, by the fullest row, batch=12)", chosen)


def test_without_inception_the_scene_extractor_takes_its_place_and_says_so(monkeypatch):
    def offline(name, *arguments, **options):
        if name == quality.INCEPTION:
            raise URLError("no network")
        return create_feature_extractor(name, *arguments, **options)

    monkeypatch.setattr(quality, "create_feature_extractor", offline)
    with pytest.warns(UserWarning, match=r"Inception's weights .*no network.*drawn scenes only"):
        net = quality.extractor(embedded=False)
    assert net.label == "scene, for want of Inception"
    assert net.name != quality.extractor(embedded=True).name
    scene = tiny.render("volcano", 3)
    large = np.asarray(Image.fromarray(scene).resize((320, 256), Image.Resampling.NEAREST))
    assert net(np.stack([large, large])).shape == (2, 128)
    assert np.allclose(net(scene[None]), quality.extractor(embedded=True)(scene[None]), atol=1e-4)


def test_the_jackknife_leaves_out_one_of_each_class():
    """Classes far apart, each with a spread of 1: of the mean over 10 of each, the standard error is 1 /
    sqrt(120)."""
    rng = np.random.default_rng(3)
    widths = []
    drawn = []
    for _ in range(30):
        order = rng.permutation(120)  # classes in turn would hide groups that are taken in another order
        values = 100.0 * (order % 12) + rng.normal(size=120)
        mean, low, high = quality.jackknife(lambda x: float(x.mean()), values, groups=order // 12)
        widths.append((high - low) / 2 / stats.t.ppf(0.975, 9))
        drawn.append(mean)
        blind = quality.jackknife(lambda x: float(x.mean()), values)
        # groups that change the mixture see the distance of the classes
        assert blind[2] - blind[1] > 10 * (high - low)
    assert np.mean(widths) == pytest.approx(1 / np.sqrt(120), rel=0.15)
    assert np.std(drawn) == pytest.approx(1 / np.sqrt(120), rel=0.4)


def test_the_jackknife_is_the_standard_error_of_a_mean():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=(400,))
    mean, low, high = quality.jackknife(np.mean, values, groups=400)
    assert mean == values.mean()
    assert high - mean == pytest.approx(stats.t.ppf(0.975, 399) * values.std(ddof=1) / 20, rel=1e-6)
    assert low == pytest.approx(2 * mean - high)
    grouped = quality.jackknife(np.mean, values)
    assert grouped[2] - mean == pytest.approx(high - mean, rel=0.5)
    assert np.isnan(quality.jackknife(np.mean, values[:3])[1])
    with pytest.raises(ValueError, match="cannot be paired"):
        quality.jackknife(lambda a, b: 0.0, values, values[:5])


def test_the_jackknife_of_four_groups_covers():
    """With the factor 1.96 of the normal distribution it would hold the mean 86 times of 100."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        _, low, high = quality.jackknife(np.mean, rng.normal(size=48), groups=np.repeat(np.arange(4), 12))
        inside += low <= 0 <= high
    assert 0.93 <= inside / 1000 <= 0.97


def test_the_interval_of_fid_holds_it():
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(500, 32)), rng.normal(size=(60, 32))
    value, low, high = quality.jackknife(lambda sample: quality.fid(sample, real), made)
    assert low < value < high
    change = quality.jackknife(lambda a, b: quality.fid(a, real) - quality.fid(b, real), made + 0.01, made)
    assert change[2] - change[1] < (high - low) / 5  # paired: what both have in common is gone
