"""What holds of every family that catome knows: the same properties, on tiny models of each."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from tiny_models import TINY_TRANSFORMERS
from tiny_unets import TINY_UNETS
from torch.overrides import TorchFunctionMode

import catome
from catome.models._torch import hooks_of
from catome.models.base import Layout, ModelCall, bound
from catome.models.registry import FAMILIES, family_of
from catome.runtime.hooks import Hook, patch_of

TINY = {tiny.name: tiny for tiny in (*TINY_TRANSFORMERS, *TINY_UNETS)}

SEVERAL_CALLS = {"flux2-kv", "qwen-image-2.1"}
"""Models in which a declared attention also attends from reference images or text alone, which is left as it is."""

THRESHOLDS = {"controlnet-union": 0.9999, "cascade-prior": 0.99, "unet-k-blocks": 0.9, "cascade-decoder": 0.9}
"""At which images keep different numbers of tokens, where that is not `MIDDLE`."""

MIDDLE = 0.6

every_family = pytest.mark.parametrize("name", TINY)


@cache
def built(name: str) -> torch.nn.Module:
    return TINY[name].build()


@pytest.fixture
def model(name):
    """The tiny model; its patch is taken off afterwards."""
    yield built(name)
    catome.remove_patch(built(name))


def tensors(answer) -> list[torch.Tensor]:
    """The tensors in a nested answer."""
    if isinstance(answer, torch.Tensor):
        return [answer]
    if isinstance(answer, (list, tuple)):
        return [tensor for part in answer for tensor in tensors(part)]
    return []


@torch.no_grad()
def run(model: torch.nn.Module, inputs: dict) -> list[torch.Tensor]:
    """What a model answers: tensors whose rows are images, or their frames."""
    answer = tensors(model(**inputs))
    images = inputs[family_of(model).sample]
    return [torch.stack(answer)] if isinstance(images, list) else answer


def answer(name: str, batch: int = 2, timestep: float = 500.0, seed: int = 3) -> list[torch.Tensor]:
    """What a tiny model answers to its own inputs."""
    return run(built(name), TINY[name].inputs(batch, timestep, seed))


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Whether two answers are equal bit by bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def assert_close(one: list[torch.Tensor], other: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    """Compare two answers in units of the largest number in each tensor."""
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * b.abs().max().item())


def targets(model: torch.nn.Module) -> list[torch.Tensor]:
    """What is merged into what, in all attentions."""
    return [plan.target for plan in patch_of(model).cached()]


def declared(model: torch.nn.Module) -> list:
    return family_of(model).attentions(model, 1)


# What is merged.


@every_family
def test_tokens_are_merged_in_every_declared_attention(name, model):
    plain = answer(name)
    catome.apply_patch(model, threshold=-1.0)
    assert not same(answer(name), plain)
    found = catome.summary(model)
    assert [attention.name for attention in found.attentions] == [attention.name for attention in declared(model)]
    for attention in found.attentions:
        assert 0.5 < attention.merged_share <= 0.77
        assert 0.2 < attention.scores_left < 1
        assert attention.found_at == (0,)
    assert found.scores_left < 0.9
    reasons = {reason for attention in found.attentions for reason in attention.not_merged}
    assert bool(reasons) == (name in SEVERAL_CALLS)


@every_family
def test_a_ratio_of_zero_gives_every_bit(name, model):
    plain = answer(name)
    catome.apply_patch(model, ratio=0.0)
    assert same(answer(name), plain)
    catome.apply_patch(model, ratio=0.0, keep_queries=False, weighted=False)
    assert same(answer(name), plain)


@every_family
def test_without_duplicates_a_threshold_of_one_gives_every_bit(name, model):
    plain = answer(name)
    catome.apply_patch(model, threshold=1.0)
    assert same(answer(name), plain)


@every_family
def test_the_weight_of_a_merged_key_shows(name, model):
    catome.apply_patch(model, threshold=-1.0)
    weighted = answer(name)
    catome.apply_patch(model, threshold=-1.0, weighted=False)
    assert not same(answer(name), weighted)


@every_family
def test_queries_are_merged_too(name, model):
    catome.apply_patch(model, threshold=-1.0)
    kept = answer(name)
    left = catome.summary(model).scores_left
    catome.apply_patch(model, threshold=-1.0, keep_queries=False)
    assert not same(answer(name), kept)
    found = catome.summary(model)
    assert found.scores_left < left
    for attention in found.attentions:
        assert attention.merged_share > 0.5


# Exact duplicates.


def window_copies(tokens: torch.Tensor, layout: Layout, dim: int) -> torch.Tensor:
    """Tokens of which all in a window of 2x2 are copies of its top left one."""
    place = torch.arange(layout.first + layout.tokens)
    image = place[layout.first :].view(layout.frames, layout.height, layout.width)
    rows = torch.arange(layout.height // 2 * 2) // 2 * 2
    columns = torch.arange(layout.width // 2 * 2) // 2 * 2
    image[:, : len(rows), : len(columns)] = image[:, rows][:, :, columns]
    around = torch.arange(len(place), tokens.shape[dim])
    return tokens.index_select(dim, torch.cat([place, around]))


class Copies(TorchFunctionMode):
    """Gives every attention in a declared module keys and values of which many are alike, before catome sees them."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.call = None
        self.within = None
        self.handles = [model.register_forward_pre_hook(self.begin, with_kwargs=True)]
        for attention in declared(model):
            self.handles.append(attention.module.register_forward_pre_hook(lambda *_, a=attention: self.enter_module(a)))
            self.handles.append(attention.module.register_forward_hook(lambda *_: self.leave_module(), prepend=True))

    def begin(self, model, args, kwargs) -> None:
        self.call = ModelCall(model, bound(model, args, kwargs))

    def enter_module(self, attention) -> None:
        self.within = attention
        self.__enter__()

    def leave_module(self) -> None:
        self.__exit__(None, None, None)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            return self.attend(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def attend(self, func, query, key, value, **rest):
        layout = self.within.layout(self.call, query.shape[2], key.shape[2])
        if layout is not None:
            key = window_copies(key, layout, 2)
            value = window_copies(value, layout, 2)
        return func(query, key, value, **rest)


@every_family
@pytest.mark.parametrize("keep_queries", [True])
def test_merging_duplicates_changes_rounding_only(name, model, keep_queries):
    copies = Copies(model)
    try:
        plain = answer(name)
    finally:
        copies.remove()
    catome.apply_patch(model, threshold=1.0, compare="keys")
    copies = Copies(model)  # catome's hooks are around these
    try:
        merged = answer(name)
    finally:
        copies.remove()
    assert catome.summary(model).merged_share > 0.5
    assert not same(answer(name), merged)
    assert_close(merged, plain)


# Images, steps, generations.


@every_family
@pytest.mark.parametrize("padded", [False, True], ids=["one by one", "padded"])
def test_an_image_does_not_depend_on_its_batch(name, model, padded, monkeypatch):
    monkeypatch.setattr("catome.tensors.attention._pads", lambda query: padded)
    threshold = THRESHOLDS.get(name, MIDDLE)
    catome.apply_patch(model, threshold=threshold)
    together = answer(name, batch=3)
    lengths = [plan.lengths for plan in patch_of(model).cached()]
    assert len({length for of_images in lengths for length in of_images}) > 1
    for index in (0, 2):
        catome.apply_patch(model, threshold=threshold)
        alone = answer(name, batch=1, seed=3 + index)
        assert_close([tensor.chunk(3)[index] for tensor in together], alone)


@every_family
def test_pairs_of_an_earlier_step_serve_where_nothing_changed(name, model):
    later = []
    for schedule in ([0], None):
        catome.apply_patch(model, threshold=MIDDLE, schedule=schedule)
        answer(name, timestep=500.0)
        first = targets(model)
        later.append(answer(name, timestep=499.999))
        assert all(torch.equal(a, b) for a, b in zip(first, targets(model), strict=True))
        found_at = (0,) if schedule else (0, 1)
        assert {attention.found_at for attention in catome.summary(model).attentions} == {found_at}
    assert same(*later)


def generation(name: str, timesteps: tuple[float, ...], seed: int) -> list[torch.Tensor]:
    """The last answer of a generation. Its latents resemble those of other seeds so much that they could be the next step's."""
    model = built(name)
    sample = family_of(model).sample
    for timestep in timesteps:
        inputs = TINY[name].inputs(2, timestep, seed)
        base = TINY[name].inputs(2, timestep, 3)[sample]
        if isinstance(base, list):
            inputs[sample] = [a + 0.3 * b for a, b in zip(base, inputs[sample], strict=True)]
        else:
            inputs[sample] = base + 0.3 * inputs[sample]
        last = run(model, inputs)
    return last


@every_family
@pytest.mark.parametrize("timesteps", [(900.0, 500.0), (100.0, 500.0)], ids=["falling", "rising"])
def test_a_generation_does_not_depend_on_the_one_before(name, model, timesteps):
    merging = {"threshold": MIDDLE, "schedule": [0]}
    catome.apply_patch(model, **merging)
    fresh = generation(name, timesteps, 11)
    catome.apply_patch(model, **merging)
    generation(name, timesteps, 5)
    assert same(generation(name, timesteps, 11), fresh)  # the timestep has turned
    assert catome.summary(model).steps == 2
    generation(name, timesteps[:1], 5)
    model._reset_stateful_cache()
    assert same(generation(name, timesteps, 11), fresh)
    assert catome.summary(model).steps == 2


@every_family
def test_removing_leaves_nothing_behind(name, model):
    plain = answer(name)
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    catome.apply_patch(model, threshold=MIDDLE)
    assert catome.is_patched(model)
    answer(name)
    catome.remove_patch(model)
    assert not catome.is_patched(model)
    for path, module in model.named_modules():
        assert not hooks_of(module, Hook)
        assert vars(module).keys() == attributes[path]
    assert same(answer(name), plain)


def test_every_class_of_every_family_is_here():
    classes = {type(built(name)).__name__ for name in TINY}
    assert classes == {kind for family in FAMILIES for kind in family.classes}
