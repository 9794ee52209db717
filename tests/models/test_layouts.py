"""Image tokens lie where declarations say: a changed patch of the latents changes that key and no other."""

import functools

import pytest
import torch
from diffusers import Transformer2DModel
from torch.overrides import TorchFunctionMode

from catome.models import dit, layouts, mmdit, video
from catome.models.base import Family, Layout, ModelCall
from helpers.tiny_models import TINY_TRANSFORMERS, TinyModel

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
    """The attention calls in the declared modules, in order: the module's name, layout, keys and mask."""
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
    """A merged key may be looked at by just what each of its tokens may be looked at by."""
    for name, layout, keys, mask in heard(tiny.name, tiny.inputs(1, 500.0, 3)):
        if layout is not None and mask is not None and mask.shape[-1] > 1:
            assert mask.shape[-1] == keys.shape[2], name
            image = mask[..., layout.first : layout.first + layout.tokens]
            assert (image == image[..., :1]).all(), name


@pytest.mark.parametrize("tiny", TINY_TRANSFORMERS, ids=lambda tiny: tiny.name)
def test_the_layout_does_not_depend_on_the_batch(tiny: TinyModel):
    alone = found(tiny.name, tiny.inputs(1, 500.0, 3))
    calls = 2 if tiny.name == "mochi" else 1  # it attends for each video on its own
    assert found(tiny.name, tiny.inputs(2, 500.0, 3)) == [layout for layout in alone for _ in range(calls)]


@pytest.mark.parametrize("tiny", TINY_TRANSFORMERS, ids=lambda tiny: tiny.name)
def test_attention_shows_in_the_answer(tiny: TinyModel):
    """Else a test with this model would not notice what is done to its attention."""
    model, _ = built(tiny.name)
    inputs = tiny.inputs(1, 500.0, 3)
    with torch.no_grad():
        answer = images(model(**inputs))
        with Heard():
            without = images(model(**inputs))
    assert answer.isfinite().all()
    assert (answer - without).abs().max() > 0.01 * answer.abs().max()


@pytest.mark.parametrize("tiny", TINY_TRANSFORMERS, ids=lambda tiny: tiny.name)
def test_an_image_is_the_same_in_a_batch_and_on_its_own(tiny: TinyModel):
    model, _ = built(tiny.name)
    with torch.no_grad():
        together = images(model(**tiny.inputs(2, 500.0, 3)))
        alone = [images(model(**tiny.inputs(1, 500.0, seed))) for seed in (3, 4)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-4)


def images(answer) -> torch.Tensor:
    """The answer of a model, ``[B, ...]``."""
    first = answer[0] if isinstance(answer, tuple) else answer
    return torch.stack(first) if isinstance(first, list) else first


# What cannot be told.


def told(name: str, queries: int, keys: int, **arguments) -> set[Layout | None]:
    """The layouts that the declaration of a tiny model gives for a call with the tiny inputs, or others
    instead."""
    model, family = built(name)
    inputs = {**MODELS[name].inputs(1, 500.0, 3), **arguments}
    call = ModelCall(model, {key: value for key, value in inputs.items() if value is not None})
    return {attention.layout(call, queries, keys) for attention in family.attentions(model, 1)}


def test_another_number_of_keys_is_another_attention():
    assert told("pixart", 96, 96) == {Layout(0, 1, 8, 12)}
    assert told("pixart", 96, 5) == told("pixart", 96, 97) == {None}
    assert told("flux", 101, 101) == {Layout(5, 1, 8, 12)}
    assert told("flux", 96, 4) == told("flux", 101, 105) == {None}  # an IP-Adapter's, some other
    assert told("wan", 192, 512) == {None}
    assert told("qwen-image-2.1", 24, 27) == {None}  # a reference image's within the prompt


