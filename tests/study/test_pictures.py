"""Pictures for the book: kept without loss, and generated only where they are missing."""

from dataclasses import replace

import numpy as np
import pytest

from catome.study import generate, methods, pictures
from catome.study.measure import pictures as module
from catome.study.measure.quality import to_uint8
from helpers.settings import setting

WAYS = {"unmerged": methods.unmerged(), "half": methods.tome(0.5)}


@pytest.fixture
def made(monkeypatch) -> list:
    """The numbers of the images that are generated, batch by batch."""
    batches, generate_batch = [], module.generate_batch

    def noted(pipe, setting, images, progress):
        batches.append(list(images))
        return generate_batch(pipe, setting, images, progress)

    monkeypatch.setattr(module, "generate_batch", noted)
    return batches


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """By how many of 255 levels two images differ at most."""
    return int(np.abs(to_uint8(a).astype(int) - to_uint8(b)).max())


def test_pictures_are_those_that_are_generated(pipe, tmp_path):
    some = setting(tmp_path, steps=2, batch_size=3)
    found = pictures(pipe, some, WAYS, (0, 1, 2), recorded=None)
    assert list(found) == list(WAYS)
    assert np.array_equal(to_uint8(found["unmerged"]), to_uint8(generate(pipe, some)))
    with WAYS["half"].applied(pipe):
        assert np.array_equal(to_uint8(found["half"]), to_uint8(generate(pipe, some)))
    assert apart(found["half"], found["unmerged"]) > 10


def test_any_images_of_a_setting_can_be_asked_for(pipe, tmp_path):
    some = setting(tmp_path, steps=2)
    found = pictures(pipe, some, {"unmerged": WAYS["unmerged"]}, (2, 0), recorded=None)["unmerged"]
    plain = generate(pipe, some)
    assert apart(found, plain[[2, 0]]) <= 1  # another batch may round to the next level
    assert apart(found[0], found[1]) > 10


def test_what_is_kept_is_not_generated_again(pipe, tmp_path, made):
    some = setting(tmp_path, steps=2)
    first = pictures(pipe, some, WAYS, (0, 1, 2), recorded=None)
    assert made == [[0, 1], [2], [0, 1], [2]]  # batches of two, method by method
    made.clear()
    again = pictures(pipe, some, {"again": WAYS["half"], "plain": WAYS["unmerged"]}, (2, 0), recorded=None)
    assert made == []
    assert np.array_equal(again["again"], first["half"][[2, 0]])
    elsewhere = pictures(pipe, replace(some, output=str(tmp_path / "own")), WAYS, (1,), recorded=tmp_path)
    assert made == []
    assert np.array_equal(elsewhere["unmerged"], first["unmerged"][[1]])
    pictures(pipe, some, WAYS, (0,), recompute=True, recorded=None)
    assert made == [[0], [0]]


@pytest.mark.parametrize(
    "change", [{"seed": 5}, {"steps": 3}, {"guidance": 2.0}, {"classes": ["lighthouse"]}, {"height": 96}]
)
def test_pictures_of_another_setting_are_not_used(pipe, tmp_path, made, change):
    some = setting(tmp_path, images=1, steps=2)
    before = pictures(pipe, some, {"unmerged": WAYS["unmerged"]}, recorded=None)
    after = pictures(pipe, replace(some, **change), {"unmerged": WAYS["unmerged"]}, recorded=None)
    assert made == [[0], [0]]
    assert (
        before["unmerged"].shape != after["unmerged"].shape
        or apart(before["unmerged"], after["unmerged"]) > 10
    )


def test_an_image_that_is_not_there_is_an_error(pipe, tmp_path, made):
    with pytest.raises(IndexError, match="images=3: 3 were in the setting"):
        pictures(pipe, setting(tmp_path), WAYS, (0, 3), recorded=None)
    assert made == []
