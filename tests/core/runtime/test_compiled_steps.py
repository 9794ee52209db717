"""Cached steps as one compiled program: what they give is what the hooks give, and nothing breaks the
graph."""

import copy
import warnings

import pytest
import torch
from torch._dynamo.utils import counters

import catome
from catome.models._torch import hooks_of
from catome.runtime.compiled import BUCKETS, CompiledSteps
from catome.runtime.hooks import Hook
from catome.tensors.attention import attend
from catome.tensors.padded import attend_padded, merge_padded, padded_groups
from helpers.pipelines import SIZE, noise, prompt, sd, unet

TIMES = torch.arange(50, 0, -1) * 20
STEPS = 6


@pytest.fixture
def compiled(compiler):
    """The graphs that the compiler was handed, and what to tell `catome.compile_cached_steps`."""
    handed, backend = compiler
    return handed, {"backend": backend}


@torch.no_grad()
def generation(model, seed: int = 0, images: int = 2, steps: int = STEPS):
    sample = noise(seed, images)
    return [model(sample, TIMES[step], prompt(0, images)).sample for step in range(steps)]


def assert_same(outputs, expected):
    for output, other in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, other, atol=2e-5, rtol=1e-4)


def slots_of(model) -> list[int]:
    """The slots of the attentions that merge."""
    return [place.slots for place in CompiledSteps.on(model)._places.values() if place.slots is not None]


