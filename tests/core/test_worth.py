import math
import re
import warnings

import pytest
import torch

import catome
from catome.patch import applied_patch
from catome.policy import rates as rates_room
from catome.policy.cost_model import gain, least_share
from catome.policy.rates import Rates, calibrate, kept, rates_of
from helpers.embedded import call, counted_matches, unet_inputs
from helpers.estimates import ESTIMATES

pytestmark = pytest.mark.usefixtures("estimates")
CPU = ESTIMATES["cpu", 4]


def test_nothing_to_merge_changes_no_bit(pipe):
    """Not even by running the images of a batch one by one."""
    inputs = unet_inputs(pipe, ["desert", "volcano", "lighthouse"])
    plain = call(pipe, inputs)
    with catome.patched(pipe, catome.PAPER, threshold=1.0):
        assert torch.equal(call(pipe, inputs), plain)
        assert all(not plan.merged_share.any() for plan in applied_patch(pipe).cached())
    with catome.probe(pipe) as record, catome.patched(pipe, catome.PAPER, threshold=1.0):
        call(pipe, inputs)
    assert record.merged_share().tolist() == [[[0.0] * 3] * 5]


@pytest.mark.parametrize("amount", [dict(threshold=0.5), dict(ratio=0.5)])
def test_few_tokens_are_left_alone_and_not_even_looked_at(pipe, amount, monkeypatch):
    searches = counted_matches(monkeypatch)
    few, many = unet_inputs(pipe, ["desert"], size=(8, 8)), unet_inputs(pipe, ["desert"], size=(32, 32))
    plain = call(pipe, few)
    with catome.patched(pipe, catome.PAPER, **amount):
        assert not torch.equal(call(pipe, few), plain)
        assert searches
    searches.clear()
    with catome.patched(pipe, catome.PAPER, **amount, only_where_faster=True):
        assert torch.equal(call(pipe, few), plain)
        assert not searches
        merged = call(pipe, many)
        assert searches
    with catome.patched(pipe, catome.PAPER, **amount):
        assert torch.equal(merged, call(pipe, many))


