import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import catome
from catome.tensors.matching import MEASURES, split_tokens
from helpers import reference


def smooth_tokens(batch, height, width, channels=6, seed=0, noise=0.3):
    """Tokens that vary smoothly over the grid, so that similarities spread over a wide range."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, channels, 3, 3, generator=generator)
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    x = x + noise * torch.randn(x.shape, generator=generator)
    return x.flatten(2).transpose(1, 2).contiguous()


by_measure = pytest.mark.parametrize("measure", MEASURES)


@by_measure
@pytest.mark.parametrize(
    ("height", "width", "stride"), [(6, 8, (2, 2)), (7, 5, (2, 2)), (6, 9, (3, 2)), (4, 4, (4, 4))]
)
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 0.7, 0.95])
def test_threshold_equals_the_naive_reference(height, width, stride, threshold, measure):
    tokens = smooth_tokens(2, height, width).double()
    plan = catome.match(tokens, (height, width), threshold=threshold, stride=stride, measure=measure)
    x = torch.randn(2, height * width, 4, generator=torch.Generator().manual_seed(1)).double()
    result = plan.unmerge(torch.tanh(plan.merge(x)))
    for image in range(2):
        rows = tokens[image].tolist()
        similarity = reference.cosine if measure == "cosine" else reference.nearness(rows)
        pairs, _ = reference.pairs_above(rows, height, width, threshold, *stride, similarity)
        assert plan.pairs(image).tolist() == [list(pair) for pair in pairs]

        def tanh(rows):
            return [[math.tanh(value) for value in row] for row in rows]

        expected = torch.tensor(
            reference.merge_and_unmerge(x[image].tolist(), pairs, tanh), dtype=torch.float64
        )
        torch.testing.assert_close(result[image], expected, atol=1e-12, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    batch=st.integers(1, 3),
    stride=st.sampled_from([(1, 2), (2, 1), (2, 2)]),
    amount=st.one_of(
        st.fixed_dictionaries({"threshold": st.floats(-1, 1)}),
        st.fixed_dictionaries({"ratio": st.floats(0, 0.5)}),
    ),
    dst=st.sampled_from(["top_left", "random"]),
    seed=st.integers(0, 99),
)
def test_any_plan_is_consistent(height, width, batch, stride, amount, dst, seed):
    tokens = smooth_tokens(batch, height, width, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    plan = catome.match(tokens, (height, width), stride=stride, dst=dst, generator=generator, **amount)
    src, dst_tokens = split_tokens((height, width), stride, dst, torch.Generator().manual_seed(seed))
    assert sorted([*src.tolist(), *dst_tokens.tolist()]) == list(range(height * width))
    for image in range(batch):
        pairs = plan.pairs(image)
        assert set(pairs[:, 0].tolist()) <= set(src.tolist())
        assert set(pairs[:, 1].tolist()) <= set(dst_tokens.tolist())
        assert plan.lengths[image] == height * width - len(pairs)
        if "ratio" in amount:
            assert len(pairs) == min(int(amount["ratio"] * height * width), len(src))
    x = torch.randn(batch, height * width, 3)
    packed = plan.merge(x)
    assert packed.shape == (sum(plan.lengths), 3)
    # a mean keeps sums: every group weighs as much as its tokens
    sizes = torch.bincount(plan.slot.flatten(), minlength=len(packed))
    assert sizes.min() >= 1
    torch.testing.assert_close((packed * sizes[:, None]).sum(0), x.sum((0, 1)), atol=1e-4, rtol=1e-4)
    # merging what was unmerged changes nothing
    torch.testing.assert_close(plan.merge(plan.unmerge(packed)), packed, atol=1e-5, rtol=1e-5)
    assert [len(part) for part in plan.split(packed)] == list(plan.lengths)


@by_measure
def test_an_image_does_not_depend_on_its_neighbours(measure):
    """The rule of the authors' code, the batch's maximum count, would merge pairs below the threshold
    here."""
    calm, rough = smooth_tokens(1, 8, 8, noise=0.01), smooth_tokens(1, 8, 8, noise=2.0, seed=5)
    together = catome.match(torch.cat([calm, rough]), (8, 8), threshold=0.9, measure=measure)
    assert together.lengths[0] < together.lengths[1]
    for image, tokens in enumerate((calm, rough)):
        alone = catome.match(tokens, (8, 8), threshold=0.9, measure=measure)
        assert torch.equal(alone.pairs(0), together.pairs(image))
        x = torch.randn(1, 64, 5)
        both = torch.cat([x, x])
        assert torch.equal(alone.merge(x), together.split(together.merge(both))[image])


@by_measure
def test_one_merges_exact_duplicates_only(measure):
    tokens = torch.randn(1, 64, 8)
    tokens[0, 9] = tokens[0, 36]  # src, equal to a dst far away
    tokens[0, 1] = 3 * tokens[0, 0]  # same direction, not the same token
    tokens[0, 3] = tokens[0, 2] * (1 + 1e-6)
    assert catome.match(tokens, (8, 8), threshold=1.0, measure=measure).pairs(0).tolist() == [[9, 36]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distance_is_the_same_from_wherever_it_is_seen(dtype):
    """A vector that all tokens have in common, another unit of length, a rotation: no pair changes. Cosines
    do."""
    tokens = smooth_tokens(2, 8, 8).to(dtype)
    common = torch.randn(6, generator=torch.Generator().manual_seed(3)).to(dtype)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(4)).double())[0].to(
        dtype
    )
    found = catome.best_matches(tokens, (8, 8), measure="distance")
    moved = catome.best_matches(5 * (tokens + 3 * common) @ rotation, (8, 8), measure="distance")
    torch.testing.assert_close(moved.similarity, found.similarity, atol=1e-4, rtol=0)
    assert torch.equal(moved.best, found.best)
    before, after = (catome.best_matches(x, (8, 8)).similarity for x in (tokens, tokens + 3 * common))
    assert (after - before).abs().mean() > 0.05


def test_two_tokens_at_random_are_not_similar_by_distance():
    """The scale of an image: 0 on average over all pairs of its tokens, 1 for equal ones."""
    tokens = smooth_tokens(1, 8, 8).double()[0] + 4
    similarity = reference.nearness(tokens.tolist(), lowest=-math.inf)
    rows = tokens.tolist()
    assert sum(similarity(a, b) for a in rows for b in rows) == pytest.approx(0, abs=1e-9)
    assert similarity(rows[3], rows[3]) == 1


def test_an_image_of_one_colour_is_all_alike_by_distance():
    tokens = torch.full((2, 64, 8), 0.3)
    tokens[1] = smooth_tokens(1, 8, 8, channels=8)[0]
    plan = catome.match(tokens, (8, 8), threshold=0.999, measure="distance")
    assert plan.lengths[0] == 16
    assert plan.lengths[1] > 50


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_an_exact_duplicate_is_found_among_parallel_tokens(dtype):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        tokens = torch.randn(2, 64, 8, generator=generator).to(dtype)
        tokens[0, 9] = tokens[0, 36]
        # dst tokens of exactly the same direction
        tokens[0, 0], tokens[0, 2] = 2 * tokens[0, 36], 4 * tokens[0, 36]
        tokens[1, 11] = tokens[1, 13] = tokens[1, 50] = 0
        tokens[1, 50, 3] = -0.0  # a dst token; zeros are equal
        plan = catome.match(tokens, (8, 8), threshold=1.0)
        assert plan.pairs(0).tolist() == [[9, 36]]
        assert plan.pairs(1).tolist() == [[11, 50], [13, 50]]


@by_measure
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_dst_token_that_is_not_finite_is_nobodys_partner(bad, measure):
    tokens = torch.randn(2, 256, 8, generator=torch.Generator().manual_seed(0))
    healthy = catome.best_matches(tokens, (16, 16), measure=measure)
    tokens[0, 0] = bad
    found = catome.best_matches(tokens, (16, 16), measure=measure)
    others = healthy.best[0] != 0
    assert torch.equal(found.best[0][others], healthy.best[0][others])
    assert not (found.best[0] == 0).any()
    assert torch.equal(found.best[1], healthy.best[1])
    for amount in (dict(ratio=0.5), dict(threshold=-1.0)):
        tokens[0, 7] = bad  # a src token: it merges with none by a threshold
        pairs = catome.match(tokens, (16, 16), **amount, measure=measure).pairs(0)
        assert len(pairs) == (128 if "ratio" in amount else 191)
        assert not ((pairs == 0) | (pairs == 7)).any()
    nowhere = tokens.clone()
    nowhere[0, healthy.dst] = bad
    assert len(catome.match(nowhere, (16, 16), threshold=-1.0, measure=measure).pairs(0)) == 0


def test_not_finite_and_zero_tokens_stay_alone():
    tokens = torch.ones(1, 16, 4)
    tokens[0, 1], tokens[0, 4], tokens[0, 7] = float("nan"), float("inf"), 0.0
    plan = catome.match(tokens, (4, 4), threshold=0.5)
    assert not {1, 4, 7} & set(plan.pairs(0)[:, 0].tolist())
    assert len(plan.pairs(0)) == 12 - 3
    by_ratio = catome.match(tokens, (4, 4), ratio=0.5)
    assert not {1, 4} & set(by_ratio.pairs(0)[:, 0].tolist())


@by_measure
def test_chunks_give_what_the_whole_matrix_gives(monkeypatch, measure):
    tokens = smooth_tokens(2, 16, 16)
    whole = catome.best_matches(tokens, (16, 16), measure=measure)
    monkeypatch.setattr("catome.tensors.matching._CHUNK_ELEMENTS", 1000)
    pieces = catome.best_matches(tokens, (16, 16), measure=measure)
    assert torch.equal(whole.best, pieces.best)
    torch.testing.assert_close(whole.similarity, pieces.similarity)


def test_random_dst_is_a_token_of_each_window_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first = split_tokens((6, 8), (2, 2), "random", torch.Generator().manual_seed(1))[1]
    again = split_tokens((6, 8), (2, 2), "random", torch.Generator().manual_seed(1))[1]
    other = split_tokens((6, 8), (2, 2), "random", torch.Generator().manual_seed(2))[1]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    windows = {(token // 8 // 2, token % 8 // 2) for token in first.tolist()}
    assert len(windows) == len(first) == 12


def test_half_precision_is_summed_in_float32():
    tokens = torch.ones(1, 4096, 2)
    plan = catome.match(tokens, (64, 64), threshold=0.9)
    x = torch.full((1, 4096, 2), 100.0, dtype=torch.float16)  # the sum of a group overflows float16
    assert plan.lengths == (1024,)
    assert torch.equal(plan.merge(x), torch.full((1024, 2), 100.0, dtype=torch.float16))


def test_gradients_pass():
    plan = catome.match(smooth_tokens(1, 4, 4), (4, 4), ratio=0.5)
    x = torch.randn(1, 16, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: plan.unmerge(plan.merge(x) ** 2), (x,))


def test_a_plan_can_be_pickled_and_moved():
    plan = catome.match(smooth_tokens(2, 4, 4), (4, 4), threshold=0.8)
    copy = pickle.loads(pickle.dumps(plan)).to("cpu")
    x = torch.randn(2, 16, 3)
    assert torch.equal(copy.unmerge(copy.merge(x)), plan.unmerge(plan.merge(x)))


def test_empty_batch():
    plan = catome.match(torch.empty(0, 16, 3), (4, 4), threshold=0.5)
    assert plan.unmerge(plan.merge(torch.empty(0, 16, 3))).shape == (0, 16, 3)


good = dict(tokens=torch.randn(1, 16, 4), grid=(4, 4), threshold=0.5)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(ratio=0.5), ValueError, "exactly one of them, both were given"),
        (dict(threshold=None), ValueError, "exactly one of them, neither was given"),
        (dict(threshold=1.5), ValueError, "threshold=1.5 must be between -1 and 1"),
        (dict(threshold=float("nan")), ValueError, "threshold=nan must be between"),
        (dict(threshold="0.5"), TypeError, "threshold='0.5' must be a number"),
        (dict(threshold=True), TypeError, "threshold=True"),
        (dict(threshold=None, ratio=0.8), ValueError, "ratio=0.8 must be between 0 and 0.75"),
        (dict(threshold=None, ratio=-0.1), ValueError, "ratio=-0.1"),
        (dict(threshold=None, ratio=float("nan")), ValueError, "ratio=nan"),
        (dict(threshold=None, ratio=0.6, stride=(1, 2)), ValueError, "between 0 and 0.5"),
        (dict(stride=(1, 1)), ValueError, "stride=(1, 1)"),
        (dict(stride=2), TypeError, "stride=2 must be two integers"),
        (dict(stride=(2, 0)), ValueError, "stride[1]=0"),
        (dict(stride=(2, 2.0)), TypeError, "stride[1]=2.0"),
        (dict(stride=(8, 8)), ValueError, "smaller than one window"),
        (dict(grid=(4, 5)), ValueError, "N = 20 for grid=(4, 5)"),
        (dict(grid=16), TypeError, "grid=16"),
        (dict(tokens=torch.randn(16, 4)), ValueError, "tokens of shape [16, 4] must be [B, N, C]"),
        (dict(tokens=torch.ones(1, 16, 4).long()), TypeError, "torch.int64"),
        (dict(tokens=[[1.0]]), TypeError, "tokens must be a floating-point tensor, not list"),
        (dict(dst="middle"), ValueError, "dst='middle' must be 'top_left' or 'random'"),
    ],
)
def test_bad_input_is_named(change, error, says):
    with pytest.raises(error) as caught:
        catome.match(**{**good, **change})
    assert says in str(caught.value)


def test_a_plan_refuses_what_does_not_fit_it():
    plan = catome.match(**good)
    with pytest.raises(ValueError, match=r"x of shape \[1, 9, 4\] does not fit"):
        plan.merge(torch.randn(1, 9, 4))
    with pytest.raises(ValueError, match=r"y of shape \[99, 4\] does not fit"):
        plan.unmerge(torch.randn(99, 4))


@by_measure
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_an_image_lies_in_the_batch_does_not_matter(dtype, measure):
    """Whole numbers have many equal cosines, and an odd size begins each image at another alignment in
    memory."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        tokens = torch.randint(-1, 3, (3, 25, 5), generator=generator).to(dtype)
        found = catome.best_matches(tokens, (5, 5), (2, 1), measure=measure)
        for image in range(3):
            alone = catome.best_matches(tokens[image : image + 1].clone(), (5, 5), (2, 1), measure=measure)
            assert torch.equal(alone.best[0], found.best[image])
            assert torch.equal(alone.similarity[0], found.similarity[image])
