"""Metrics, methods, and the studies that put them together."""

from dataclasses import replace

import numpy as np
import pytest
import torch_fidelity
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from test_results import setting

import catome
from catome import tiny
from catome.study import methods, quality
from catome.study.compare import compare, cost, timed_blocks
from catome.study.generate import generate_batch
from catome.tiny.features import LAYER, register


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
    assert quality.precision_recall(a, b) == pytest.approx((direct["precision"], direct["recall"]))
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


def test_fid_infinity_takes_the_bias_away():
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(20_000, 16))
    sample = rng.normal(size=(300, 16))
    biased = quality.fid(sample, reference)
    assert biased > 0.2
    assert abs(quality.fid_infinity(sample, reference)) < biased / 4


def test_paired_intervals_are_narrower():
    rng = np.random.default_rng(0)
    images = rng.normal(size=200)
    a, b = images + rng.normal(size=200) * 0.1, images + rng.normal(size=200) * 0.1 + 0.05
    low, high = quality.bootstrap(lambda x, y: (y - x).mean(), a, b)
    assert 0 < low < 0.05 < high < 0.1
    alone = quality.mean_interval(a)
    assert alone[2] - alone[1] > 5 * (high - low)
    with pytest.raises(ValueError, match="cannot be paired"):
        quality.bootstrap(lambda x, y: 0.0, a, b[:-1])


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
    methods.ca_tome(0.9, "auto"),
    methods.batch_maximum(0.9, None),
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
    with methods.batch_maximum(0.9, None).applied(pipe), catome.probe(pipe) as record:
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


def test_compare_and_its_record(pipe, tmp_path, monkeypatch):
    made = []
    real = generate_batch

    def counted(pipe, chosen, images, *rest):
        made.append(list(images))
        return real(pipe, chosen, images, *rest)

    monkeypatch.setattr("catome.study.compare.generate_batch", counted)
    chosen, asked = setting(tmp_path), [methods.unmerged(), methods.ca_tome(0.9, None), methods.tome(0.5)]
    found = compare(pipe, chosen, asked, recorded=None)
    assert made == [[0, 1]] * 3 + [[2]] * 3
    assert found.rows.groupby("method").size().tolist() == [3, 3, 3]
    assert np.isinf(found.of("unmerged")["psnr"]).all()
    assert len(found.of("unmerged")["merged_share"][0]) == 0
    row = found.of(asked[1]).iloc[2]
    assert len(row["merged_share"]) == 5
    plain = quality.to_uint8(real(pipe, chosen, range(2, 3)))
    with catome.patched(pipe, threshold=0.9, schedule=None), catome.probe(pipe) as record:
        images = quality.to_uint8(real(pipe, chosen, range(2, 3)))
    assert row["psnr"] == pytest.approx(quality.psnr(images, plain)[0], abs=0.5)
    assert np.allclose(row["merged_share"].astype(float), record.merged_share()[:, :, 1].mean(1), atol=5e-3)
    assert np.allclose(found.of(asked[2])["merged_share"][0].astype(float), 0.5, atol=1e-3)
    assert found.features(asked[1]).shape == (3, 128)
    made.clear()
    compare(pipe, chosen, asked, recorded=None)
    assert made == []
    compare(pipe, chosen, [*asked, methods.tome(0.25)], recorded=None)
    assert made == [[0, 1], [0, 1], [2], [2]]  # the unmerged images to compare with, and the new method
    made.clear()
    compare(pipe, replace(chosen, guidance=3.0), asked[:1], recorded=None)
    assert made == [[0, 1], [2]]
    with pytest.raises(ValueError, match="each may be named once"):
        compare(pipe, chosen, [methods.tome(0.5), methods.tome(0.5)])
    with catome.patched(pipe), pytest.raises(ValueError, match="pipe is patched"):
        compare(pipe, chosen, asked)


def test_cost(pipe, tmp_path):
    chosen, asked = setting(tmp_path, images=1, batch_size=1, steps=2), [methods.unmerged(), methods.tome(0.75)]
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


def test_block_times_leave_nothing_behind(pipe):
    state = {name: len(module._forward_hooks) for name, module in pipe.unet.named_modules()}
    with timed_blocks(pipe, "cpu") as spent:
        pipe(tiny.prompt("volcano"), num_inference_steps=1, output_type="latent")
    assert len(spent) == 6
    assert all(isinstance(seconds, float) for seconds in spent)
    assert state == {name: len(module._forward_hooks) for name, module in pipe.unet.named_modules()}
