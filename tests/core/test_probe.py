import numpy as np
import pytest
import torch

import catome


@pytest.mark.parametrize("patch", [None, dict(threshold=0.9, schedule=[0, 2])])
def test_watching_changes_no_bit(pipe, generate, patch):
    if patch:
        catome.apply_patch(pipe, catome.PAPER, **patch)
    blind = generate(["volcano", "desert"])
    with catome.probe(pipe, keep_tokens=True):
        watched = generate(["volcano", "desert"])
    after = generate(["volcano", "desert"])
    catome.remove_patch(pipe)
    assert np.array_equal(blind, watched)
    assert np.array_equal(blind, after)


def test_every_step_and_top_block_is_seen(pipe, generate):
    with catome.probe(pipe) as record:
        generate(["volcano", "desert"], steps=3)
        generate(["volcano"], steps=2)
    assert len(record.generations) == 2
    assert record.steps() == [0, 1, 2, 3]
    assert record.blocks() == [
        "down_blocks.0.attentions.0.transformer_blocks.0",
        "down_blocks.0.attentions.1.transformer_blocks.0",
        "up_blocks.2.attentions.0.transformer_blocks.0",
        "up_blocks.2.attentions.1.transformer_blocks.0",
        "up_blocks.2.attentions.2.transformer_blocks.0",
    ]
    assert record.similarity().shape == (4, 5, 4, 768)
    assert record.similarity(generation=1).shape == (3, 5, 2, 768)
    share = record.merged_share(threshold=0.9)
    expected = (record.similarity() >= 0.9).float().sum(-1) / 1024
    torch.testing.assert_close(share, expected)
    assert torch.all(record.merged_share(ratio=0.5) == 0.5)
    pairs = record.pairs(2, 1, image=0, threshold=0.9)
    matches = record.at(2, 1).matches
    chosen = matches.similarity[0] >= 0.9
    assert torch.equal(pairs, torch.stack([matches.src[chosen], matches.best[0][chosen]], 1))
    with pytest.raises(ValueError, match="was not patched"):
        record.merged_share()
    with pytest.raises(KeyError, match="step=9"):
        record.at(9, 0)


def test_what_the_probe_finds_is_what_the_patch_merges(pipe, generate):
    with catome.patched(pipe, catome.PAPER, threshold=0.9, schedule=None), catome.probe(pipe) as record:
        generate(["volcano", "desert"], steps=3)
    torch.testing.assert_close(record.merged_share(), record.merged_share(threshold=0.9))
    for step in record.steps():
        assert torch.equal(record.pairs(step, 4, 3), record.pairs(step, 4, 3, threshold=0.9))


def test_a_cached_step_shows_the_plan_that_ran(pipe, generate):
    with (
        catome.patched(pipe, catome.PAPER, threshold=0.9, schedule=[0]),
        catome.probe(pipe, steps={0, 3}, keep_tokens=True) as record,
    ):
        generate(["volcano"], steps=3)
    assert record.steps() == [0, 3]
    assert torch.equal(record.pairs(3, 0, 1), record.pairs(0, 0, 1, threshold=0.9))
    assert not torch.equal(record.pairs(3, 0, 1), record.pairs(3, 0, 1, threshold=0.9))
    assert record.at(3, 0).tokens.shape == (2, 1024, 64)


def test_bad_arguments(pipe):
    for arguments, error in (
        (dict(stride=1), TypeError),
        (dict(dst="x"), ValueError),
        (dict(max_downsample=0), ValueError),
    ):
        with pytest.raises(error, match=next(iter(arguments))), catome.probe(pipe, **arguments):
            pass


@pytest.mark.parametrize(
    ("steps", "says"), [(3, "steps=3"), ("abc", "steps='abc'"), ({-1}, "steps=-1"), ((0.5,), "steps=0.5")]
)
def test_bad_steps_are_refused_before_anything_runs(pipe, steps, says):
    with pytest.raises((TypeError, ValueError), match=says), catome.probe(pipe, steps=steps):
        pass


def test_a_record_says_what_it_lacks(pipe, generate):
    with catome.probe(pipe) as empty:
        pass
    with pytest.raises(IndexError, match="generation=0: 0 were watched"):
        empty.similarity()
    with catome.probe(pipe, steps=[99]) as nothing:
        generate(["volcano"], steps=2)
    with pytest.raises(ValueError, match="there must be one shape"):
        nothing.similarity()
    with catome.probe(pipe, max_downsample=4) as deep:
        generate(["volcano"], steps=2)
    with pytest.raises(ValueError, match="there must be one shape"):
        deep.similarity()
    with pytest.raises(KeyError, match="block=99"):
        deep.at(0, 99)
