"""Tests of what holds of every family that catome knows: the same properties, on tiny models of each."""

from __future__ import annotations

import gc
import threading
import warnings
from functools import cache

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch.overrides import TorchFunctionMode

import catome
from catome.models._diffusers import is_plain
from catome.models._torch import hooks_of
from catome.models.base import Layout, ModelCall, bound
from catome.models.registry import FAMILIES, family_of
from catome.runtime.compiled import CompiledSteps
from catome.runtime.hooks import Hook, patch_of
from helpers.sentences import assert_says
from helpers.tiny_models import TINY_TRANSFORMERS
from helpers.tiny_unets import TINY_UNETS

TINY = {tiny.name: tiny for tiny in (*TINY_TRANSFORMERS, *TINY_UNETS)}

SEVERAL_CALLS = {"flux2-kv", "qwen-image-2.1"}
"""Models in which a declared attention also attends from reference images or text alone, which is left as it
is."""

MIDDLE = 0.6
"""A threshold at which most images keep different numbers of tokens."""

THRESHOLDS = {"controlnet-union": 0.99, "cascade-prior": 0.99, "cascade-decoder": 0.9}
"""Those of models in which it is another."""

QUERIES_KEPT = {
    "chroma": "mask",
    "omnigen": "mask",
    "ideogram4": "mask",
    "hunyuan-video-1.5": "mask",
    "flux2-kv": "keys lie elsewhere",
    "flux2-kv-cached": "keys lie elsewhere",
    "glm-image-edit": "keys lie elsewhere",
}
"""Models whose queries cannot be merged, and a word of the reason that is given."""

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
    """The answer of a model: tensors whose rows are images, or their frames."""
    answer = tensors(model(**inputs))
    images = inputs[family_of(model).sample]
    return [torch.stack(answer)] if isinstance(images, list) else answer


def answer(name: str, batch: int = 2, timestep: float = 500.0, seed: int = 3) -> list[torch.Tensor]:
    """The answer of a tiny model to its own inputs."""
    return run(built(name), TINY[name].inputs(batch, timestep, seed))


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Return True if two answers are equal bit by bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def assert_close(one: list[torch.Tensor], other: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    """Compare two answers in units of the largest number in each tensor."""
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * b.abs().max().item())


def targets(model: torch.nn.Module) -> list[torch.Tensor]:
    """The targets of merging, in all attentions."""
    return [plan.target for plan in patch_of(model).cached()]


def declared(model: torch.nn.Module) -> list:
    return family_of(model).attentions(model, 1)


NOT_COMPILED = {"cascade-decoder", "mochi"} | SEVERAL_CALLS
"""Models whose attentions are called several times in a call of the model, so that their cached steps run by
the hooks."""


@every_family
def test_a_twin_without_hooks_gives_what_the_hooks_give_at_a_cached_step(name, model, monkeypatch):
    # what compilers make of it is tested elsewhere
    monkeypatch.setattr(torch, "compile", lambda twin, **options: twin)
    threshold = THRESHOLDS.get(name, MIDDLE)
    catome.apply_patch(model, threshold=threshold, schedule=(0,))

    def cached_step():
        catome.new_generation(model)
        answer(name)
        return answer(name, timestep=400.0)

    expected = cached_step()
    catome.compile_cached_steps(model)
    assert_close(cached_step(), expected)
    assert bool(CompiledSteps.on(model).steps) == (name not in NOT_COMPILED)


@every_family
def test_a_step_may_be_left_out_and_forecast(name, model):
    catome.apply_patch(model, merge_attn=False, forecast=catome.Forecast(first=2, interval=3, growth=1.0))
    first, second, third = (answer(name, timestep=timestep) for timestep in (500.0, 450.0, 400.0))
    assert_close(third, [2 * b - a for a, b in zip(first, second, strict=True)])
    assert catome.summary(model).forecasts == pytest.approx(1 / 3)
    catome.remove_patch(model)
    assert same(first, answer(name, timestep=500.0))
    assert "forward" not in vars(model)


# What is merged.


