"""Fixed shares beside thresholds, and what they may depend on."""

import re

import numpy as np
import pytest

from catome.patch import applied_patch
from catome.study import methods
from catome.study.measure import quality
from catome.study.run.generate import generate_batch
from catome.study.studies import allocation
from catome.study.studies.allocation import FREEDOMS, Parameters, measured_left, shares_by

CALLS = 4


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("allocation"))
    return Parameters(
        images=3,  # two of one class and one of the other, so that other prompts can be spoken of
        classes=["desert", "lighthouse"],
        batch_size=2,
        steps=CALLS - 1,
        measured_images=3,
        thresholds=(0.9,),
        output=folder,
    )


@pytest.fixture(scope="module")
def made(loaded, asked):
    return allocation.run(asked, loaded, recorded=None)


def test_every_freedom_leaves_the_scores_that_were_measured():
    left = np.random.default_rng(0).uniform(0.1, 0.9, (6, 5))
    for freedom in FREEDOMS:
        shares = shares_by(left, freedom)
        assert shares.shape == left.shape
        assert ((1 - shares) ** 2).mean() == pytest.approx(left.mean())
    by_step, by_block = shares_by(left, "step"), shares_by(left, "block")
    assert (by_step == by_step[:, :1]).all()
    assert (by_block == by_block[:1]).all()
    assert len(np.unique(by_step)) == 6
    assert len(np.unique(by_block)) == 5
    assert len(np.unique(shares_by(left, "step and block"))) == 30
    assert len(np.unique(shares_by(left, "generation"))) == 1


def test_each_step_and_block_merges_its_own_share(loaded, asked):
    table = np.linspace(0.05, 0.7, CALLS * 5).reshape(CALLS, 5)
    seen = []

    def note() -> None:
        seen.append([plan.merged_share.tolist() for plan in applied_patch(loaded).cached()])

    with methods.fixed_shares(table, "a test").applied(loaded):
        for _ in range(2):  # the second generation begins at step 0 again
            generate_batch(loaded, asked, range(2), note)
    assert applied_patch(loaded) is None
    shares = np.array(seen)  # [2 * calls, blocks, rows]
    tokens = 1024
    expected = np.round(np.tile(table, (2, 1)) * tokens) / tokens
    np.testing.assert_allclose(shares, np.broadcast_to(expected[..., None], shares.shape), atol=1e-6)


def test_shares_that_differ_have_labels_that_differ():
    table = np.full((3, 5), 0.3)
    labels = {methods.fixed_shares(table + change, "x").label for change in (0, 0, 0.01)}
    assert len(labels) == 2
    assert all(re.fullmatch(r"fixed shares\(by=x, [0-9a-f]{8}\)", label) for label in labels)


def test_what_is_left_is_the_mean_over_all_rows(loaded, asked):
    setting = asked.measured
    seen = []

    def note() -> None:
        plans = applied_patch(loaded).cached()
        seen.append([((1 - plan.merged_share.numpy()) ** 2) for plan in plans])

    parts = []
    for part in (range(2), range(2, 3)):
        seen = []
        with methods.ca_tome(0.9, None).applied(loaded):
            generate_batch(loaded, setting, part, note)
        parts.append(np.array(seen))
    whole = np.concatenate(parts, -1)  # [calls, blocks, rows of all images, with and without a prompt]
    assert whole.shape == (CALLS, 5, 6)
    np.testing.assert_allclose(measured_left(loaded, setting, 0.9, recorded=None), whole.mean(-1), rtol=1e-5)


def test_fixed_shares_cost_as_many_scores_as_the_threshold(made, asked):
    for freedom in FREEDOMS:
        assert made.scores[0.9, freedom] == pytest.approx(made.left[0.9].mean(), abs=2e-3)
    assert made.params.measured.seed == asked.seed + 1


def test_what_was_measured_is_read_again(made, loaded, asked, monkeypatch):
    monkeypatch.setattr(
        "catome.study.studies.allocation.generate_batch", lambda *_: pytest.fail("it was made again")
    )
    again = allocation.run(asked, loaded, recorded=None)
    np.testing.assert_array_equal(again.left[0.9], made.left[0.9])
    assert [way.label for way in again.ways.values()] == [way.label for way in made.ways.values()]


def test_the_table_and_the_gains_say_what_the_rows_say(made):
    table = made.table(0.9)
    assert len(table) == len(FREEDOMS) + 1
    psnr = {key: made.made.of(method)["psnr"].to_numpy() for (_, key), method in made.ways.items()}
    assert table.loc[allocation.BY_IMAGE, "PSNR"] == pytest.approx(psnr["image"].mean())
    mean, _, _ = made.gain(0.9, "image", "step and block")
    assert mean == pytest.approx((psnr["image"] - psnr["step and block"]).mean())
    shown = made.steps_of_freedom(0.9)
    assert shown.loc["and each image", "difference (dB)"].startswith(f"{mean:+.2f} [")
    assert shown[quality.OVER_CLASSES].str.startswith("[").all()
    report = made.report()
    assert all(name in report for name in (*FREEDOMS.values(), "and each image", "3 images", made.needed()))