@pytest.mark.parametrize(
    "positions",
    [
        None,
        torch.zeros(96, 3),
        torch.zeros(96, 2),
        torch.arange(96)[:, None] * torch.tensor([0.0, 1.0, 1.0]),
        torch.stack([torch.zeros(96), torch.arange(96) // 10, torch.arange(96) % 10], dim=1),
        torch.stack([torch.zeros(96), torch.arange(96) % 8, torch.arange(96) // 8], dim=1),
    ],
    ids=["none", "all the same", "no columns", "a diagonal", "an incomplete row", "column by column"],
)
def test_positions_that_are_no_grid_row_by_row(positions):
    assert told("flux", 101, 101, img_ids=positions) == {None}


def test_positions_are_read_once(monkeypatch):
    readings = []
    monkeypatch.setattr(layouts, "_grid", lambda positions: readings.append(positions) or (1, 8, 12))
    positions = torch.zeros(96, 3)
    for _ in range(3):
        assert told("flux", 101, 101, img_ids=positions) == {Layout(5, 1, 8, 12)}
    assert len(readings) == 1
    positions.add_(1)
    told("flux", 101, 101, img_ids=positions)
    told("flux", 101, 101, img_ids=positions.clone())
    assert len(readings) == 3


def test_prompts_of_different_lengths():
    tiny = MODELS["lumina2"]
    inputs = tiny.inputs(2, 500.0, 3)
    inputs["encoder_attention_mask"][1, 3] = False
    assert found("lumina2", inputs) == [Layout(0, 1, 8, 12)]  # where the image is alone
    inputs = MODELS["bria-fibo2"].inputs(2, 500.0, 3)
    inputs["encoder_attention_mask"][1, 3] = False
    assert len(found("bria-fibo2", inputs)) == 1
    inputs = MODELS["z-image"].inputs(2, 500.0, 3)
    inputs["cap_feats"][0] = torch.zeros(40, 24)
    assert found("z-image", inputs) == [Layout(0, 1, 8, 13)] * 2  # the image comes first


def test_images_of_different_sizes():
    inputs = MODELS["z-image"].inputs(2, 500.0, 3)
    inputs["x"][0] = inputs["x"][0][:, :, :, :24]
    assert found("z-image", inputs) == []
    shapes = [[(1, 8, 12), (1, 4, 6)], [(1, 12, 8), (1, 4, 6)]]
    assert told("joyimage-edit-plus", 125, 125, shape_list=shapes) == {None}
    assert told("z-image", 160, 160, x=[[torch.zeros(4, 1, 16, 26)]]) == {None}  # with reference images


def test_calls_that_are_left_alone():
    assert told("ltx-video", 192, 192, num_frames=None) == {None}
    assert told("ltx-video", 200, 200) == {None}  # with tokens of conditioning frames
    assert told("pixart", 96, 96, attention_mask=torch.ones(1, 96)) == {None}
    assert told("allegro", 192, 192, attention_mask=torch.ones(1, 2, 16, 24)) == {None}
    assert told("kandinsky5", 192, 192, sparse_params={"to_fractal": True}) == {None}
    assert told("kandinsky6", 192, 192, visual_token_type_ids=torch.zeros(1, 2).long()) == {None}
    assert told("cogvideox", 197, 197) == {Layout(5, 2, 8, 12)}
    assert told("cogvideox", 100, 100) == {None}


def test_attention_that_is_causal_in_time():
    assert told("skyreels-v2", 192, 192) == {Layout(0, 2, 8, 12)}
    tiny = MODELS["skyreels-v2"]
    model = tiny.build()
    model._set_ar_attention(2)
    call = ModelCall(model, tiny.inputs(1, 500.0, 3))
    for attention in FAMILIES["SkyReelsV2Transformer3DModel"].attentions(model, 1):
        assert attention.layout(call, 192, 192) is None


def test_the_cache_of_reference_images_being_filled():
    """GLM-Image runs the model on a reference image: that is not the image that is generated."""
    inputs = MODELS["glm-image-edit"].inputs(1, 500.0, 3)
    inputs["kv_caches"].set_mode("write")
    assert found("glm-image-edit", inputs) == []


def test_perturbed_attention_guidance():
    """Its processors split the batch, and mask the image's tokens one by one."""
    from diffusers.models.attention_processor import PAGHunyuanAttnProcessor2_0

    model, _ = built("hunyuan-dit")
    attention = model.blocks[1].attn1
    own = attention.processor
    attention.set_processor(PAGHunyuanAttnProcessor2_0())
    try:
        assert len(found("hunyuan-dit", MODELS["hunyuan-dit"].inputs(2, 500.0, 3))) == 3
    finally:
        attention.set_processor(own)
    assert len(found("hunyuan-dit", MODELS["hunyuan-dit"].inputs(2, 500.0, 3))) == 4


def test_latents_that_are_not_cut_into_patches():
    model = Transformer2DModel(2, 16, in_channels=32, cross_attention_dim=24)
    (attention,) = FAMILIES["Transformer2DModel"].attentions(model, 1)
    assert attention.name == "transformer_blocks.0.attn1"
    assert attention.layout(ModelCall(model, {"hidden_states": torch.zeros(1, 32, 8, 12)}), 96, 96) == Layout(
        0, 1, 8, 12
    )
    assert attention.layout(ModelCall(model, {"hidden_states": torch.zeros(1, 96).long()}), 96, 96) is None


def test_cross_attention_in_the_place_of_self_attention():
    model = Transformer2DModel(2, 16, in_channels=32, cross_attention_dim=24, only_cross_attention=True)
    assert FAMILIES["Transformer2DModel"].attentions(model, 1) == []


def test_every_declared_class_is_tested_and_none_is_refused():
    tested = {type(built(name)[0]).__name__ for name in MODELS}
    assert tested == FAMILIES.keys()
    assert not FAMILIES.keys() & dit.REFUSED.keys()
    assert len(FAMILIES) == sum(
        len(family.classes) for part in (dit, mmdit, video) for family in part.FAMILIES
    )


def test_what_is_refused_has_a_reason():
    for name, reason in dit.REFUSED.items():
        assert name.isidentifier()
        assert reason[0].islower(), reason
        assert not reason.endswith("."), reason
