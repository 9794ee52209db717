import copy
import pickle
from itertools import pairwise

import pytest
import torch

from catome.policy.schedule import SCHEDULES, Schedule, derive, evenly, parse_schedule


def test_named_schedules_are_the_papers():
    assert set(SCHEDULES) == {"CONFIG_1", "CONFIG_2", "CONFIG_3", "CONFIG_4", "CONF_ADAPTIVE", "CONFIG_FIVE"}
    assert SCHEDULES["CONFIG_3"] == (0, 8, 11, 13, 20, 25, 30, 35, 45, 46, 47, 48, 49)
    assert SCHEDULES["CONF_ADAPTIVE"][-6:] == (46, 47, 48, 49, 50, 51)
    assert SCHEDULES["CONFIG_FIVE"][-1] == 50
    for name, steps in SCHEDULES.items():
        assert parse_schedule(name) == Schedule(steps, 51)
        assert parse_schedule(name).at(51) == steps


@pytest.mark.parametrize("schedule", [[0, 3, 1], (0, 1, 3), {3, 1, 0}, iter([0, 1, 3])])
def test_any_collection(schedule):
    found = parse_schedule(schedule)
    assert found == Schedule((0, 1, 3))
    assert found.at(4) == found.at(1000) == found.at(None) == (0, 1, 3)


def test_a_named_schedule_fits_the_length_of_a_generation():
    """A checkpoint stays at its share of the generation; those that fall together are one."""
    third = parse_schedule("CONFIG_3")
    assert third.at(None) == third.at(51) == SCHEDULES["CONFIG_3"]
    assert third.at(102) == tuple(2 * step for step in SCHEDULES["CONFIG_3"])
    assert third.at(8) == (0, 1, 2, 3, 4, 5, 7)
    assert third.at(1) == (0,)
    assert [third.due(step, 8) for step in range(8)] == [0, 1, 2, 3, 4, 5, 5, 7]
    for length in range(1, 120):
        found = third.at(length)
        assert found[0] == 0
        assert max(found) < length
        assert len(found) == len(set(found))


def test_checkpoints_at_equal_distances():
    assert evenly(4).at(8) == (0, 2, 4, 6)
    assert parse_schedule("EVEN_13") == evenly(13)
    assert len(evenly(13).at(51)) == 13
    assert evenly(13).at(8) == tuple(range(8))
    assert evenly(1).at(50) == (0,)
    gaps = {b - a for a, b in pairwise((*evenly(13).at(51), 51))}
    assert gaps == {3, 4}


def test_shares_of_a_generation():
    found = parse_schedule([0, 0.25, 0.5, 1 / 3])
    assert found.at(51) == (0, 12, 17, 25)
    assert found.at(8) == (0, 2, 4)
    assert found.at(None) == found.at(51)
    assert round(found.interval, 1) == 8.5


def test_a_derived_schedule_belongs_to_its_length():
    steps = derive((torch.arange(10)[:, None] - torch.arange(10)).abs(), checkpoints=2)
    assert steps == (0, 5)
    assert parse_schedule(steps) == Schedule((0, 5), 10)
    assert parse_schedule(steps).at(50) == (0, 25)
    for twin in (pickle.loads(pickle.dumps(steps)), copy.deepcopy(steps)):
        assert twin == steps
        assert twin.length == 10


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Schedule((1, 2)), ValueError, "steps=[1, 2] lacks step 0"),
        (lambda: Schedule((0, 1), 0), ValueError, "length=0 must be at least 1"),
        (lambda: Schedule(5), TypeError, "steps=5 must be a collection of steps"),
        (lambda: evenly(0), ValueError, "checkpoints=0 must be at least 1"),
        (lambda: parse_schedule("EVEN_0"), ValueError, "schedule='EVEN_0' is not a named schedule"),
        (lambda: parse_schedule([0, 0.5, 2]), ValueError, "schedule=2 must be between 0 and 1"),
        (lambda: parse_schedule([0.5]), ValueError, "schedule=[0.5] lacks step 0"),
    ],
)
def test_bad_schedules_of_the_new_kinds(make, error, says):
    with pytest.raises(error) as caught:
        make()
    assert says in str(caught.value)


def test_none_is_every_step():
    assert parse_schedule(None) is None


@pytest.mark.parametrize(
    ("schedule", "error", "says"),
    [
        ("config_3", ValueError, "did you mean 'CONFIG_3'"),
        ("nonsense", ValueError, "CONF_ADAPTIVE"),
        ([], ValueError, "lacks step 0"),
        ([1, 2], ValueError, "lacks step 0"),
        ([0, -1], ValueError, "negative step -1"),
        ([0, 2, 2], ValueError, "repeats step 2"),
        ([0, 1.0], TypeError, "1.0"),
        ([0, True], TypeError, "True"),
        ([0, "1"], TypeError, "'1'"),
        (5, TypeError, "schedule=5"),
    ],
)
def test_bad_schedules_say_what_is_wrong(schedule, error, says):
    with pytest.raises(error, match="schedule=") as caught:
        parse_schedule(schedule)
    assert says in str(caught.value)
