"""Tests of where a call of a model is told to be: timetables, values, conditions, and whose pairs serve it.

No model is needed."""

import math

import pytest
import torch

from catome.runtime import steps
from catome.runtime.steps import CallFacts, Timeline, timetable_of

TIMES = torch.arange(50, 0, -1) * 20 - 19
"""Fifty timesteps that fall, as a scheduler plans them."""

FALLING = [981.0, 800.5, 620.0, 441.0, 261.0, 81.0]


def latents(image: int, share: float = 0.0, rows: int = 1) -> torch.Tensor:
    """The latents of an image when this share of its way is done: those of one image are alike from step to
    step."""
    generator = torch.Generator().manual_seed(image)
    noise = torch.randn(rows, 4, 8, 8, generator=generator)
    clean = torch.randn(rows, 4, 8, 8, generator=generator)
    angle = share * math.pi / 2
    return noise * math.cos(angle) + clean * math.sin(angle)


def prompt(seed: int) -> torch.Tensor:
    return torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(seed))


class Walk:
    """Calls of a model, each of which leaves pairs behind in the name of its caller, as a patch would."""

    def __init__(self):
        self.timeline = Timeline()

    def call(self, who, timestep, sample, text=None, **facts):
        """Make a call; returns whose pairs serve it, None where it finds its own."""
        self.generation, self.condition = self.timeline.locate(CallFacts(timestep, sample, text, **facts))
        owner = self.condition.plans.get("pairs")
        self.condition.plans["pairs"] = who
        return owner

    @property
    def step(self):
        return self.generation.step


def where(timesteps, planned=None, image=0):
    """The step of each call of one generation, and how many generations it was taken for."""
    walk = Walk()
    found = []
    generations = []
    for i, timestep in enumerate(timesteps):
        walk.call("it", timestep, latents(image, i / len(timesteps)), planned=planned)
        found.append(walk.step)
        generations.append(walk.generation)
    return found, len({id(generation) for generation in generations})


# Timetables

