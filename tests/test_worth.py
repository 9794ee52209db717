import math

import pytest
import torch
from test_patch import call, counted_matches, unet_inputs

import catome
from catome.patch import applied_patch
from catome.policy.cost_model import RATES, Rates, gain, least_share, rates_of

CPU = RATES["cpu", 4]


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
        "catome.runtime.config.least_share", lambda *_, **given: (low + high) / 2 if given["interval"] == math.inf else 0
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


def test_the_model_is_what_its_words_say():
    tokens, channels = 1024, 320
    rates = Rates(flops=1.0, bytes=math.inf, launch=0.0)
    saved = 4 * tokens**2 * channels * (1 - 0.5**2) + 8 * tokens * channels**2 * 0.5
    assert gain(tokens, channels, 0.5, rates, 4) == saved
    assert gain(tokens, channels, 0.5, rates, 4, interval=4) == saved - 0.375 * tokens**2 * channels / 4
    assert gain(tokens, channels, 0.5, rates, 4, parts=(False, True, True)) == 28 * tokens * channels**2 * 0.5
    assert gain(tokens, channels, 0.5, Rates(math.inf, 1.0, 0.0), 2) == -3 * tokens * channels * 2
    assert gain(tokens, channels, 0.5, Rates(math.inf, math.inf, 2.0), 2, parts=(True, True, True)) == -18


def test_the_least_share_is_where_the_gain_begins():
    for tokens in (256, 1024, 4096, 16384):
        for rates, itemsize in ((CPU, 4), (RATES["cuda", 2], 2)):
            share = least_share(tokens, 320, rates, itemsize, interval=4.0)
            if share == math.inf:
                assert gain(tokens, 320, 0.75, rates, itemsize, interval=4.0) <= 0
                continue
            assert gain(tokens, 320, share, rates, itemsize, interval=4.0) > 0
            assert gain(tokens, 320, share - 0.01, rates, itemsize, interval=4.0) <= 0
    shares = [least_share(tokens, 320, RATES["cuda", 2], 2) for tokens in (256, 1024, 4096, 16384)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == math.inf
    assert shares[-1] < 0.1


def test_a_search_at_every_step_asks_for_a_larger_share():
    x = torch.zeros(1, 1024, 64)
    asked = {}
    for name, schedule in {"every step": None, "CONFIG_3": "CONFIG_3", "once": (0,)}.items():
        config = catome.PAPER.changed(schedule=schedule, only_where_faster=True)
        asked[name] = config.least_share(x, matched=False)
        assert config.least_share(x, matched=True) == asked.setdefault("matched", config.least_share(x, matched=True))
    assert asked["every step"] > asked["CONFIG_3"] > asked["once"] == asked["matched"] > 0
    assert catome.PAPER.least_share(x, matched=False) == 0


def test_rates_are_of_the_device_and_the_precision():
    assert rates_of(torch.zeros(1)) is CPU
    assert rates_of(torch.zeros(1).half()) is RATES["cpu", 2]
    assert rates_of(torch.zeros(1, device="meta").bfloat16()) is RATES["cpu", 2]


@pytest.mark.parametrize(
    ("arguments", "error", "names"),
    [
        (dict(only_where_faster="yes"), TypeError, "only_where_faster='yes'"),
        (dict(only_where_faster=1), TypeError, "only_where_faster=1"),
        (dict(only_where_faster=True, schedule="auto"), ValueError, "schedule='auto'"),
    ],
)
def test_wrong_arguments_are_named(pipe, arguments, error, names):
    with pytest.raises(error, match=names):
        catome.apply_patch(pipe, catome.PAPER, **arguments)
    assert applied_patch(pipe) is None
