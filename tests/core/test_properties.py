"""Properties that hold for any tokens, any grid, any batch, any schedule."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import catome
from catome.policy.schedule import parse_schedule
from catome.policy.staleness import derive, total_staleness
from catome.runtime.steps import CallFacts, Timeline
from catome.study.online import broken_share, pair_similarity
from catome.tensors.matching import split_tokens
from catome.tensors.plan import pack

some = settings(max_examples=50, deadline=None)

STRIDES = [(1, 2), (2, 1), (2, 2), (3, 2), (1, 3)]
# all but float64 in float32
BAND = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}


def make_tokens(kind, batch, count, channels, seed):
    """float64 ``[B, N, C]``: in all directions, around one, or of few small integers (equal, parallel and
    zero tokens)."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "few integers":
        return torch.randint(-1, 3, (batch, count, channels), generator=generator).double()
    tokens = torch.randn(batch, count, channels, generator=generator, dtype=torch.float64)
    return (
        tokens
        if kind == "everywhere"
        else tokens + 1.5 * torch.randn(channels, generator=generator, dtype=torch.float64)
    )


@st.composite
def problems(draw, kinds=("everywhere", "around one", "few integers"), batch=None, dtypes=(torch.float64,)):
    """Tokens, and the arguments with which `catome.match` is to divide them into dst and src."""
    stride = draw(st.sampled_from(STRIDES))
    grid = draw(st.integers(stride[0], 8)), draw(st.integers(stride[1], 8))
    seed = draw(st.integers(0, 10_000))
    batch = draw(st.integers(1, 3)) if batch is None else batch
    tokens = make_tokens(draw(st.sampled_from(kinds)), batch, math.prod(grid), draw(st.integers(2, 7)), seed)
    return tokens.to(draw(st.sampled_from(dtypes))), Division(
        grid, stride, draw(st.sampled_from(["top_left", "random"])), seed
    )


class Division:
    def __init__(self, grid, stride, dst, seed):
        self.grid, self.stride, self.dst, self.seed = grid, stride, dst, seed

    def __repr__(self):
        return f"Division{vars(self)}"

    @property
    def arguments(self):
        """With a new generator each time, so that "random" draws the same dst tokens."""
        generator = torch.Generator().manual_seed(self.seed)
        return dict(grid=self.grid, stride=self.stride, dst=self.dst, generator=generator)

    def match(self, tokens, **amount):
        return catome.match(tokens, **self.arguments, **amount)

    def matches(self, tokens):
        return catome.best_matches(tokens, **self.arguments)

    def split(self):
        return split_tokens(**self.arguments)

    @property
    def most(self):
        return (math.prod(self.stride) - 1) / math.prod(self.stride)


below_one = st.floats(-1, 0.999)


@st.composite
def amounts(draw, division):
    """A threshold or a ratio that this division allows."""
    if draw(st.booleans()):
        return dict(threshold=draw(st.one_of(below_one, st.just(1.0))))
    return dict(ratio=draw(st.floats(0, division.most)))


def random_plan(data, kinds=("everywhere", "around one", "few integers")):
    tokens, division = data.draw(problems(kinds))
    return tokens, division, division.match(tokens, **data.draw(amounts(division)))


def values(plan, channels=3, seed=1):
    return torch.randn(
        *plan.slot.shape, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-12)


# Merging and unmerging


@some
@given(st.data())
def test_merging_and_unmerging_is_an_orthogonal_projection(data):
    """Twice is once, it is linear, and what it takes away is at right angles to what it leaves."""
    _, _, plan = random_plan(data)
    x, y = values(plan), values(plan, seed=2)

    def project(x):
        return plan.unmerge(plan.merge(x))

    close(project(project(x)), project(x))
    close(project(2 * x - 3 * y), 2 * project(x) - 3 * project(y))
    close((project(x) * y).sum(), (x * project(y)).sum(), atol=1e-10)
    assert (plan.target == torch.arange(x.shape[1])).all() or not torch.equal(project(x), x)


