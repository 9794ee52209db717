import pytest

from catome.policy.schedule import SCHEDULES, parse_schedule


def test_named_schedules_are_the_papers():
    assert set(SCHEDULES) == {"CONFIG_1", "CONFIG_2", "CONFIG_3", "CONFIG_4", "CONF_ADAPTIVE", "CONFIG_FIVE"}
    assert SCHEDULES["CONFIG_3"] == (0, 8, 11, 13, 20, 25, 30, 35, 45, 46, 47, 48, 49)
    assert SCHEDULES["CONF_ADAPTIVE"][-6:] == (46, 47, 48, 49, 50, 51)
    assert SCHEDULES["CONFIG_FIVE"][-1] == 50
    for name, steps in SCHEDULES.items():
        assert parse_schedule(name) == set(steps)


@pytest.mark.parametrize("schedule", [[0, 3, 1], (0, 1, 3), {3, 1, 0}, iter([0, 1, 3])])
def test_any_collection(schedule):
    assert parse_schedule(schedule) == {0, 1, 3}


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