def test_each_image_steps_aside_by_its_own_share(pipe, monkeypatch):
    """Between the shares of two images, one is merged as without the option and the other is left alone."""
    inputs = unet_inputs(pipe, ["desert", "volcano"])
    alone = {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    with catome.patched(pipe, catome.PAPER, threshold=0.8):
        call(pipe, inputs)
        free = applied_patch(pipe).cached()[0]
    low, high = sorted(free.merged_share.tolist())
    assert 0 < low < high
    monkeypatch.setattr(
        "catome.runtime.config.least_share",
        lambda *_, **given: (low + high) / 2 if given["interval"] == math.inf else 0,
    )
    with catome.patched(pipe, catome.PAPER, threshold=0.8, only_where_faster=True):
        call(pipe, inputs)
        plan = applied_patch(pipe).cached()[0]
        call(pipe, alone)
        one = applied_patch(pipe).cached()[0]
    kept = int(free.merged_share.argmax())
    assert torch.equal(plan.pairs(kept), free.pairs(kept))
    assert not len(plan.pairs(1 - kept))
    assert torch.equal(one.pairs(0), plan.pairs(0))
    x = torch.randn(2, 1024, 3)
    assert torch.equal(plan.unmerge(plan.merge(x))[1 - kept], x[1 - kept])


@pytest.mark.parametrize("compare", ["keys", "input"])
def test_the_channels_that_count_are_those_of_the_tokens(pipe, monkeypatch, compare):
    """Not twice as many where keys and values are compared side by side."""
    asked = set()
    real = least_share

    def watched(tokens, channels, *rest, **given):
        asked.add((tokens, channels))
        return real(tokens, channels, *rest, **given)

    monkeypatch.setattr("catome.runtime.config.least_share", watched)
    with catome.patched(pipe, compare=compare):
        call(pipe, unet_inputs(pipe, ["desert"]))
    assert asked == {(1024, 64)}


def test_the_model_is_what_its_words_say():
    tokens, channels = 1024, 320
    rates = Rates(flops=1.0, bytes=math.inf, launch=0.0)
    saved = 4 * tokens**2 * channels * (1 - 0.5**2) + 8 * tokens * channels**2 * 0.5
    assert gain(tokens, channels, 0.5, rates, 4) == saved
    assert gain(tokens, channels, 0.5, rates, 4, interval=4) == saved - 0.375 * tokens**2 * channels / 4
    assert gain(tokens, channels, 0.5, rates, 4, parts=(False, True, True)) == 28 * tokens * channels**2 * 0.5
    keys = 4 * tokens**2 * channels * 0.5
    assert gain(tokens, channels, 0.5, rates, 4, keep_queries=True) == keys + 4 * tokens * channels**2 * 0.5
    assert gain(tokens, channels, 0.5, rates, 4, keep_queries=True, at_the_call=True) == keys
    moving = Rates(math.inf, 1.0, 0.0)
    assert gain(tokens, channels, 0.5, moving, 2) == -3 * tokens * channels * 2
    assert gain(tokens, channels, 0.5, moving, 2, keep_queries=True) == -1.5 * tokens * channels * 2
    assert (
        gain(tokens, channels, 0.5, moving, 2, keep_queries=True, at_the_call=True)
        == -3 * tokens * channels * 2
    )
    assert gain(tokens, channels, 0.5, Rates(math.inf, math.inf, 2.0), 2, parts=(True, True, True)) == -18


def test_the_least_share_is_where_the_gain_begins():
    for tokens in (256, 1024, 4096, 16384):
        for rates, itemsize in ((CPU, 4), (ESTIMATES["cuda", 2], 2)):
            share = least_share(tokens, 320, rates, itemsize, interval=4.0)
            if share == math.inf:
                assert gain(tokens, 320, 0.75, rates, itemsize, interval=4.0) <= 0
                continue
            assert gain(tokens, 320, share, rates, itemsize, interval=4.0) > 0
            assert gain(tokens, 320, share - 0.01, rates, itemsize, interval=4.0) <= 0
    shares = [least_share(tokens, 320, ESTIMATES["cuda", 2], 2) for tokens in (256, 1024, 4096, 16384)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == math.inf
    assert shares[-1] < 0.1


def test_a_search_at_every_step_asks_for_a_larger_share():
    x = torch.zeros(1, 1024, 64)
    asked = {}
    for name, schedule in {"every step": None, "CONFIG_3": "CONFIG_3", "once": (0,)}.items():
        config = catome.PAPER.changed(schedule=schedule, only_where_faster=True)
        asked[name] = config.least_share(x, matched=False)
        assert config.least_share(x, matched=True) == asked.setdefault(
            "matched", config.least_share(x, matched=True)
        )
    assert asked["every step"] > asked["CONFIG_3"] > asked["once"] == asked["matched"] > 0
    assert catome.PAPER.least_share(x, matched=False) == 0


def test_rates_are_of_the_device_and_the_precision():
    assert rates_of(torch.zeros(1)) is CPU
    assert rates_of(torch.zeros(1).half()) is ESTIMATES["cpu", 2]
    assert rates_of(torch.zeros(1, device="meta").bfloat16()) is ESTIMATES["cpu", 2]


@pytest.mark.parametrize(
    ("arguments", "error", "names"),
    [
        (dict(only_where_faster="yes"), TypeError, "only_where_faster='yes'"),
        (dict(only_where_faster=1), TypeError, "only_where_faster=1"),
    ],
)
def test_wrong_arguments_are_named(pipe, arguments, error, names):
    with pytest.raises(error, match=names):
        catome.apply_patch(pipe, catome.PAPER, **arguments)
    assert applied_patch(pipe) is None


# Measured rates


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of its own, and no rates in memory."""
    monkeypatch.setenv("CATOME_CACHE", str(tmp_path / "cache"))
    rates_room._rates.cache_clear()
    yield tmp_path / "cache"
    rates_room._rates.cache_clear()


def test_measured_rates_take_the_place_of_estimates(cache):
    x = torch.zeros(1, 4, 4)
    assert rates_of(x) is CPU
    measured = calibrate()
    assert rates_of(x) == measured != CPU
    rates_room._rates.cache_clear()
    assert rates_of(x) == measured, "as another process reads it"
    assert rates_of(x.half()) is ESTIMATES["cpu", 2], "of another dtype nothing is known"
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert rates_of(x) is CPU, "nor of another number of threads"
    finally:
        torch.set_num_threads(threads)
    assert 1e9 < measured.flops < 1e14
    assert 1e8 < measured.bytes < 1e13
    assert 1e-7 < measured.launch < 1e-2


def test_rates_of_several_kinds_are_kept_beside_each_other(cache):
    one = calibrate()
    other = calibrate(dtype=torch.bfloat16)
    assert set(kept().values()) == {one, other}
    assert [path.name for path in cache.iterdir()] == ["rates.json"]


@pytest.mark.parametrize(
    "broken", ["", "[]", '{"a": 1}', '{"a": {"flops": 1}}', '{"a": {"flops": "x", "bytes": 1, "launch": 1}}']
)
def test_a_broken_file_of_rates_is_said_and_not_used(cache, broken):
    cache.mkdir()
    (cache / "rates.json").write_text(broken)
    if broken:
        with pytest.warns(UserWarning, match="rates.json cannot be read"):
            assert kept() == {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        measured = calibrate()
        assert kept() == {rates_room.key_of(torch.device("cpu"), 4): measured}


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (dict(device="nowhere"), ValueError, "device='nowhere'"),
        (dict(dtype=torch.int32), TypeError, "dtype=torch.int32 must be a floating-point type"),
        (dict(dtype="float32"), TypeError, "dtype='float32' must be a floating-point type"),
        (dict(dtype=torch.float8_e4m3fn), TypeError, "of at least 16 bits"),
    ],
)
def test_what_cannot_be_calibrated_is_named(cache, arguments, error, says):
    with pytest.raises(error, match=re.escape(says)):
        calibrate(**arguments)
    assert not cache.exists()