@some
@given(st.data(), st.floats(-1e3, 1e3))
def test_constants_are_preserved(data, constant):
    _, _, plan = random_plan(data)
    x = torch.full((*plan.slot.shape, 2), constant, dtype=torch.float64)
    packed = plan.merge(x)
    close(packed, x[0, 0].expand_as(packed), atol=1e-12 * max(1.0, abs(constant)))
    # and no group's mean leaves the range of its image
    x = values(plan)
    for image, tokens in zip(x, plan.split(plan.merge(x)), strict=True):
        assert (tokens <= image.amax(0) + 1e-12).all()
        assert (tokens >= image.amin(0) - 1e-12).all()


@some
@given(st.data())
def test_each_image_keeps_its_mean_when_its_groups_weigh_as_much_as_their_tokens(data):
    _, _, plan = random_plan(data)
    x = values(plan)
    sizes = torch.bincount(plan.slot.flatten())
    assert len(sizes) == sum(plan.lengths)
    assert sizes.min() >= 1
    for image, (tokens, weights) in enumerate(
        zip(plan.split(plan.merge(x)), sizes.split(plan.lengths), strict=True)
    ):
        assert weights.sum() == x.shape[1]
        close((tokens * weights[:, None]).sum(0) / x.shape[1], x[image].mean(0))