def plan(*thresholds: float, tokens: int = 64):
    """A plan of an image for each threshold, which keep different numbers of tokens."""
    torch.manual_seed(1)
    x = torch.randn(len(thresholds), tokens, 8) + 1
    plans = [
        catome.match(x[i : i + 1], (8, tokens // 8), threshold=threshold)
        for i, threshold in enumerate(thresholds)
    ]
    return catome.tensors.plan.pack(torch.cat([one.target for one in plans])), x


@pytest.mark.parametrize("slots", [None, 56, 64])
def test_padded_groups_have_the_means_and_the_weights_of_the_plan(slots):
    merging, x = plan(0.5, 0.8, 0.2)
    assert merging.ragged
    slots = slots or max(merging.lengths)
    groups = padded_groups(merging, slots)
    means = merge_padded(x, groups)
    assert means.shape == (3, slots, 8)
    for image, (kept, length) in enumerate(
        zip(merging.split(merging.merge(x)), merging.lengths, strict=True)
    ):
        torch.testing.assert_close(means[image, :length], kept)
        assert not means[image, length:].any()
        torch.testing.assert_close(groups.log_weights[image, :length].exp(), merging.sizes[image, :length])
        assert groups.log_weights[image, length:].isneginf().all()


def test_fewer_slots_than_tokens_that_are_kept_are_refused():
    merging, _ = plan(0.5, 0.8)
    with pytest.raises(ValueError, match=rf"slots=3 must be at least {max(merging.lengths)}"):
        padded_groups(merging, 3)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("first", [0, 3])
def test_padded_attention_is_attention_over_the_plan(weighted, first):
    merging, _ = plan(0.5, 0.8)
    query, key, value = torch.randn(3, 2, 4, 64 + 5, 8).unbind(0)
    mask = torch.zeros(2, 1, 1, 69).index_fill_(3, torch.tensor([68]), -torch.inf) if first else None
    expected = attend(query, key, value, merging, first, weighted=weighted, attn_mask=mask)
    found = attend_padded(query, key, value, padded_groups(merging, 60, weighted), first, mask)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("compare", ["keys", "input"])
def test_cached_steps_are_one_graph_and_give_the_same(compare, compiled):
    handed, options = compiled
    model = unet()
    plain = generation(model)
    catome.apply_patch(model, threshold=0.3, compare=compare, schedule=(0, 3))
    expected = generation(model)
    before = str(catome.summary(model))
    catome.compile_cached_steps(model, **options)
    outputs = generation(model)
    assert_same(outputs, expected)
    assert not torch.allclose(outputs[1], plain[1], atol=1e-3)
    assert str(catome.summary(model)) == before  # what was merged is written down all the same
    assert CompiledSteps.on(model).steps == 4
    assert not counters["graph_break"]
    known = len(handed)
    assert 1 <= known <= 2  # the second checkpoint may need more slots
    assert_same(generation(model), expected)
    assert len(handed) == known  # another generation finds its programs
    assert "embedding_bag" in handed[0].code
    assert "scaled_dot_product" in handed[0].code
    catome.remove_patch(model)
    assert all(torch.equal(a, b) for a, b in zip(generation(model), plain, strict=True))
    assert "forward" not in vars(model)
    assert not any(hooks_of(module, Hook) for module in model.modules())


def test_images_that_need_more_slots_get_them_and_keep_them(compiled):
    handed, options = compiled
    model = unet()
    catome.apply_patch(model, threshold=0.0, schedule=(0,))
    few = generation(model)
    catome.compile_cached_steps(model, **options)
    assert_same(generation(model), few)
    slots = slots_of(model)
    catome.apply_patch(model, threshold=0.8, schedule=(0,))
    assert CompiledSteps.on(model) is not None  # another threshold is no other program
    assert_same(generation(model, seed=5), generation_by_hooks(0.8, seed=5))
    more = slots_of(model)
    assert all(a <= b for a, b in zip(slots, more, strict=True))
    assert slots != more
    catome.apply_patch(model, threshold=0.0, schedule=(0,))
    assert_same(generation(model), few)
    assert slots_of(model) == more
    assert len(handed) == 2


def generation_by_hooks(threshold: float, **how):
    other = unet()
    catome.apply_patch(other, threshold=threshold, schedule=(0,))
    return generation(other, **how)


def test_slots_are_those_of_the_least_bucket_that_suffices(compiled):
    _, options = compiled
    model = unet()
    catome.apply_patch(model, ratio=0.5, schedule=(0,))
    for buckets, expected in ((BUCKETS, SIZE * SIZE // 2), ((0.3,), SIZE * SIZE), ((0.55, 0.9), 144)):
        catome.compile_cached_steps(model, buckets, **options)
        generation(model, steps=2)
        assert set(slots_of(model)) == {expected}


def test_what_cannot_be_compiled_runs_as_ever(compiled):
    handed, options = compiled
    model = unet()
    catome.apply_patch(model, threshold=0.3, schedule=(0,))
    expected = generation(model)
    catome.compile_cached_steps(model, **options)
    steps = CompiledSteps.on(model)
    sample = noise(0, 2)
    with torch.enable_grad():
        for step in range(3):
            output = model(sample.requires_grad_(), TIMES[step], prompt(0, 2)).sample
            torch.testing.assert_close(output.detach(), expected[step], atol=1e-5, rtol=1e-4)
        output.sum().backward()
    assert sample.grad.any()
    assert not handed
    assert not steps.steps
    catome.apply_patch(model, catome.PAPER, threshold=0.3, schedule=(0,))  # queries merged, too
    generation(model)
    assert not handed
    assert not steps.steps


def test_a_forward_of_somebody_else_is_respected(compiled):
    handed, options = compiled
    model = unet()
    catome.apply_patch(model, threshold=0.3, schedule=(0,))
    catome.compile_cached_steps(model, **options)
    calls = []
    inner = model.mid_block.forward
    model.mid_block.forward = lambda *args, **kwargs: calls.append(1) or inner(*args, **kwargs)
    with pytest.warns(
        UserWarning, match=r"another package .*in place of a UNetMidBlock2DCrossAttn's forward"
    ):
        generation(model)
    assert len(calls) == STEPS
    assert not handed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generation(model)  # said once


def test_weights_and_processors_that_change_are_seen(compiled):
    _, options = compiled
    model = unet()
    catome.apply_patch(model, threshold=0.3, schedule=(0,))
    catome.compile_cached_steps(model, **options)
    generation(model)
    with torch.no_grad():
        model.conv_out.weight.mul_(2)
    first = CompiledSteps.on(model)._program
    doubled = unet()
    doubled.conv_out.weight.data.mul_(2)
    catome.apply_patch(doubled, threshold=0.3, schedule=(0,))
    assert_same(generation(model), generation(doubled))
    assert CompiledSteps.on(model)._program is first
    model.conv_out = torch.nn.Conv2d(model.conv_out.in_channels, 4, 3, padding=1)
    doubled.conv_out = model.conv_out
    assert_same(generation(model), generation(doubled))
    assert CompiledSteps.on(model)._program is not first


def test_a_copy_compiles_for_itself(compiled):
    _, options = compiled
    model = unet()
    catome.apply_patch(model, threshold=0.3, schedule=(0,))
    catome.compile_cached_steps(model, **options)
    expected = generation(model)
    copied = copy.deepcopy(model)
    assert CompiledSteps.on(copied).model is copied
    assert_same(generation(copied), expected)
    assert CompiledSteps.on(copied).steps == CompiledSteps.on(model).steps == STEPS - 1
    catome.remove_patch(copied)
    assert CompiledSteps.on(model) is not None


def test_a_pipeline_generates_the_same_image(compiled):
    _, options = compiled
    pipe = sd()
    catome.apply_patch(pipe, threshold=0.3)

    def image():
        latents = torch.randn(1, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
        return pipe("a", latents=latents, num_inference_steps=STEPS, output_type="pt").images

    expected = image()
    catome.compile_cached_steps(pipe, **options)
    torch.testing.assert_close(image(), expected, atol=1e-4, rtol=1e-3)
    catome.remove_patch(pipe)


@pytest.mark.parametrize(
    ("patch", "given", "said"),
    [
        (None, {}, "is not patched: call catome.apply_patch"),
        ({}, {"buckets": (0.5, 2)}, r"buckets\[1\]=2.*1"),
        ({}, {"buckets": (0.0,)}, "a share must be above 0"),
        ({"config": catome.PAPER}, {}, "keep_queries=False"),
        ({"merge_mlp": True}, {}, "merge_mlp=True"),
    ],
)
def test_what_makes_no_sense_is_refused(patch, given, said):
    model = unet()
    if patch is not None:
        catome.apply_patch(model, **patch)
    with pytest.raises(ValueError, match=said):
        catome.compile_cached_steps(model, **given)
    assert CompiledSteps.on(model) is None
