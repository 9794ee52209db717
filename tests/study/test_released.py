"""The code as released: each way in which it differs from the paper's text, alone and together."""

import re

import pytest
import torch

from catome.patch import applied_patch
from catome.study import methods
from catome.study.measure import comparison
from catome.study.run.generate import generate_batch
from catome.study.run.store import CHECKOUT
from catome.study.studies import jobs as counting
from catome.study.studies import released
from catome.study.studies.released import (
    RELEASED,
    TEXT,
    VARIANTS,
    Details,
    Parameters,
    counted_from_one,
    variant,
)

KEPT = "steps from 1, and the cache never emptied"
FROM_ONE = "steps counted from 1"
RANDOM = "a random dst token"


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("released"))
    return Parameters(images=2, batch_size=2, steps=5, thresholds=(0.9,), schedule=[0, 3], output=folder)


def generations(pipe, asked, name: str) -> tuple[list, list]:
    """The targets of each call, ``[blocks, rows, tokens]``, and the lengths of each call's plans, of one
    generation."""
    targets, lengths = [], []

    def note() -> None:
        plans = applied_patch(pipe).cached()
        targets.append(torch.stack([plan.target.clone() for plan in plans]))
        lengths.append([plan.lengths for plan in plans])

    with variant(0.9, asked, VARIANTS[name]).applied(pipe):
        generate_batch(pipe, asked, range(2), note)
    assert applied_patch(pipe) is None
    return targets, lengths


def found_at(targets) -> list[int]:
    """The calls whose pairs differ from those of the call before."""
    return [call for call in range(1, len(targets)) if not torch.equal(targets[call], targets[call - 1])]


def test_checkpoints_counted_from_one_come_a_call_earlier():
    assert counted_from_one("CONFIG_3").steps == (0, 7, 10, 12, 19, 24, 29, 34, 44, 45, 46, 47, 48)
    assert counted_from_one("CONFIG_3").length == 51
    assert counted_from_one("CONF_ADAPTIVE").steps[-1] == 50  # step 51 comes
    assert counted_from_one([0, 1, 2]).steps == (0, 1)
    assert counted_from_one([0, 1, 2]).length is None


def test_what_is_known_already_has_its_own_label():
    params = Parameters()
    ways = released.ways_of(params)
    assert ways[0.7, TEXT].label == methods.ca_tome(0.7, "CONFIG_3").label
    fullest = ways[0.7, "as many in every row as in the fullest"]
    assert fullest.label == methods.batch_maximum(0.7, "CONFIG_3", 12).label
    assert len({way.label for way in ways.values()}) == 2 * len(VARIANTS)
    assert ways[0.9, RELEASED].label == (
        "CA-ToMe as released(threshold=0.9, schedule=CONFIG_3, steps from 1, pairs kept, random dst, by the "
        "fullest row, batch=12)"
    )
    assert ways[0.9, RELEASED].batch == 12
    assert ways[0.9, KEPT].batch is None


def test_each_image_comes_after_one_of_the_class_before():
    params = Parameters(images=30, batch_size=5, seed=4)
    assert params.before.seed == 5
    assert params.before.images == 5
    assert params.before.names == [params.names[4], *params.names[:4]]


def test_pairs_are_found_where_the_variant_says(loaded, asked):
    assert found_at(generations(loaded, asked, TEXT)[0]) == [3]
    assert found_at(generations(loaded, asked, FROM_ONE)[0]) == [2]
    assert found_at(generations(loaded, asked, KEPT)[0]) == [2]


def test_a_kept_cache_has_the_last_pairs_of_the_batch_before(loaded, asked):
    last = []
    with variant(0.9, asked, VARIANTS[FROM_ONE]).applied(loaded):
        generate_batch(loaded, asked.before, range(2), lambda: last.append(applied_patch(loaded).cached()))
    before = torch.stack([plan.target for plan in last[-1]])
    kept, _ = generations(loaded, asked, KEPT)
    emptied, _ = generations(loaded, asked, FROM_ONE)
    assert torch.equal(kept[0], before)
    assert torch.equal(kept[1], before)
    assert not torch.equal(emptied[0], before)


def test_dst_tokens_are_random_where_the_variant_says(loaded, asked):
    for name, top_left in ((TEXT, True), (RANDOM, False)):
        targets, _ = generations(loaded, asked, name)
        rows = torch.cat([call.flatten(0, 1) for call in targets])  # of all calls, blocks and images
        merged_into = sum(row.bincount(minlength=1024) > 1 for row in rows).view(32, 32) > 0
        assert merged_into[::2, ::2].any()
        merged_into[::2, ::2] = False
        assert bool(merged_into.any()) is not top_left


def test_rows_merge_as_many_as_the_fullest_where_the_variant_says(loaded, asked):
    _, lengths = generations(loaded, asked, RELEASED)
    assert all(len(set(rows)) == 1 for call in lengths for rows in call)
    _, lengths = generations(loaded, asked, TEXT)
    assert any(len(set(rows)) > 1 for call in lengths for rows in call)


def test_the_table_says_what_the_rows_say(loaded, asked):
    found = released.run(asked, loaded, recorded=None)
    table = found.table(0.9)
    assert list(table.index) == list(VARIANTS)
    assert table.loc[TEXT, "minus the text (dB)"] == ""
    psnr = {name: found.made.of(found.ways[0.9, name])["psnr"].to_numpy() for name in VARIANTS}
    for name in set(VARIANTS) - {TEXT}:
        assert found.change(0.9, name)[0] == pytest.approx((psnr[name] - psnr[TEXT]).mean())
        assert found.change(0.9, name)[0] != 0
    assert all(name in found.report() for name in VARIANTS)


def test_batches_that_only_leave_their_pairs_are_counted():
    params = Parameters(images=24, batch_size=12, thresholds=(0.9,))
    counted = counting.table(released.jobs(params))
    before = counted[counted["method"].str.startswith("before ")]
    assert len(before) == 2 * 2  # two batches, two variants that keep the cache
    assert before["images"].tolist() == [12] * 4
    assert len(counted) == 1 + len(VARIANTS) + len(before)


def test_a_schedule_without_steps_is_refused():
    with pytest.raises(ValueError, match=r"schedule=None must be a schedule of steps"):
        Parameters.checked({"schedule": None})


def test_what_differs_is_told():
    assert str(Details()) == ""
    assert str(Details(kept=True, by_batch=True)) == "pairs kept, by the fullest row"


def test_the_page_of_claims_says_what_was_recorded(pipe, tmp_path, monkeypatch):
    """Its table is of the rows in the repository: nothing is generated for it."""
    monkeypatch.setattr(comparison, "generate_batch", lambda *_: pytest.fail("a row is not recorded"))
    found = released.run(Parameters(images=12, output=str(tmp_path)), pipe)
    tables = [found.table(t) for t in (0.7, 0.9)]
    said = {}
    for line in (CHECKOUT / "book" / "claims.md").read_text().splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if name in VARIANTS:
            said[name] = cells
    assert list(said) == list(VARIANTS)
    for name, cells in said.items():
        expected = []
        for table in tables:
            psnr, change, told, share = table.loc[name]
            expected += [psnr, f"**{change}**" if told else change, share]
        assert cells == expected, name
    text = (CHECKOUT / "book" / "claims.md").read_text()
    for t in (0.7, 0.9):
        mean, low, high = found.change(t, RANDOM)
        assert re.search(
            re.escape(f"{mean:+.1f} dB [{low:+.1f}, {high:+.1f}] at") + r" (t = )?" + f"{t:g}", text
        ), t
