"""``schedule="auto"``."""

import itertools

import pytest
import torch

import catome
from catome.policy.refresh import broken_share, weakest_pair
from catome.policy.schedule import Auto


def smooth(batch, seed, size=16, channels=16):
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randn(batch, channels, size // 4, size // 4, generator=generator)
    grid = torch.nn.functional.interpolate(grid, size=(size, size), mode="bilinear")
    return grid.flatten(2).transpose(1, 2) + 0.1 * torch.randn(
        batch, size * size, channels, generator=generator
    )


@pytest.mark.parametrize("measure", ["cosine", "distance"])
def test_broken_pairs_are_those_below_the_floor(measure):
    before = smooth(3, 0)
    now = 0.8 * before + 0.2 * smooth(3, 1)
    now[2] = before[2]
    plan = catome.match(before, (16, 16), threshold=0.9, measure=measure)
    found = broken_share(plan, now, 0.9, measure)
    for image in range(3):
        pairs = plan.pairs(image)
        a, b = now[image][pairs[:, 0]], now[image][pairs[:, 1]]
        similarity = torch.nn.functional.cosine_similarity(a, b, dim=-1)
        if measure == "distance":
            similarity = 1 - (a - b).square().sum(-1) / (2 * now[image].var(0, correction=0).sum())
        assert found[image].item() == pytest.approx((similarity < 0.9).float().mean().item(), abs=1e-6)
    assert 0 < found[0] < 1
    assert found[2] == 0
    apart = broken_share(plan, now, torch.tensor([0.9, -1.0, 0.9]), measure)
    assert torch.equal(apart, torch.stack([found[0], found[2], found[2]]))


def test_a_plan_without_pairs_has_nothing_to_reuse():
    tokens = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
    plan = catome.match(tokens, (8, 8), threshold=0.99)
    assert len(plan.pairs(0)) == 0
    assert broken_share(plan, tokens, 0.99).tolist() == [1, 1]
    assert weakest_pair(plan, tokens).tolist() == [1, 1]
    tokens[0, 5] = float("nan")
    everything = catome.match(torch.ones(2, 64, 32), (8, 8), threshold=0.5)
    assert broken_share(everything, tokens, -1.0)[0] > 0  # a token that is not finite is similar to none


@pytest.mark.parametrize("measure", ["cosine", "distance"])
def test_the_floor_of_a_fixed_share_is_its_weakest_pair(measure):
    tokens = smooth(2, 0)
    plan = catome.match(tokens, (16, 16), ratio=0.5, measure=measure)
    matches = catome.best_matches(tokens, (16, 16), measure=measure)
    expected = matches.similarity.topk(128, dim=1).values[:, -1]
    torch.testing.assert_close(weakest_pair(plan, tokens, measure), expected, atol=1e-5, rtol=0)
    assert broken_share(plan, tokens, expected, measure).tolist() == [0, 0]


@pytest.mark.parametrize("amount", [dict(threshold=0.8), dict(ratio=0.5)])
def test_tolerance_decides_how_often_pairs_are_found(pipe, generate, amount):
    made = {}
    for tolerance in (0.0, 0.3, 1.0):
        with (
            catome.patched(pipe, catome.PAPER, **amount, schedule=Auto(tolerance)),
            catome.probe(pipe) as record,
        ):
            generate(["volcano"], steps=10)
        plans = [record.at(step, 0).plan.target[1] for step in record.steps()]
        made[tolerance] = 1 + sum(not torch.equal(a, b) for a, b in itertools.pairwise(plans))
    assert made[1.0] == 1  # a share is never above 1
    assert made[1.0] < made[0.3] <= made[0.0]


def test_pairs_that_all_hold_are_kept_without_any_tolerance(pipe):
    """Nothing is broken, which is no more than is tolerated."""
    unet = pipe.unet
    sample = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(1, 77, unet.config.cross_attention_dim)
    times = torch.arange(500, 494, -1)
    with catome.patched(unet, catome.PAPER, threshold=-1.0, schedule=Auto(0.0)), torch.no_grad():
        for timestep in times:
            unet(sample, timestep, text)
        found = {attention.found_at for attention in catome.summary(unet).attentions}
    assert found == {(0,)}  # no pair is below the threshold of -1


def test_no_tolerance_leaves_no_pair_below_the_threshold(pipe, generate):
    with (
        catome.patched(pipe, catome.PAPER, threshold=0.8, schedule=Auto(0.0)),
        catome.probe(pipe, keep_tokens=True) as record,
    ):
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
        with catome.patched(pipe, catome.PAPER, threshold=0.8, schedule="auto"):
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


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Auto(tolerance=1.5), "tolerance=1.5 must be between 0 and 1"),
        (lambda: Auto(tolerance="low"), "tolerance='low' must be a number"),
        (lambda: catome.parse_schedule("atuo"), "did you mean 'auto'"),
    ],
)
def test_bad_values_are_named(make, says):
    with pytest.raises((TypeError, ValueError), match=says.replace("(", r"\(")):
        make()


def test_random_dst_tokens_cannot_be_compared(pipe):
    with pytest.raises(ValueError, match="dst='random'"):
        catome.apply_patch(pipe, catome.PAPER, schedule="auto", dst="random")
