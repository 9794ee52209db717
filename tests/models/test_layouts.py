"""Where the image tokens lie is what the declarations say: a changed patch of the latents changes that key, and no other."""

import functools

import pytest
import torch
from tiny_models import TINY_TRANSFORMERS, TinyModel
from torch.overrides import TorchFunctionMode

from catome.models import dit, mmdit, video
from catome.models.base import Family, Layout, ModelCall

FAMILIES = {
    name: family for part in (dit, mmdit, video) for family in part.FAMILIES for name in family.classes
}
MODELS = {tiny.name: tiny for tiny in TINY_TRANSFORMERS}


@functools.cache
def built(name: str) -> tuple[torch.nn.Module, Family]:
    model = MODELS[name].build()
    return model, FAMILIES[type(model).__name__]


class Heard(TorchFunctionMode):
    """Hears every call of attention, and answers with zeros: no token learns anything of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.module = None
        self.calls = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self.attend(*args, **kwargs)

    def attend(self, query, key, value, attn_mask=None, **others) -> torch.Tensor:
        if self.module is not None:
            self.calls.append((self.module, query.shape[2], key.clone(), attn_mask))
        return query.new_zeros(*query.shape[:-1], value.shape[-1])


def heard(name: str, inputs: dict) -> list[tuple[str, Layout | None, torch.Tensor, torch.Tensor | None]]:
    """The attention calls inside the declared modules, in order: the module's name, the layout, the keys, the mask."""
    model, family = built(name)
    attentions = family.attentions(model, 1)
    layouts = {attention.name: attention.layout for attention in attentions}
    mode = Heard()
    handles = []
    for attention in attentions:

        def enter(module, args, name=attention.name):
            mode.module = name

        def leave(module, args, output):
            mode.module = None

        handles.append(attention.module.register_forward_pre_hook(enter))
        handles.append(attention.module.register_forward_hook(leave))
    try:
        with mode, torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    call = ModelCall(model, inputs)
    return [
        (name, layouts[name](call, queries, key.shape[2]), key, mask)
        for name, queries, key, mask in mode.calls
    ]


def found(name: str, inputs: dict) -> list[Layout]:
    """The layouts that are told in one call of the model."""
    return [layout for _, layout, _, _ in heard(name, inputs) if layout is not None]


@pytest.mark.parametrize("tiny", TINY_TRANSFORMERS, ids=lambda tiny: tiny.name)
def test_a_patch_of_the_latents_is_the_key_that_the_layout_says(tiny: TinyModel):
    model, family = built(tiny.name)
    declared = [attention.name for attention in family.attentions(model, 1)]
    assert len(declared) == tiny.attentions
    inputs = tiny.inputs(1, 500.0, 3)
    assert {family.timestep, family.sample} <= inputs.keys() | {"timestep"}
    assert family.condition is None or family.condition in inputs

    before = heard(tiny.name, inputs)
    told = [index for index, (_, layout, _, _) in enumerate(before) if layout is not None]
    assert [before[index][0] for index in told] == declared  # each once, in the order in which they run

    frames, height, width = tiny.grid
    for frame, row, column in ((0, 0, 0), (frames - 1, height - 1, 1), (frames - 1, 2, width - 1)):
        after = heard(tiny.name, tiny.mark(inputs, frame, row, column))
        for index in told:
            name, layout, keys, _ = before[index]
            assert (layout.frames, layout.height, layout.width) == tiny.grid, name
            assert 0 <= layout.first <= keys.shape[2] - layout.tokens, name
            changed = (
                (after[index][2] != keys).any(3).any(1).any(0)[layout.first : layout.first + layout.tokens]
            )
            assert changed.nonzero().flatten().tolist() == [(frame * height + row) * width + column], name


@pytest.mark.parametrize("tiny", TINY_TRANSFORMERS, ids=lambda tiny: tiny.name)
def test_masks_treat_the_image_tokens_alike(tiny: TinyModel):
    """What a merged key may be looked at by is what each of its tokens may be looked at by."""
    for name, layout, keys, mask in heard(tiny.name, tiny.inputs(1, 500.0, 3)):
        if layout is not None and mask is not None and mask.shape[-1] > 1:
            assert mask.shape[-1] == keys.shape[2], name
            image = mask[..., layout.first : layout.first + layout.tokens]
            assert (image == image[..., :1]).all(), name


@pytest.mark.parametrize("tiny", TINY_TRANSFORMERS, ids=lambda tiny: tiny.name)
def test_the_layout_does_not_depend_on_the_batch(tiny: TinyModel):
    alone = found(tiny.name, tiny.inputs(1, 500.0, 3))
    # Mochi attends for each video on its own, without saying for which
    assert found(tiny.name, tiny.inputs(2, 500.0, 3)) == ([] if tiny.name == "mochi" else alone)


@pytest.mark.parametrize("tiny", TINY_TRANSFORMERS, ids=lambda tiny: tiny.name)
def test_attention_shows_in_the_answer(tiny: TinyModel):
    """Else a test with this model would not notice what is done to its attention."""
    model, _ = built(tiny.name)
    inputs = tiny.inputs(1, 500.0, 3)
    with torch.no_grad():
        answer = tensor(model(**inputs))
        with Heard():
            without = tensor(model(**inputs))
    assert answer.isfinite().all()
    assert (answer - without).abs().max() > 0.01 * answer.abs().max()


def tensor(answer) -> torch.Tensor:
    """The first tensor in an answer."""
    while not isinstance(answer, torch.Tensor):
        answer = answer[0]
    return answer