@some
@given(
    batch=st.integers(1, 3),
    kept=st.integers(1, 6),
    merged=st.integers(0, 9),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_any_assignment_of_tokens_to_kept_ones_is_merged_group_by_group(batch, kept, merged, seed, data):
    """`pack` knows nothing of windows or similarity; slots are the kept tokens, image by image, in token
    order."""
    count, generator = kept + merged, torch.Generator().manual_seed(seed)
    target = torch.arange(count).repeat(batch, 1)
    for image in range(batch):
        order = torch.randperm(count, generator=generator)
        share = data.draw(st.integers(0, merged))
        dst, src = order[:kept], order[kept : kept + share]
        target[image, src] = dst[torch.randint(kept, (share,), generator=generator)]
    plan = pack(target)
    x = values(plan)
    packed, row = plan.merge(x), 0
    for image in range(batch):
        for token in range(count):
            if target[image, token] == token:
                group = target[image] == token
                assert (plan.slot[image][group] == row).all()
                close(packed[row], x[image][group].mean(0))
                row += 1
    assert len(packed) == row == plan.bounds[-1]
    assert plan.bounds.diff().tolist() == list(plan.lengths)
    assert torch.equal(plan.unmerge(packed), packed[plan.slot])


# The images of a batch


@some
@given(problems(batch=3), st.permutations(range(3)), st.data())
def test_permuting_the_images_permutes_the_plan(problem, order, data):
    tokens, division = problem
    amount = data.draw(amounts(division))
    plan, permuted = division.match(tokens, **amount), division.match(tokens[order], **amount)
    assert torch.equal(permuted.target, plan.target[order])
    assert permuted.lengths == tuple(plan.lengths[image] for image in order)
    x = values(plan)
    parts, permuted_parts = plan.split(plan.merge(x)), permuted.split(permuted.merge(x[order]))
    assert all(torch.equal(permuted_parts[place], parts[image]) for place, image in enumerate(order))


@some
@given(problems(dtypes=(torch.float64, torch.float32, torch.bfloat16)), st.data())
def test_the_plan_of_a_batch_is_that_of_its_images_alone(problem, data):
    tokens, division = problem
    amount = data.draw(amounts(division))
    together = division.match(tokens, **amount)
    for image in range(len(tokens)):
        alone = division.match(tokens[image : image + 1], **amount)
        assert torch.equal(alone.target[0], together.target[image])
        assert alone.lengths == together.lengths[image : image + 1]
        assert torch.equal(alone.slot[0] + sum(together.lengths[:image]), together.slot[image])


# Who is merged


@some
@given(problems(dtypes=(torch.float64, torch.float32)), below_one, below_one)
def test_a_higher_threshold_merges_no_token_that_a_lower_one_leaves(problem, a, b):
    tokens, division = problem
    low, high = (division.match(tokens, threshold=threshold) for threshold in sorted((a, b)))
    merged = high.target != torch.arange(tokens.shape[1])
    assert torch.equal(high.target[merged], low.target[merged])
    assert all(few <= many for few, many in zip(low.lengths, high.lengths, strict=True))


@some
@given(st.data())
def test_dst_tokens_are_always_kept_and_src_tokens_merge_only_into_them(data):
    tokens, division, plan = random_plan(data)
    src, dst = division.split()
    assert (plan.target[:, dst] == dst).all()
    into = plan.target[:, src]
    assert (torch.isin(into, dst) | (into == src)).all()
    assert all(len(dst) <= length <= tokens.shape[1] for length in plan.lengths)


@some
@given(
    problems(dtypes=(torch.float64, torch.float32, torch.float16, torch.bfloat16)),
    st.one_of(below_one, st.sampled_from([0.0, 0.5, 0.9])),
)
def test_exactly_the_pairs_at_or_above_the_threshold_are_merged(problem, threshold):
    """By similarities computed anew, token by token in float64; rounding may decide within a narrow band
    only."""
    tokens, division = problem
    plan, band, (src, dst) = division.match(tokens, threshold=threshold), BAND[tokens.dtype], division.split()
    for image, exact in enumerate(tokens.double()):
        length = exact.norm(dim=-1)
        cosine = exact[src] @ exact[dst].T / (length[src, None] * length[dst]).clamp(min=1e-300)
        best = cosine.amax(1)
        merged = plan.target[image][src] != src
        assert (best[merged] >= threshold - band).all()
        assert (best[~merged] < threshold + band).all()
        pairs = plan.pairs(image)
        assert torch.equal(pairs[:, 0], src[merged])
        chosen = cosine[merged, torch.searchsorted(dst, pairs[:, 1].contiguous())]
        assert (chosen >= best[merged] - band).all()


@some
@given(problems(dtypes=(torch.float64, torch.float32)), st.data())
def test_a_threshold_that_is_a_tokens_own_similarity_merges_it(problem, data):
    """At the threshold is enough, and the next number above it is too much."""
    tokens, division = problem
    matches = division.matches(tokens)
    similarity = matches.similarity[0, data.draw(st.integers(0, len(matches.src) - 1))]
    assume(-1 < similarity < 0.999)
    for threshold in (similarity, similarity.nextafter(torch.ones_like(similarity))):
        merged = catome.make_plan(matches, threshold=threshold.item()).target[:, matches.src] != matches.src
        assert torch.equal(merged, matches.similarity >= threshold)


@some
@given(problems(), st.data())
def test_a_ratio_merges_exactly_its_count_and_the_most_similar(problem, data):
    tokens, division = problem
    count = tokens.shape[1]
    shares = [division.most, *(number / count for number in range(count) if number / count <= division.most)]
    ratio = data.draw(st.one_of(st.floats(0, division.most), st.sampled_from(shares)))
    plan, matches = division.match(tokens, ratio=ratio), division.matches(tokens)
    assert plan.lengths == (count - int(ratio * count),) * len(tokens)
    merged = plan.target[:, matches.src] != matches.src
    assert (merged.sum(1) == int(ratio * count)).all()
    for similarity, chosen in zip(matches.similarity, merged, strict=True):
        if chosen.any() and not chosen.all():
            assert similarity[chosen].min() >= similarity[~chosen].max()


@some
@given(problems(dtypes=(torch.float64, torch.float32)), st.data())
def test_doubling_and_halving_tokens_changes_no_bit_of_a_plan(problem, data):
    """Powers of two, another for each token: all roundings are the same then."""
    tokens, division = problem
    amount = data.draw(amounts(division).filter(lambda amount: amount.get("threshold") != 1.0))
    generator = torch.Generator().manual_seed(division.seed)
    factor = 2.0 ** torch.randint(-12, 13, (*tokens.shape[:2], 1), generator=generator)
    scaled = tokens * factor.to(tokens.dtype)
    assume(not torch.equal(scaled, tokens))
    assert torch.equal(division.match(scaled, **amount).target, division.match(tokens, **amount).target)


@some
@given(problems(kinds=("everywhere", "around one")), below_one)
def test_scaling_tokens_by_any_positive_factor_changes_no_pair(problem, threshold):
    tokens, division = problem
    generator = torch.Generator().manual_seed(division.seed + 1)
    factor = torch.empty(*tokens.shape[:2], 1, dtype=torch.float64).uniform_(0.01, 100, generator=generator)
    matches = division.matches(tokens)
    assume(((matches.similarity - threshold).abs() > 1e-9).all())  # rounding decides nothing here
    assert torch.equal(
        division.match(tokens * factor, threshold=threshold).target,
        catome.make_plan(matches, threshold).target,
    )


@some
@given(problems(dtypes=(torch.float32, torch.float16, torch.bfloat16)), st.data())
def test_pairs_just_found_are_not_broken(problem, data):
    """Pairs of the same tokens have what an online schedule asks of pairs, also where one just reaches the
    threshold."""
    tokens, division = problem
    matches = division.matches(tokens)
    ratio, threshold = data.draw(st.floats(0, division.most)), data.draw(below_one)
    just = [value for value in matches.similarity.flatten()[:12].tolist() if -1 < value < 0.999]
    for amount in (dict(ratio=ratio), *(dict(threshold=value) for value in (threshold, *just))):
        plan = catome.make_plan(matches, **amount)
        weakest, merged = pair_similarity(plan, tokens).amin(1), plan.merged_share > 0
        assert (weakest[merged] >= amount.get("threshold", -1.0) - 1e-5).all()
        assert torch.equal(broken_share(plan, tokens, amount.get("threshold", weakest)), (~merged).float())
        # a floor above the weakest pair breaks it
        assert (broken_share(plan, tokens, weakest + 1e-3)[merged] > 0).all()


# Schedules


@st.composite
def staleness(draw, most=7):
    """Small integers, which have many equal optima, or any finite costs."""
    steps = draw(st.integers(1, most))
    cost = draw(st.sampled_from([st.integers(0, 3), st.floats(0, 1e3)]))
    return [draw(st.lists(cost, min_size=steps, max_size=steps)) for _ in range(steps)]


def brute_force(cost, budget):
    """The least cost, and of the schedules that pay it the one whose last checkpoints are earliest."""
    every = [(0, *rest) for rest in itertools.combinations(range(1, len(cost)), budget - 1)]
    paid = {}
    for schedule in every:
        steps = range(len(cost))
        last = [max(checkpoint for checkpoint in schedule if checkpoint <= step) for step in steps]
        paid[schedule] = math.fsum(cost[i][j] for i, j in zip(last, steps, strict=True) if i != j)
    least = min(paid.values())
    return least, min(
        (schedule for schedule in every if paid[schedule] == least), key=lambda schedule: schedule[::-1]
    )


@some
@given(staleness(), st.integers(1, 7))
@example([[0, 1, 1], [0, 0, 1], [0, 0, 0]], 2)  # of two optima the one that comes first
@example([[0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 0, 1], [0, 0, 0, 0]], 2)
def test_a_derived_schedule_is_the_best_of_all(cost, budget):
    budget = min(budget, len(cost))
    found = derive(cost, budget)
    least, first = brute_force(cost, budget)
    assert total_staleness(cost, found) == pytest.approx(least, rel=1e-9, abs=1e-9)
    # sums of floats may tell equal optima apart
    if all(isinstance(value, int) for row in cost for value in row):
        assert found == first
    assert len(found) == budget
    assert list(found) == sorted(set(found))
    assert parse_schedule(found).at(len(cost)) == found


@some
@given(staleness(most=14))
def test_a_larger_budget_never_costs_more_and_the_largest_nothing(cost):
    paid = [total_staleness(cost, derive(cost, budget)) for budget in range(1, len(cost) + 1)]
    assert all(more <= less + 1e-9 for less, more in itertools.pairwise(paid))
    assert paid[-1] == 0
    assert paid[0] == pytest.approx(sum(cost[0][1:]))


@some
@given(staleness(), st.floats(0.01, 100), st.data())
def test_what_is_not_reused_does_not_count(cost, unit, data):
    """Only i < j is read, and the unit of staleness does not matter."""
    budget = data.draw(st.integers(1, len(cost)))
    junk = [[value if i < j else -99.0 for j, value in enumerate(row)] for i, row in enumerate(cost)]
    assert derive(junk, budget) == derive(cost, budget)
    scaled = derive([[unit * value for value in row] for row in cost], budget)
    assert total_staleness(cost, scaled) == pytest.approx(
        total_staleness(cost, derive(cost, budget)), rel=1e-9, abs=1e-9
    )


valid = st.sets(st.integers(1, 200), max_size=20).map(lambda steps: [0, *steps]).flatmap(st.permutations)
collections = st.sampled_from(
    [
        list,
        tuple,
        set,
        frozenset,
        iter,
        np.array,
        lambda steps: dict.fromkeys(steps),
        lambda steps: (s for s in steps),
    ]
)


@some
@given(valid, collections)
def test_any_order_and_any_collection_of_valid_steps_is_a_schedule(steps, collection):
    parsed = parse_schedule(collection(steps))
    assert parsed.steps == tuple(sorted(steps))
    assert all(type(step) is int for step in parsed.steps)
    assert parsed.length is None
    assert parse_schedule(parsed) == parsed


def with_one_more(draw, steps, extra):
    place = draw(st.integers(0, len(steps)))
    return [*steps[:place], extra, *steps[place:]]


@some
@given(valid, st.sampled_from([list, tuple, iter]), st.data())
def test_a_schedule_with_one_thing_wrong_is_refused(steps, collection, data):
    """Wherever in the collection it stands; the message names what is wrong."""
    wrong = data.draw(st.sampled_from(["repeated", "negative", "flag", "fraction", "text"]))
    repeated, negative = data.draw(st.sampled_from(steps)), data.draw(st.integers(-99, -1))
    extra, error, says = {
        "repeated": (
            data.draw(st.sampled_from([repeated, np.int64(repeated)])),
            ValueError,
            f"repeats step {repeated}",
        ),
        "negative": (negative, ValueError, f"the negative step {negative}"),
        "flag": (data.draw(st.booleans()), TypeError, "must be integers"),
        "fraction": (data.draw(st.floats(1, 99)), TypeError, "must be integers"),
        "text": (str(repeated), TypeError, "must be integers"),
    }[wrong]
    with pytest.raises(error, match="schedule=") as caught:
        parse_schedule(collection(with_one_more(data.draw, steps, extra)))
    assert says in str(caught.value)


@some
@given(valid, st.sampled_from([list, tuple, set, iter]))
def test_a_schedule_without_the_first_step_is_refused(steps, collection):
    with pytest.raises(ValueError, match="lacks step 0"):
        parse_schedule(collection([step for step in steps if step]))


class Counted:
    """Calls of a model, and whether each begins a generation."""

    def __init__(self):
        self.timeline = Timeline()
        self.generation = None
        self.step = -1

    def advance(self, timestep, sample=None):
        generation, _ = self.timeline.locate(CallFacts(timestep, sample))
        began = generation is not self.generation
        self.generation = generation
        self.step = generation.step
        return began


def latents(image, step):
    """Those of one image are alike from step to step, and those of different images are not."""
    generator = torch.Generator().manual_seed(image)
    noise = torch.randn(1, 256, generator=torch.Generator().manual_seed(1000 * (image + 1) + step))
    return torch.randn(1, 256, generator=generator) + 0.1 * noise


some_generations = st.lists(
    st.lists(st.integers(1, 999), min_size=1, max_size=8, unique=True), min_size=1, max_size=6
)


@some
@given(some_generations, st.booleans(), st.booleans())
@example([[7], [7], [7, 5], [6, 3]], False, False)
@example([[9], [8], [9, 8], [7], [5]], False, True)
def test_steps_are_counted_from_zero_in_each_generation(generations, as_tensors, rising):
    """Of timesteps that are plain numbers or tensors of their own: another image begins a generation wherever
    it begins, but for the very timestep of the last call, at which it is one more image of the same step."""
    counted = Counted()
    last = None
    for image, timesteps in enumerate(sorted(timesteps, reverse=not rising) for timesteps in generations):
        for step, timestep in enumerate(timesteps):
            assume(step or timestep != last)
            given = torch.tensor(timestep) if as_tensors else timestep
            assert counted.advance(given, latents(image, step)) == (step == 0)
            assert counted.step == step
        last = timesteps[-1]


@some
@given(some_generations, st.booleans(), st.booleans())
def test_timesteps_that_turn_begin_a_generation_of_whatever_image(generations, as_tensors, rising):
    counted = Counted()
    timesteps = [sorted(timesteps, reverse=not rising) for timesteps in generations if len(timesteps) > 1]
    turns = [after[0] - before[-1] for before, after in itertools.pairwise(timesteps)]
    assume(all(turn < 0 if rising else turn > 0 for turn in turns))
    for generation in timesteps:
        for step, timestep in enumerate(generation):
            given = torch.tensor(timestep) if as_tensors else timestep
            assert counted.advance(given, latents(0, 0)) == (step == 0)
            assert counted.step == step


@some
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.booleans())
def test_views_of_a_timetable_count_steps_whichever_way_it_runs(lengths, rising):
    """A timetable set anew begins a generation, and so does an earlier place in the same one."""
    counted = Counted()
    for length in lengths:
        timetable = torch.arange(10, 10 + length + 1)
        timetable = timetable if rising else timetable.flip(0)
        for _ in range(2):
            for step, timestep in enumerate(timetable):
                assert counted.advance(timestep, latents(0, 0)) == (step == 0)
                assert counted.step == step


@pytest.mark.parametrize("stride", [(1, 2), (1, 3), (3, 1), (2, 3), (1, 7), (7, 1), (5, 7)])
def test_the_largest_ratio_merges_all_that_is_src(stride):
    """However 1 - 1/n is rounded."""
    grid = (stride[0] * 2, stride[1] * 3)
    tokens = torch.randn(2, grid[0] * grid[1], 3, generator=torch.Generator().manual_seed(0))
    plan = catome.match(tokens, grid, ratio=1 - 1 / (stride[0] * stride[1]), stride=stride)
    assert set(plan.lengths) <= {6, 7}
    with pytest.raises(ValueError, match="share of src tokens"):
        catome.match(tokens, grid, ratio=1 - 1 / (stride[0] * stride[1]) + 1e-6, stride=stride)


def test_infinite_tokens_are_no_duplicates():
    tokens = torch.ones(1, 16, 3)
    tokens[0, :8, 1] = torch.inf
    plan = catome.match(tokens, (4, 4), threshold=1.0)
    assert plan.pairs(0)[:, 0].tolist() == [9, 11, 12, 13, 14, 15]
    assert plan.merge(tokens).isfinite().all(1).sum() == 2