@every_family
def test_tokens_are_merged_in_every_declared_attention(name, model):
    plain = answer(name)
    catome.apply_patch(model, threshold=-1.0)
    assert not same(answer(name), plain)
    found = catome.summary(model)
    assert [attention.name for attention in found.attentions] == [
        attention.name for attention in declared(model)
    ]
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
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        merged = answer(name)
    assert not same(merged, kept)
    found = catome.summary(model)
    ours = [str(warning.message) for warning in warned if "catome" in str(warning.message)]
    if name in QUERIES_KEPT:
        assert all(attention.merged_share > 0.5 or attention.not_merged for attention in found.attentions)
        assert QUERIES_KEPT[name] in str(found)
        assert QUERIES_KEPT[name] in ours[0]
        assert "keep_queries=True" in ours[0]
        assert len(ours) == 1
    else:
        assert all(attention.merged_share > 0.5 for attention in found.attentions)
        assert found.scores_left < left
        assert not ours


# Exact duplicates.


def window_copies(tokens: torch.Tensor, first: int, layout: Layout) -> torch.Tensor:
    """Tokens ``[B, H, N, D]``; of the image tokens, from ``first`` on, all in a window of 2x2 are copies of
    its top left one."""
    order = torch.arange(tokens.shape[2])
    image = order[first : first + layout.tokens].view(layout.frames, layout.height, layout.width)
    rows = torch.arange(layout.height // 2 * 2) // 2 * 2
    columns = torch.arange(layout.width // 2 * 2) // 2 * 2
    image[:, : len(rows), : len(columns)] = image[:, rows][:, :, columns]
    return tokens.index_select(2, order)


class Copies(TorchFunctionMode):
    """Gives every attention in a declared module keys and values of which many are alike, before catome sees
    them."""

    def __init__(self, model: torch.nn.Module, queries_too: bool) -> None:
        super().__init__()
        self.queries_too = queries_too
        self.call = None
        self.within = None
        self.handles = [model.register_forward_pre_hook(self.begin, with_kwargs=True)]
        for attention in declared(model):
            self.handles.append(
                attention.module.register_forward_pre_hook(lambda *_, a=attention: self.enter_module(a))
            )
            self.handles.append(
                attention.module.register_forward_hook(lambda *_: self.leave_module(), prepend=True)
            )

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
            own = layout.first if query.shape[2] == key.shape[2] else 0
            key = window_copies(key, layout.first, layout)
            value = window_copies(value, layout.first, layout)
            if self.queries_too:
                query = window_copies(query, own, layout)
        return func(query, key, value, **rest)


@every_family
@pytest.mark.parametrize("keep_queries", [True, False], ids=["keys", "queries too"])
def test_merging_duplicates_changes_rounding_only(name, model, keep_queries):
    if (not keep_queries and name in QUERIES_KEPT) or name in PLAIN:  # the next test has these
        return
    copies = Copies(model, not keep_queries)
    try:
        plain = answer(name)
    finally:
        copies.remove()
    catome.apply_patch(model, threshold=1.0, keep_queries=keep_queries)
    copies = Copies(model, not keep_queries)  # catome's hooks are around these
    try:
        merged = answer(name)
    finally:
        copies.remove()
    assert catome.summary(model).merged_share > 0.5
    assert not same(answer(name), merged)
    assert_close(merged, plain, 2e-5)


WITH_MORE = {"cascade-decoder", "cascade-prior", "kandinsky-3"}
"""Models whose attentions could be given a context, and have one already: image and text."""

PLAIN = {
    name
    for name in TINY.keys() - WITH_MORE
    if any(is_plain(attention.module, {}) for attention in declared(built(name)))
}
"""Models with attentions that are given other tokens, or a context, before they make keys."""


@pytest.mark.parametrize("name", sorted(PLAIN))
@pytest.mark.parametrize("compare", ["keys", "input"])
@pytest.mark.parametrize("keep_queries", [True, False], ids=["keys", "queries too"])
def test_merging_duplicates_that_enter_an_attention_changes_rounding_only(name, model, keep_queries, compare):
    """Tokens are merged before they become keys here; what enters a U-Net's transformer blocks may be
    compared."""
    now = {}
    reached = set()

    def begin(model, args, kwargs):
        now["call"] = ModelCall(model, bound(model, args, kwargs))

    def copied(attention, args, kwargs):
        tokens = args[0] if args else kwargs["hidden_states"]
        layout = attention.layout(now["call"], tokens.shape[1], tokens.shape[1]) if tokens.ndim == 3 else None
        if layout is None:  # an image that is not flattened yet, or text
            return None
        reached.add(attention.name)
        tokens = window_copies(tokens[:, None], layout.first, layout)[:, 0]
        return ((tokens, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": tokens})

    handles = [model.register_forward_pre_hook(begin, with_kwargs=True)]
    for attention in declared(model):

        def before(module, args, kwargs, attention=attention):
            return copied(attention, args, kwargs)

        handles.append(
            (attention.block or attention.module).register_forward_pre_hook(before, with_kwargs=True)
        )
    try:
        plain = answer(name)
        catome.apply_patch(model, threshold=1.0, keep_queries=keep_queries, compare=compare)
        merged = answer(name)
    finally:
        for handle in handles:
            handle.remove()
    found = catome.summary(model)
    assert reached
    assert all(attention.merged_share > 0.5 for attention in found.attentions if attention.name in reached)
    assert not same(plain, merged)
    assert_close(merged, plain)


# Images, steps, generations.


@every_family
@pytest.mark.parametrize("padded", [False, True], ids=["one by one", "padded"])
def test_an_image_does_not_depend_on_its_batch(name, model, padded, monkeypatch):
    """Also with pairs of an earlier step."""
    monkeypatch.setattr("catome.tensors.attention._pads", lambda query: padded)
    merging = {"threshold": THRESHOLDS.get(name, MIDDLE), "schedule": [0]}
    catome.apply_patch(model, **merging)
    answer(name, 3, 600.0)
    lengths = [length for plan in patch_of(model).cached() for length in plan.lengths]
    assert len(set(lengths)) > 1
    together = answer(name, 3, 500.0)
    catome.apply_patch(model, **merging)
    answer(name, 1, 600.0, seed=5)
    alone = answer(name, 1, 500.0, seed=5)
    # some models need that tolerance without merging
    assert_close([tensor.chunk(3)[2] for tensor in together], alone, 2e-4)


def timetable(name: str, steps: int) -> list[dict]:
    """The inputs of a model for steps at which nothing changes but the place on a timetable, which has the
    same number there."""
    timestep = family_of(built(name)).timestep
    inputs = [TINY[name].inputs(1, 500.0, 3) for _ in range(steps)]
    given = torch.as_tensor(inputs[0][timestep])
    table = torch.cat([given.flatten()[:1].repeat(steps), torch.zeros(1, dtype=given.dtype)])
    for place, arguments in enumerate(inputs):
        arguments[timestep] = table[place].expand(given.shape)
    return inputs


@every_family
def test_pairs_of_an_earlier_step_serve_where_nothing_changed(name, model):
    found = []
    for schedule, found_at in ([0], (0,)), (None, (0, 1)):
        catome.apply_patch(model, threshold=MIDDLE, schedule=schedule)
        answers = [run(model, inputs) for inputs in timetable(name, 2)]
        assert {attention.found_at for attention in catome.summary(model).attentions} == {found_at}
        found += answers
    assert all(same(one, found[0]) for one in found)


def generation(name: str, timesteps: tuple[float, ...], seed: int) -> list[torch.Tensor]:
    """The last answer of a generation. Its latents resemble those of other seeds so much that they could be
    the next step's."""
    model = built(name)
    sample = family_of(model).sample
    for timestep in timesteps:
        inputs = TINY[name].inputs(1, timestep, seed)
        base = TINY[name].inputs(1, timestep, 3)[sample]
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


def test_a_generation_that_another_has_replaced_does_not_keep_the_patch_on():
    model = built("flux")
    catome.apply_patch(model, threshold=MIDDLE)
    answer("flux", timestep=900.0)
    answer("flux", timestep=500.0)
    held = patch_of(model).timeline.generations
    answer("flux", timestep=900.0)
    assert held[0] not in patch_of(model).timeline.generations
    catome.remove_patch(model)
    assert not any(hooks_of(module, Hook) for module in model.modules())


def test_a_patch_that_is_put_on_while_an_old_one_waits_to_leave_stays():
    """The old one waits for a generation of another thread, which never ends it."""
    model = built("flux")
    plain = answer("flux")
    catome.apply_patch(model, threshold=MIDDLE)
    merged = answer("flux")
    thread = threading.Thread(target=answer, args=("flux",))
    patch_of(model).reset()
    thread.start()
    thread.join()
    held = [*patch_of(model).generations, object()]  # as if the thread went on
    catome.remove_patch(model)
    assert not catome.is_patched(model)
    assert same(answer("flux"), plain)
    held.clear()
    gc.collect()
    catome.apply_patch(model, threshold=MIDDLE)
    assert catome.is_patched(model)
    assert same(answer("flux"), merged)
    catome.remove_patch(model)
    assert not any(hooks_of(module, Hook) for module in model.modules())


def test_every_class_of_every_family_is_here():
    classes = {type(built(name)).__name__ for name in TINY}
    assert classes == {kind for family in FAMILIES for kind in family.classes}


def test_mochi_has_pairs_for_each_video_of_a_batch():
    """Its attention is called once for each of them, with as many tokens of text as its own prompt has."""
    model = built("mochi")
    inputs = TINY["mochi"].inputs(3, 500.0, 3)
    inputs["encoder_attention_mask"][1, 2:] = False
    with catome.patched(model, threshold=0.0, schedule=[0]):
        run(model, inputs)
        first = patch_of(model).cached()
        assert len(first) == 2 * 3
        assert not torch.equal(first[0].target, first[1].target)
        later = [run(model, {**inputs, "timestep": inputs["timestep"] - step}) for step in (100, 200)]
        assert all(a is b for a, b in zip(first, patch_of(model).cached(), strict=True))
        (attention, _) = catome.summary(model).attentions
        assert attention.calls == 3 * 3
        assert attention.found_at == (0,)
    for video in range(3):
        own = {
            key: value[video : video + 1] if isinstance(value, torch.Tensor) else value
            for key, value in inputs.items()
        }
        with catome.patched(model, threshold=0.0, schedule=[0]):
            run(model, own)
            alone = [run(model, {**own, "timestep": own["timestep"] - step}) for step in (100, 200)]
        for one, other in zip(alone, later, strict=True):
            assert_close(one, [tensor[video : video + 1] for tensor in other])


# What is said.


def warned_by(model: torch.nn.Module, calls: list[dict]) -> list[str]:
    """The warnings that catome gives in some calls."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for inputs in calls:
            run(model, inputs)
    return [str(warning.message) for warning in warned if "catome" in str(warning.message)]


class AttentionByHand:
    """A processor of U-Nets that does not call the attention of torch."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **others):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(context))
        value = attn.head_to_batch_dim(attn.to_v(context))
        weights = (query @ key.mT * attn.scale).softmax(-1)
        return attn.to_out[0](attn.batch_to_head_dim(weights @ value))


def attention_by_hand(query, key, value, **others):
    """Attention as a backend for transformers may compute it: ``[B, N, H, D]``."""
    query = query.transpose(1, 2)
    key = key.transpose(1, 2)
    value = value.transpose(1, 2)
    weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
    return (weights @ value).transpose(1, 2)


@pytest.mark.parametrize("name", ["unet-sd", "flux", "wan"])
def test_attention_that_cannot_be_seen_is_said_once_and_in_the_summary(name, monkeypatch):
    model = TINY[name].build()
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(AttentionByHand())
    for part in ("flux", "wan"):
        monkeypatch.setattr(
            f"diffusers.models.transformers.transformer_{part}.dispatch_attention_fn", attention_by_hand
        )
    calls = [TINY[name].inputs(2, timestep, 3) for timestep in (500.0, 400.0)]
    plain = [run(model, inputs) for inputs in calls]
    catome.apply_patch(model, threshold=-1.0)
    (warning,) = warned_by(model, calls)
    assert "does not call torch.nn.functional.scaled_dot_product_attention" in warning
    assert "set_attention_backend('native')" in warning
    assert all(same(run(model, inputs), expected) for inputs, expected in zip(calls, plain, strict=True))
    found = catome.summary(model)
    assert found.merged_share == 0
    assert found.scores_left == 1
    for attention in found.attentions:
        (reason,) = attention.not_merged
        assert reason in warning
        assert attention.not_merged[reason] == attention.calls == 2
        assert attention.merged_share == 0
        assert attention.scores_left == 1
        assert attention.found_at == ()
    assert reason in str(found)
    assert str(found).count(reason) == 1


def test_where_no_grid_is_told_nothing_is_merged_and_the_summary_says_so():
    model = built("flux")
    calls = [{**TINY["flux"].inputs(2, 500.0, 3), "img_ids": torch.zeros(96, 3)}]
    plain = run(model, calls[0])
    with catome.patched(model, threshold=-1.0):
        assert not warned_by(model, calls)
        assert same(run(model, calls[0]), plain)
        found = catome.summary(model)
    assert found.merged_share == 0
    assert "not the image tokens that were expected" in str(found)


def test_a_summary_is_of_the_configuration_that_the_model_has():
    model = built("flux")
    with catome.patched(model, threshold=-1.0):
        answer("flux")
        assert catome.summary(model).merged_share == 0.75
        with catome.patched(model, threshold=1.0):
            assert catome.summary(model).merged_share == 0
            assert "nothing has been generated" in str(catome.summary(model))
            answer("flux")
            assert_says(str(catome.summary(model)), "nothing was merged", "threshold=1")
        assert "nothing has been generated" in str(catome.summary(model))
        answer("flux")
        model._reset_stateful_cache()
        assert catome.summary(model).merged_share == 0.75


# What is refused.


class Unknown(torch.nn.Module):
    """A model that nobody declared."""


def vae() -> torch.nn.Module:
    return diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)


def sana() -> torch.nn.Module:
    return diffusers.SanaTransformer2DModel(
        num_layers=1,
        num_attention_heads=1,
        attention_head_dim=8,
        num_cross_attention_heads=1,
        cross_attention_head_dim=8,
    )


FUNCTIONS = (
    catome.apply_patch,
    catome.remove_patch,
    catome.is_patched,
    catome.new_generation,
    catome.summary,
    lambda pipe: catome.patched(pipe).__enter__(),
    lambda pipe: catome.probe(pipe).__enter__(),
)

REFUSED = {
    "a layer": (
        lambda: torch.nn.Linear(2, 2),
        r"pipe=Linear must be a diffusers pipeline .*catome\.merge_keys",
    ),
    "an unknown model": (
        Unknown,
        r"pipe=Unknown must be a diffusers pipeline .*Known are the families U-Net, .*Kandinsky6",
    ),
    "a VAE": (vae, r"pipe=AutoencoderKL must be a diffusers pipeline .*denoising model"),
    "linear attention": (sana, r"pipe=SanaTransformer2DModel cannot be patched.* linear"),
    "a string": (lambda: "stable-diffusion", r"pipe=str must be a diffusers pipeline .*it has no model"),
    "None": (lambda: None, r"pipe=NoneType must be a diffusers pipeline .*it has no model"),
    "a class": (lambda: diffusers.UNet2DConditionModel, r"pipe=type must be a diffusers pipeline"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_catome_does_not_know_is_refused_with_what_was_looked_for(what):
    make, words = REFUSED[what]
    given = make()
    for function in FUNCTIONS:
        with pytest.raises(TypeError, match=words):
            function(given)
    if isinstance(given, torch.nn.Module):
        assert not any(hooks_of(module, Hook) for module in given.modules())


# Any other model: `catome.merge_keys`.

SIDE = 8
"""Patches of the vision transformer's image along each side; a class token is in front."""

GRID = {"grid": (SIDE, SIDE), "first": 1}


@cache
def vision_transformer() -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=4 * SIDE,
        patch_size=4,
        attn_implementation="sdpa",
    )
    return transformers.ViTModel(config, add_pooling_layer=False).eval()


@torch.no_grad()
def encoded(pixels: torch.Tensor | None = None) -> torch.Tensor:
    if pixels is None:
        pixels = torch.randn(2, 3, 4 * SIDE, 4 * SIDE, generator=torch.Generator().manual_seed(1))
    return vision_transformer()(pixels).last_hidden_state


@pytest.mark.parametrize(
    "changes", [{}, {"weighted": False}, {"keep_queries": False}, {"dst": "random"}], ids=str
)
def test_keys_of_a_vision_transformer_are_merged(changes):
    plain = encoded()
    with catome.merge_keys(**GRID, threshold=-1.0, **changes) as seen:
        merged = encoded()
    assert merged.shape == plain.shape
    assert not torch.equal(merged, plain)
    assert seen.calls == seen.merged_calls == 2
    assert seen.keys == 2 * 2 * SIDE**2
    assert seen.keys_left == seen.keys // 4
    assert torch.equal(encoded(), plain)
    with catome.merge_keys(**GRID, ratio=0.0, **changes) as seen:
        assert torch.equal(encoded(), plain)
    assert seen.calls == 2
    assert seen.merged_calls == 0
    assert seen.keys_left == seen.keys


def test_images_of_a_vision_transformer_do_not_depend_on_their_batch():
    pixels = torch.randn(3, 3, 4 * SIDE, 4 * SIDE, generator=torch.Generator().manual_seed(1))
    pixels[1] = torch.nn.functional.avg_pool2d(pixels[1], 3, 1, 1)
    with catome.merge_keys(**GRID, threshold=0.5) as seen:
        together = encoded(pixels)
        alone = torch.cat([encoded(image[None]) for image in pixels])
    assert 0 < seen.keys_left < seen.keys
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


class Attending(torch.nn.Module):
    """Attention alone: what enters is queries, keys and values."""

    def forward(self, query, key=None, **rest):
        key = query if key is None else key
        return F.scaled_dot_product_attention(query, key, key.flip(-1), **rest)


def qkv(tokens: int = 1 + SIDE**2, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 2, tokens, 8, generator=torch.Generator().manual_seed(seed))


def test_merging_duplicates_changes_rounding_only_in_any_code():
    tokens = window_copies(qkv(), 1, Layout(1, 1, SIDE, SIDE))
    model = Attending()
    for changes in ({}, {"keep_queries": False}):
        with catome.merge_keys(**GRID, threshold=1.0, **changes) as seen:
            merged = model(tokens)
        assert seen.keys_left == seen.keys // 4
        torch.testing.assert_close(merged, model(tokens), rtol=0, atol=1e-5)
    with catome.merge_keys(**GRID, threshold=1.0, weighted=False):
        assert (model(tokens) - merged).abs().max() > 1e-2


@pytest.mark.parametrize(
    "call",
    [
        {"query": qkv(SIDE**2)},  # too few keys
        {"query": qkv(7), "key": qkv()},  # neither all tokens nor the image
        {"query": qkv(), "is_causal": True},
        {"query": qkv(), "attn_mask": torch.ones(1 + SIDE**2, 1 + SIDE**2).tril().bool()},
        {"query": qkv()[0], "key": qkv()[0]},  # without heads
        {"query": qkv(), "key": qkv()[:1]},  # the same keys for all
    ],
    ids=["few keys", "few queries", "causal", "masked", "three dimensions", "keys for all"],
)
def test_other_calls_are_left_as_they_are(call):
    model = Attending()
    plain = model(**call)
    with catome.merge_keys(**GRID, threshold=-1.0) as seen:
        assert torch.equal(model(**call), plain)
    assert (seen.calls, seen.merged_calls, seen.keys) == (1, 0, 0)


def test_merging_within_merging():
    """The inner one comes first; what it merges, the outer one leaves."""
    model = Attending()
    with catome.merge_keys(**GRID, threshold=-1.0) as outer:
        with catome.merge_keys(**GRID, ratio=0.5) as inner:
            nested = model(qkv())
        assert (outer.calls, outer.merged_calls) == (1, 0)
        with catome.merge_keys(**GRID, threshold=1.0):
            outside = model(qkv())
        assert (outer.calls, outer.merged_calls) == (2, 1)
        assert torch.equal(model(qkv()), outside)
    with catome.merge_keys(**GRID, ratio=0.5):
        assert torch.equal(model(qkv()), nested)
    assert inner.keys_left < inner.keys


def test_an_exception_leaves_no_mode_behind():
    model = Attending()
    plain = model(qkv())
    before = len(torch.overrides._get_current_function_mode_stack())
    with pytest.raises(RuntimeError, match="size"), catome.merge_keys(**GRID, threshold=-1.0):
        model(qkv(), qkv()[..., :4])
    with pytest.raises(ZeroDivisionError), catome.merge_keys(**GRID, threshold=-1.0):
        raise ZeroDivisionError
    assert len(torch.overrides._get_current_function_mode_stack()) == before
    assert torch.equal(model(qkv()), plain)


def test_keys_are_merged_in_a_patched_model_once():
    """The patch comes first, and `merge_keys` sees what it has merged."""
    model = built("wan")
    with catome.patched(model, threshold=-1.0):
        patched = answer("wan", 1)
        with catome.merge_keys(grid=(16, 12), threshold=-1.0) as seen:
            assert same(answer("wan", 1), patched)
    assert seen.calls > 0
    assert seen.merged_calls == 0
