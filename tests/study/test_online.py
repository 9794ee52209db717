"""A schedule that decides while it runs."""

import itertools
import math

import pytest
import torch

import catome
from catome.patch import applied_patch
from catome.study import methods
from catome.study.online import Outdated, broken_share, online


def smooth(batch, seed, size=16, channels=16):
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randn(batch, channels, size // 4, size // 4, generator=generator)
    grid = torch.nn.functional.interpolate(grid, size=(size, size), mode="bilinear")
    return grid.flatten(2).transpose(1, 2) + 0.1 * torch.randn(
        batch, size * size, channels, generator=generator
    )


def test_broken_pairs_are_those_below_the_floor():
    before = smooth(3, 0)
    now = 0.8 * before + 0.2 * smooth(3, 1)
    now[2] = before[2]
    plan = catome.match(before, (16, 16), threshold=0.9)
    found = broken_share(plan, now, 0.9)
    for image in range(3):
        pairs = plan.pairs(image)
        a, b = now[image][pairs[:, 0]], now[image][pairs[:, 1]]
        similarity = torch.nn.functional.cosine_similarity(a, b, dim=-1)
        assert found[image].item() == pytest.approx((similarity < 0.9).float().mean().item(), abs=1e-6)
    assert 0 < found[0] < 1
    assert found[2] == 0
    apart = broken_share(plan, now, torch.tensor([0.9, -1.0, 0.9]))
    assert torch.equal(apart, torch.stack([found[0], found[2], found[2]]))


def test_a_plan_without_pairs_has_nothing_to_reuse():
    tokens = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    plan = catome.match(tokens, (8, 8), threshold=0.99)
    assert len(plan.pairs(0)) == 0
    assert broken_share(plan, tokens, 0.99).tolist() == [1, 1]
    tokens[0, 5] = float("nan")
    everything = catome.match(torch.ones(2, 64, 32), (8, 8), threshold=0.5)
    assert broken_share(everything, tokens, -1.0)[0] > 0  # a token that is not finite is similar to none


def test_tolerance_decides_how_often_pairs_are_found(pipe, generate):
    made = {}
    for tolerance in (0.0, 0.3, 1.0):
        with online(0.8, tolerance).applied(pipe), catome.probe(pipe) as record:
            generate(["volcano"], steps=10)
        plans = [record.at(step, 0).plan.target[1] for step in record.steps()]
        made[tolerance] = 1 + sum(not torch.equal(a, b) for a, b in itertools.pairwise(plans))
    assert made[1.0] == 1  # a share is never above 1
    assert made[1.0] < made[0.3] <= made[0.0]


def latents(seed, batch=1):
    return torch.randn(batch, 4, 32, 32, generator=torch.Generator().manual_seed(seed))


def call(pipe, sample, step):
    """The output of the U-Net at a step of a generation."""
    text = torch.zeros(len(sample), 77, pipe.unet.config.cross_attention_dim)
    with torch.no_grad():
        return pipe.unet(sample, 500 - step, text).sample


def test_pairs_that_all_hold_are_kept_without_any_tolerance(pipe):
    """Nothing is broken, which is no more than is tolerated."""
    with online(-1.0, 0.0).applied(pipe):
        for step in range(6):
            call(pipe, latents(0), step)
        found = {attention.found_at for attention in catome.summary(pipe).attentions}
    assert found == {(0,)}  # no pair is below the threshold of -1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_image(pipe, bad):
    """It gets new pairs, and those of the other images are kept."""
    seen, found = [], []
    for sick in (False, True):
        with online(0.5, 0.3).applied(pipe):
            for step in range(2):
                # so little that a healthy image keeps its pairs
                sample = latents(0, batch=3) + 0.02 * latents(1 + step, batch=3)
                if sick and step == 1:
                    sample[1, 2, 5, 3] = bad
                output = call(pipe, sample, step)
            plans = applied_patch(pipe).cached()
            assert all((plan.merged_share[[0, 2]] > 0).all() for plan in plans)
            seen.append((output, [plan.target for plan in plans]))
            found.append({attention.found_at for attention in catome.summary(pipe).attentions})
    (healthy, pairs), (ill, pairs_ill) = seen
    assert found == [{(0,)}, {(0, 1)}]
    assert not ill[1].isfinite().all()
    assert not any(torch.equal(a[1], b[1]) for a, b in zip(pairs, pairs_ill, strict=True))
    for image in (0, 2):
        torch.testing.assert_close(ill[image], healthy[image], atol=1e-5, rtol=0)
        assert all(torch.equal(a[image], b[image]) for a, b in zip(pairs, pairs_ill, strict=True))


def test_a_patch_over_it_gives_it_back(pipe):
    """It decides again when another patch, which was there for a while, is gone."""
    with online(0.8, 0.0).applied(pipe):
        rule = applied_patch(pipe).rule
        with catome.patched(pipe):
            assert applied_patch(pipe).rule.outdated is None
        assert applied_patch(pipe).rule == rule
        for step in range(3):
            call(pipe, latents(0) + 0.3 * latents(1 + step), step)
        found = {attention.found_at for attention in catome.summary(pipe).attentions}
    assert found == {(0, 1, 2)}
    assert applied_patch(pipe) is None


def test_a_forecast_beside_it_goes_on_by_its_rule(pipe):
    """As beside every method that the configuration alone does not describe."""
    with methods.together(online(0.8, 0.1), methods.forecast()).applied(pipe):
        rule = applied_patch(pipe).rule
        assert rule.outdated == Outdated(0.1)
        assert rule.config.forecast is not None
    with methods.together(methods.batch_maximum(0.8, None, 2), methods.forecast()).applied(pipe):
        assert applied_patch(pipe).rule.choose is methods.fullest_row
    with methods.forecast().applied(pipe):
        assert not applied_patch(pipe).config.merge_attn
    assert applied_patch(pipe) is None


def test_no_tolerance_leaves_no_pair_below_the_threshold(pipe, generate):
    with online(0.8, 0.0).applied(pipe), catome.probe(pipe, keep_tokens=True) as record:
        generate(["volcano", "desert"], steps=5)
    for seen in record.generations[0]:
        for image in range(4):
            pairs, tokens = seen.plan.pairs(image), seen.tokens[image]
            similarity = torch.nn.functional.cosine_similarity(
                tokens[pairs[:, 0]], tokens[pairs[:, 1]], dim=-1
            )
            assert (similarity > 0.8 - 2e-5).all()


def test_each_image_has_checkpoints_of_its_own(pipe, generate):
    """Alone or in a batch: the same pairs at every step."""
    names = ["desert", "city at night", "volcano"]
    pipe.unet.double(), pipe.text_encoder.double(), pipe.vae.double()
    try:
        with online(0.8).applied(pipe):
            with catome.probe(pipe) as together:
                generate(names, steps=6, seed=5)
            for i, name in enumerate(names):
                with catome.probe(pipe) as alone:
                    generate([name], steps=6, seed=5 + i)
                for step in together.steps():
                    for block in range(5):
                        assert torch.equal(alone.pairs(step, block, 1), together.pairs(step, block, 3 + i))
    finally:
        pipe.unet.float(), pipe.text_encoder.float(), pipe.vae.float()