VIEWS = {
    "number": lambda times, i: times[i],
    "expanded": lambda times, i: times[i].expand(4),
    "expanded to one": lambda times, i: times[i].expand(1),
    "slice": lambda times, i: times[i : i + 1],
    "new axis": lambda times, i: times[i][None],
    "unbound": lambda times, i: times.unbind()[i],
    "reshaped": lambda times, i: times[i].reshape(1),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("planned", [False, True], ids=["bare", "planned"])
def test_a_view_lies_at_a_place_of_its_timetable(view, planned):
    timesteps = [view(TIMES, i) for i in range(50)]
    assert all(timetable_of(timestep) is not None for timestep in timesteps)
    found, generations = where(timesteps, TIMES if planned else None)
    assert found == list(range(50))
    assert generations == 1


COPIES = {
    "cloned": lambda times, i: times[i].clone(),
    "repeated": lambda times, i: times[i].repeat(2),
    "int": lambda times, i: int(times[i]),
    "float": lambda times, i: float(times[i]) / 1000,
    "another dtype": lambda times, i: times[i].double(),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_timestep_is_placed_by_its_value(copy):
    timesteps = [copy(TIMES, i) for i in range(50)]
    assert all(timetable_of(timestep) is None for timestep in timesteps)
    found, generations = where(timesteps)
    assert found == list(range(50))
    assert generations == 1


@pytest.mark.parametrize("planned", [False, True], ids=["bare", "planned"])
@pytest.mark.parametrize(
    "times",
    [
        torch.tensor([981, 961, 961, 941, 921, 901, 881, 861, 841, 821, 801]),  # PLMS
        torch.tensor([900.0, 800.0, 800.0, 700.0, 700.0, 600.0, 600.0, 500.0, 500.0]),  # Heun
        torch.linspace(0, 1, 12),  # rising
        torch.tensor([999, 599]),  # two
        torch.tensor([1.0, 0.75, 0.5, 0.25]),
    ],
    ids=["PLMS", "Heun", "rising", "two", "four"],
)
def test_every_place_of_a_timetable_is_a_step(times, planned):
    found, generations = where(list(times), times if planned else None)
    assert found == list(range(len(times)))
    assert generations == 1


def test_a_planned_timetable_may_go_up_and_down():
    """RePaint goes back and forth; a timetable that nobody planned and that does so is none."""
    times = torch.tensor([9, 8, 7, 8, 9, 8, 7, 6, 5, 6, 7, 6, 5, 4])
    assert where(list(times), times) == (list(range(14)), 1)
    assert where(list(times))[1] > 1


@pytest.mark.parametrize("planned", [False, True], ids=["bare", "planned"])
def test_going_back_begins_a_generation(planned):
    walk = Walk()
    known = TIMES if planned else None
    for image in ("first", "second", "third"):
        owners = []
        for i in range(0, 50, 1 if image == "first" else 2):
            owners.append(walk.call(image, TIMES[i], latents(7, i / 50), planned=known))
        assert owners[0] is None, "the same latents, and yet another generation"
        assert set(owners[1:]) == {image}
    assert walk.step == 48


@pytest.mark.parametrize("begin", [1, 17, 40, 49])
@pytest.mark.parametrize("planned", [False, True], ids=["bare", "planned"])
def test_a_generation_may_begin_in_the_middle(begin, planned):
    found, generations = where(list(TIMES[begin:]), TIMES if planned else None)
    assert found == list(range(50 - begin))
    assert generations == 1


def test_one_generation_after_another_from_the_middle():
    walk = Walk()
    for image, begin in enumerate((30, 10, 30, 0, 48)):
        owners = [
            walk.call(image, TIMES[i], latents(image, i / 50), planned=TIMES, length=50 - begin)
            for i in range(begin, 50)
        ]
        assert owners == [None] + [image] * (49 - begin)
        assert walk.generation.length == 50 - begin
        assert walk.step == 49 - begin


# Lengths


def test_a_length_is_the_schedulers_where_its_timetable_is_used():
    walk = Walk()
    walk.call("a", TIMES[0], latents(0), planned=TIMES, length=50)
    assert walk.generation.length == 50
    walk.call("a", TIMES[20], latents(1), planned=TIMES, length=30)
    assert walk.generation.length == 30, "another generation, which begins in the middle"


def test_another_timetable_has_a_length_of_its_own():
    """A loop with a scheduler of its own, on the model of a pipeline that has made 50 steps before."""
    own = torch.arange(8, 0, -1) * 100
    walk = Walk()
    walk.call("a", own[0], latents(0), planned=TIMES, length=50)
    assert walk.generation.length == 8
    walk.call("b", own[5], latents(1), planned=TIMES, length=50)
    assert walk.generation.length == 3


def test_a_length_by_values_is_what_is_told():
    walk = Walk()
    walk.call("a", 981, latents(0))
    assert walk.generation.length is None
    walk.call("b", 999, latents(1), length=12)
    walk.call("b", 500, latents(1, 0.1), length=12)
    walk.call("c", 999, latents(2), length=12)
    assert walk.generation.length == 12


# Several calls at one place


def memory(seeds):
    """The same memory at every step."""
    kept = {seed: prompt(seed) for seed in seeds}
    return lambda seed: kept[seed]


def anew(seeds):
    """Equal values in new memory at every step."""
    return prompt


CLOCKS = {
    "planned": lambda i: dict(timestep=TIMES[i], planned=TIMES),
    "bare timetable": lambda i: dict(timestep=TIMES[i]),
    "values": lambda i: dict(timestep=int(TIMES[i])),
    "rising values": lambda i: dict(timestep=float(i) / 50),
    "numbered": lambda i: dict(timestep=int(TIMES[i]), step_index=i),
}


def orders(kind, step, names):
    if kind == "same order":
        return names
    if kind == "turned":
        return names[::-1] if step % 2 else names
    return [names[(i + step) % len(names)] for i in range(len(names))]


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
@pytest.mark.parametrize("prompts", [memory, anew], ids=["same memory", "new memory"])
@pytest.mark.parametrize("order", ["same order", "turned", "round"])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_each_condition_has_its_own(clock, prompts, order, count):
    """Guidance by a call for each condition: the latents are the same, the prompts are not."""
    names = list(range(count))
    texts = prompts(names)
    walk = Walk()
    for i in range(12):
        for name in orders(order, i, names):
            owner = walk.call(name, sample=latents(99, i / 50), text=texts(name), **clock(i))
            assert owner == (None if i == 0 else name)
        assert walk.step == i
    assert len(walk.generation.conditions) == count


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
@pytest.mark.parametrize("text", [True, False], ids=["one prompt", "no prompt"])
@pytest.mark.parametrize("order", ["same order", "turned", "round"])
def test_each_view_has_its_own(clock, text, order):
    """A panorama, or several images in a row: the prompt is the same, the latents are not."""
    shared = prompt(0) if text else None
    names = list(range(4))
    walk = Walk()
    for i in range(12):
        for name in orders(order, i, names):
            owner = walk.call(name, sample=latents(name, i / 50), text=shared, **clock(i))
            assert owner == (None if i == 0 else name)
        assert walk.step == i


@pytest.mark.parametrize(
    "clock", [CLOCKS["planned"], CLOCKS["bare timetable"], CLOCKS["numbered"]], ids=["a", "b", "c"]
)
def test_views_that_wander_are_afresh_and_the_steps_go_on(clock):
    """Windows that lie elsewhere at every step: nothing is reused, and it is one generation all the same."""
    shared = prompt(0)
    walk = Walk()
    for i in range(6):
        for view in range(3):
            assert walk.call(view, sample=latents(100 * i + view), text=shared, **clock(i)) is None
        assert walk.step == i
        assert len(walk.generation.conditions) == 3


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
@pytest.mark.parametrize("first", ["with", "without"])
@pytest.mark.parametrize("when", [range(6), range(6, 12), range(3, 9), (0, 1, 5, 6, 11), range(0, 12, 2)])
@pytest.mark.parametrize("prompts", [memory, anew], ids=["same memory", "new memory"])
def test_a_condition_may_be_missing_at_some_steps(clock, first, when, prompts):
    """Guidance in an interval, or at every other step: nobody gets the pairs of the other condition."""
    texts = prompts((0, 1))
    walk = Walk()
    seen = set()
    for i in range(12):
        names = ["with", "without"] if i in when else ["with"]
        for name in names if first == "with" else names[::-1]:
            text = texts(0 if name == "with" else 1)
            owner = walk.call(name, sample=latents(99, i / 50), text=text, **clock(i))
            assert owner in (None, name)
            seen.add((name, owner))
        assert walk.step == i
    assert ("with", "with") in seen, "and they are reused"


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_guidance_in_one_batch_may_end_or_begin_half_way(clock):
    walk = Walk()
    for i in range(12):
        rows = 2 if 3 <= i < 8 else 1
        owner = walk.call(rows, sample=latents(99, i / 50, rows=2)[:rows], text=None, **clock(i))
        # what was made for the smaller batch still holds for its image afterwards
        assert owner == (None if i in (0, 3) else rows)
        assert walk.step == i


def test_a_prompt_in_the_place_of_another_leaves_the_others_alone():
    """The second of three prompts is exchanged half way."""
    texts = {name: prompt(name) for name in range(4)}
    walk = Walk()
    for i in range(8):
        for name in (0, 3 if i >= 4 else 1, 2):
            owner = walk.call(name, TIMES[i], latents(99, i / 50), texts[name], planned=TIMES)
            assert owner == (None if i == 0 or (i == 4 and name == 3) else name)
        assert len(walk.generation.conditions) == 3


def test_prompts_by_turns_are_never_mixed():
    """Another prompt at every step ("[a cat|a dog]"), and one that drifts."""
    texts = {0: prompt(0), 1: prompt(1)}
    walk = Walk()
    drift = Walk()
    for i in range(10):
        assert walk.call(i % 2, TIMES[i], latents(99, i / 50), texts[i % 2], planned=TIMES) in (None, i % 2)
        assert drift.call("it", TIMES[i], latents(99, i / 50), texts[0] + i * 0.01, planned=TIMES) is None
        assert len(drift.generation.conditions) == 1
        assert walk.step == drift.step == i


def test_prompts_that_are_lists_of_tensors():
    texts = {name: [prompt(name), prompt(10 + name)] for name in range(3)}
    walk = Walk()
    for i in range(6):
        for name in orders("round", i, [0, 1, 2]):
            owner = walk.call(name, float(TIMES[i]), latents(99, i / 50), texts[name])
            assert owner == (None if i == 0 else name)


def test_prompts_of_other_shapes_or_kinds_are_others():
    walk = Walk()
    texts = [
        prompt(0),
        prompt(0)[:, :3],
        prompt(0).double(),
        [prompt(0)] * 2,
        torch.tensor([3]),
        torch.tensor([4]),
    ]
    for i in range(4):
        for name, text in enumerate(texts):
            assert walk.call(name, TIMES[i], latents(99, i / 50), text, planned=TIMES) == (
                None if i == 0 else name
            )


def test_names_that_a_pipeline_gives_tell_conditions_apart():
    walk = Walk()
    for i in range(6):
        for name in orders("turned", i, ["cond", "uncond", "cond_skip"]):
            owner = walk.call(name, float(TIMES[i]), latents(99, i / 50), context=name)
            assert owner == (None if i == 0 else name)
        assert walk.step == i


def test_numbers_of_steps_that_a_pipeline_gives():
    walk = Walk()
    for image, begin in enumerate((0, 0, 3, 2)):
        for index in range(begin, 8):
            for name in ("cond", "uncond"):
                who = (image, name)
                # the latents jump, and the numbers say that it is one generation all the same
                sample = latents(image * 100 + index)
                owner = walk.call(who, 5.0, sample, context=name, step_index=index, length=8)
                assert owner == (None if index == begin else who)
            assert walk.step == index
        assert walk.generation.length == 8


# Several generations


@pytest.mark.parametrize("planned", [False, True], ids=["bare", "one of them planned"])
def test_generations_on_two_timetables_run_by_turns(planned):
    other = TIMES.clone()
    shared = prompt(0)
    walk = Walk()
    for i in range(20):
        for name, times in (("a", TIMES), ("b", other)):
            if name == "b" and i < 3:
                continue
            at = i if name == "a" else i - 3
            known = TIMES if planned else None
            owner = walk.call(name, times[at], latents(ord(name), at / 50), shared, planned=known)
            assert owner == (None if at == 0 else name)
            assert walk.step == at
    assert len(walk.timeline.generations) == 2


def test_there_is_a_bound_on_timetables_by_turns():
    tables = [TIMES.clone() for _ in range(9)]
    walk = Walk()
    for i in range(5):
        for name, times in enumerate(tables):
            assert walk.call(name, times[i], latents(name, i / 50)) in (None, name)
    assert len(walk.timeline.generations) == steps._MOST_GENERATIONS
    assert len(walk.timeline._held) == steps._MOST_GENERATIONS


def test_a_timetable_that_is_gone_is_not_mistaken_for_a_new_one():
    walk = Walk()
    places = set()
    for image in range(12):
        times = torch.arange(50, 0, -1) * 20  # often where the last one was, had nobody held it
        places.add(times.data_ptr())
        for i in range(3):
            assert walk.call(image, times[i], latents(5, i / 50)) == (None if i == 0 else image)
        del times
    assert len(places) > 1


@pytest.mark.parametrize(
    "values", [FALLING, FALLING[::-1], [v / 1000 for v in FALLING]], ids=["falling", "rising", "shares"]
)
@pytest.mark.parametrize(
    "kind", [float, torch.tensor, lambda v: torch.tensor([v, v])], ids=["float", "tensor", "batch"]
)
def test_values_go_one_way_and_a_turn_begins_a_generation(values, kind):
    walk = Walk()
    for image in range(3):
        for i, value in enumerate(values):
            owner = walk.call(image, kind(value), latents(image, i / 10))
            assert owner == (None if i == 0 else image)
            assert walk.step == i
    assert len(walk.timeline.generations) == 1


def test_clean_frames_with_timesteps_of_their_own_do_not_count():
    walk = Walk()
    for i, value in enumerate(FALLING):
        walk.call("it", torch.tensor([[0.0, value, value, value]]), latents(0, i / 10))
        assert walk.step == i


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("given", ["batch", "view", "sorted view", "constant view", "int"])
def test_training_is_always_afresh(given, rows):
    """Random timesteps, and each time other images."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 1000, (64,), generator=generator)
    if given == "sorted view":
        drawn = drawn.sort(descending=True).values
    if given == "constant view":
        drawn = torch.full((64,), 500)
    text = prompt(0)
    walk = Walk()
    for batch in range(64):
        timestep = {
            "batch": torch.randint(0, 1000, (rows,), generator=generator),
            "int": int(drawn[batch]),
        }.get(given, drawn[batch])
        sample = torch.randn(rows, 4, 8, 8, generator=generator)
        assert walk.call(batch, timestep, sample, text) is None
        assert walk.condition.since is None


def test_two_random_timesteps_seen_as_a_timetable():
    """Of a batch of two, each image on its own: two numbers always go one way."""
    generator = torch.Generator().manual_seed(0)
    walk = Walk()
    for batch in range(32):
        drawn = torch.randint(0, 1000, (2,), generator=generator)
        for row in range(2):
            sample = torch.randn(1, 4, 8, 8, generator=generator)
            assert walk.call((batch, row), drawn[row], sample) is None


@pytest.mark.parametrize("clock", ["bare timetable", "values", "rising values"])
@pytest.mark.parametrize("given_up", [1, 2, 5])
@pytest.mark.parametrize("later", [0, 1, 2, 10])
def test_a_generation_given_up_and_another_begun_further_on(clock, given_up, later):
    """The same prompt, the same size, and a timestep that might be the next one: only the latents tell."""
    shared = prompt(0)
    facts = CLOCKS[clock]
    walk = Walk()
    for i in range(given_up):
        walk.call("first", sample=latents(1, i / 50), text=shared, **facts(i))
    begin = given_up - 1 + later
    for i in range(begin, begin + 5):
        owner = walk.call("second", sample=latents(2, i / 50), text=shared, **facts(i))
        assert owner == (None if i == begin else "second")


def test_a_jump_on_a_planned_timetable_is_looked_into():
    shared = prompt(0)
    walk = Walk()
    for i in range(3):
        walk.call("first", TIMES[i], latents(1, i / 50), shared, planned=TIMES)
    assert walk.call("second", TIMES[20], latents(2, 0.4), shared, planned=TIMES) is None
    assert walk.step == 0
    # a step that a cache of another kind has left out is no reason for new pairs
    assert walk.call("second", TIMES[24], latents(2, 0.48), shared, planned=TIMES) == "second"
    assert walk.step == 4


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_batch_sizes_by_turns(clock):
    """Two images together and one alone, at every step."""
    walk = Walk()
    for i in range(10):
        for name, rows in (("two", 2), ("one", 1), ("three", 3)):
            owner = walk.call(name, sample=latents(ord(name[0]) + rows, i / 50, rows), text=None, **clock(i))
            assert owner == (None if i == 0 else name)
    assert len(walk.generation.conditions) == 3


def test_sizes_that_change_from_call_to_call():
    walk = Walk()
    for i in range(12):
        height = 8 + i % 4
        sample = torch.ones(1, 4, height, 8)
        assert walk.call(height, TIMES[i], sample, planned=TIMES) == (None if i < 4 else height)


def test_clearing_begins_anew():
    walk = Walk()
    walk.call("a", TIMES[0], latents(0))
    walk.timeline.clear()
    assert walk.call("b", TIMES[1], latents(0)) is None
    assert walk.step == 0
    assert not walk.timeline.generations[:-1]


def test_each_generation_has_a_payload_of_its_own():
    made = []
    timeline = Timeline(lambda: made.append(len(made)) or len(made))
    for image in range(3):
        for i in range(4):
            generation, _ = timeline.locate(CallFacts(TIMES[i], latents(image, i / 50), planned=TIMES))
            assert generation.payload == image + 1
    assert len(made) == 3


# Latents


def test_rows_that_change_are_told_by_row():
    """A loop by values in which some images of the batch are exchanged."""
    walk = Walk()
    walk.call("a", 900, torch.cat([latents(0), latents(1), latents(2)]))
    assert walk.call("a", 880, torch.cat([latents(0, 0.02), latents(7), latents(2, 0.02)])) == "a"
    assert walk.condition.since.tolist() == [0, 1, 0]
    assert walk.call("a", 860, torch.cat([latents(0, 0.04), latents(7, 0.02), latents(8)])) == "a"
    assert walk.condition.since.tolist() == [0, 1, 2]
    assert walk.call("a", 840, torch.cat([latents(0, 0.06), latents(7, 0.04), latents(8, 0.02)])) == "a"
    assert walk.condition.since.tolist() == [0, 1, 2]
    assert walk.call("b", 820, torch.cat([latents(10), latents(11), latents(12)])) is None


def test_latents_in_lists():
    walk = Walk()
    for i, value in enumerate(FALLING):
        sample = [latents(0, i / 20)[0], torch.ones(4, 6, 3), latents(1, i / 20)[0]]
        assert walk.call("it", value, sample) == (None if i == 0 else "it")
    walk.call("it", 20.0, [latents(0, 0.3)[0], torch.ones(4, 6, 3), latents(5)[0]])
    assert walk.condition.since.tolist() == [0, 0, len(FALLING)]
    assert walk.call("it", 10.0, [latents(7)[0], -torch.ones(4, 6, 3), latents(8)[0]]) is None
    assert walk.call("it", 5.0, [latents(7)[0], latents(8)[0]]) is None  # another shape


def test_latents_in_lists_of_lists():
    walk = Walk()
    for i, value in enumerate(FALLING):
        sample = [[latents(0, i / 20)[0], None], [latents(1, i / 20)[0], latents(2, i / 20)[0]]]
        assert walk.call("it", value, sample) == (None if i == 0 else "it")
    assert walk.call("it", 5.0, [[latents(7)[0], None], [latents(8)[0], latents(9)[0]]]) is None


def test_no_latents_at_all_go_by_the_clock():
    assert where([None] * 0) == ([], 0)
    walk = Walk()
    for i, value in enumerate(FALLING):
        assert walk.call("it", value, None) == (None if i == 0 else "it")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_latents_that_are_not_finite(bad):
    def spoilt(sample, where=...):
        sample[where] = bad
        return sample

    walk = Walk()
    for i, value in enumerate(FALLING):
        # one pixel: the others tell; all of it: there is nothing that pairs could be wrong for
        sample = torch.cat([spoilt(latents(0, i / 20), (0, 1, 2, 3)), spoilt(latents(1)), latents(2, i / 20)])
        assert walk.call("it", value, sample) == (None if i == 0 else "it")
        assert walk.condition.since is None
    walk.call("it", 20.0, torch.cat([latents(4), latents(5), latents(2, 0.3)]))
    assert walk.condition.since.tolist() == [6, 6, 0], "new images in the place of the spoilt ones"


def test_latents_of_zeros_and_of_one_value():
    walk = Walk()
    for i, value in enumerate(FALLING):
        assert walk.call("it", value, torch.zeros(1, 4, 8, 8)) == (None if i == 0 else "it")
    assert walk.call("it", 5.0, torch.ones(1, 4, 8, 8)) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_of_any_dtype(dtype):
    walk = Walk()
    for i, value in enumerate(FALLING):
        assert walk.call("it", value, latents(0, i / 20).to(dtype)) == (None if i == 0 else "it")
    assert walk.call("it", 5.0, latents(1).to(dtype)) is None


def test_latents_may_be_written_over_afterwards():
    """A buffer that a loop uses again for every step, and for every image."""
    buffer = torch.empty(1, 4, 8, 8)
    walk = Walk()
    for image in range(3):
        for i, value in enumerate(FALLING[image:]):
            buffer.copy_(latents(image, i / 20))
            assert walk.call(image, value, buffer) == (None if i == 0 else image)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_latents_and_prompts_with_gradients_and_without(mode):
    walk = Walk()
    text = prompt(0).requires_grad_()
    with mode():
        for i in range(5):
            sample = latents(0, i / 50).requires_grad_() if mode is torch.enable_grad else latents(0, i / 50)
            assert walk.call("it", TIMES[i], sample, text) == (None if i == 0 else "it")
            assert not walk.condition.sample.requires_grad, "no graph is kept alive"


# Bounds


@pytest.mark.parametrize("clock", [CLOCKS["planned"], CLOCKS["values"]], ids=["planned", "values"])
def test_many_calls_at_one_place_are_bounded(clock):
    count = steps._MOST_CONDITIONS + 40
    shared = prompt(0)
    walk = Walk()
    samples = [latents(i) for i in range(count)]
    for i in range(3):
        for name in range(count):
            owner = walk.call(name, sample=samples[name], text=shared, **clock(i))
            assert owner == (name if i and name < steps._MOST_CONDITIONS else None)
        assert len(walk.generation.conditions) == steps._MOST_CONDITIONS
        assert walk.step == i


def test_many_images_at_one_place_are_each_afresh():
    """Features of images at one timestep."""
    for timestep in (401, 401.0, TIMES[30], TIMES[30].clone(), TIMES[30].expand(1), TIMES[30].repeat(1)):
        walk = Walk()
        for image in range(20):
            assert walk.call(image, timestep, latents(image)) is None
            assert walk.step == 0


def test_the_same_image_at_one_place_twice_is_two_calls():
    walk = Walk()
    assert walk.call("first", TIMES[3], latents(0), planned=TIMES) is None
    assert walk.call("second", TIMES[3], latents(0), planned=TIMES) is None
