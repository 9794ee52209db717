"""Names that torch and diffusers do not promise to keep, each with what is lost where a new version has lost
it."""

import inspect

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.hooks import HookRegistry, ModelHook

from catome.models import _diffusers, _torch

GROUPS = [
    name
    for name, value in vars(_diffusers).items()
    if name.isupper() and isinstance(value, tuple) and name != "END_OF_GENERATION"
]


@pytest.mark.parametrize("name", GROUPS)
def test_diffusers_has_the_classes_that_are_looked_for(name):
    found = getattr(_diffusers, name)
    assert found, (
        f"diffusers has none of the classes of _diffusers.{name} any more: nothing of this kind would be "
        "merged"
    )


def test_a_pipeline_still_says_where_a_generation_ends():
    source = inspect.getsource(StableDiffusionPipeline.maybe_free_model_hooks)
    assert _diffusers.END_OF_GENERATION in source, (
        f"pipelines no longer call {_diffusers.END_OF_GENERATION}: plans would outlive their generation"
    )


def test_hooks_of_diffusers_say_whether_they_keep_outputs():
    assert hasattr(ModelHook(), "_is_stateful"), (
        "ModelHook._is_stateful is gone: queries would be merged around kept outputs"
    )
    module = torch.nn.Linear(1, 1)
    HookRegistry.check_if_exists_or_initialize(module)
    assert "_diffusers_hook" in vars(module), "the hook registry has another name: keeps_outputs() sees none"


@pytest.mark.parametrize("table", _torch.HOOK_TABLES)
def test_torch_keeps_hooks_where_they_are_looked_for(table):
    assert hasattr(torch.nn.Linear(1, 1), table), (
        f"nn.Module.{table} is gone: remove_patch would leave hooks behind"
    )


def test_torch_shows_the_stack_of_function_modes():
    with _torch.SdpaMode(None) as mode:
        stack = torch.overrides._get_current_function_mode_stack()
    assert stack[-1] is mode, (
        "the stack of modes cannot be read: an interrupted attention would leave its mode behind"
    )


def test_a_module_is_called_through_call_impl():
    frames = []

    def before(module, args):
        frames.append(_torch._call_of_module())

    module = torch.nn.Linear(1, 1)
    module.register_forward_pre_hook(before)
    module(torch.zeros(1, 1))
    assert frames[0] is not None, "torch calls hooks from elsewhere: attention modes would never be under way"


def test_compiled_models_and_wrappers_are_looked_into():
    model = torch.nn.Linear(1, 1)
    compiled = torch.compile(model, backend="eager")
    assert _torch.original(compiled) is model, (
        "torch.compile's wrapper has no _orig_mod: a compiled model cannot be patched"
    )
    assert _torch.original(torch.nn.DataParallel(model)) is model


def test_the_onednn_product_that_matching_uses_on_the_cpu():
    from catome.tensors import matching

    a = torch.randn(5, 3)
    b = torch.randn(4, 3)
    bias = torch.randn(4)
    expected = a @ b.T + bias
    torch.testing.assert_close(matching._products(a, b, bias), expected)
    if torch.backends.mkldnn.is_available():
        assert matching._ONEDNN, (
            "torch.ops.mkldnn._linear_pointwise is gone: matching on the CPU takes twice as long"
        )


def test_attention_modules_have_the_names_that_make_them_plain():
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=2,
        layers_per_block=1,
        mid_block_type=None,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        attention_head_dim=2,
    )
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    names = (
        "group_norm",
        "spatial_norm",
        "norm_cross",
        "added_kv_proj_dim",
        "fused_projections",
        "residual_connection",
    )
    for name in names:
        assert hasattr(attention, name), (
            f"Attention.{name} is gone: is_plain() no longer sees what it must refuse"
        )
    assert _diffusers.is_plain(attention, {})
    assert not _diffusers.is_plain(attention, {"attention_mask": torch.zeros(1)})
    vae = AutoencoderKL(block_out_channels=[4], norm_num_groups=2, down_block_types=["DownEncoderBlock2D"])
    assert not _diffusers.is_plain(vae.decoder.mid_block.attentions[0], {})  # it has a norm of its own inside
