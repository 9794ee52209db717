"""Tests of what the families of the U-Nets declare, against what small models of every kind do."""

import inspect
import math
from contextlib import contextmanager
from functools import cache

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0, SlicedAttnProcessor
from torch.overrides import TorchFunctionMode

from catome.models import _diffusers, unet
from catome.models.base import ModelCall, bound
from helpers.tiny_unets import FRAMES, TINY_UNETS

BATCH = 2
TIMESTEP = 401.0
EVERYWHERE = 64
"""A ``max_downsample`` that leaves no level out."""

VIDEOS = ("animatediff", "sparse-controlnet", "unet-3d", "svd", "i2vgen-xl")

every_unet = pytest.mark.parametrize("tiny", TINY_UNETS, ids=lambda tiny: tiny.name)


@cache
def model_of(tiny):
    return tiny.build()


def family_of(model):
    return next(family for family in unet.FAMILIES if type(model).__name__ in family.classes)


class Recorder(TorchFunctionMode):
    """Keeps the queries and keys of every attention, by the name of the module that is running."""

    def __init__(self):
        super().__init__()
        self.running = []
        self.seen = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and self.running:
            # Processors give them by place, the attention backends of diffusers by name.
            given = dict(zip(("query", "key"), args, strict=False)) | kwargs
            self.seen.setdefault(self.running[-1], []).append((given["query"], given["key"]))
        return func(*args, **kwargs)


@contextmanager
def recorded(model):
    """Record what the attention modules of a model do in a ``with`` block, and the arguments of its call."""
    recorder = Recorder()
    recorder.call = None

    def began(model, args, kwargs):
        recorder.call = ModelCall(model, bound(model, args, kwargs))

    handles = [model.register_forward_pre_hook(began, with_kwargs=True)]
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            enter = module.register_forward_pre_hook(lambda *_, name=name: recorder.running.append(name))
            leave = module.register_forward_hook(lambda *_: recorder.running.pop() and None)
            handles += [enter, leave]
    try:
        with recorder:
            yield recorder
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def run(model, inputs):
    """The output of a model as one tensor, and the record of the call."""
    with recorded(model) as record:
        output = model(**inputs)
    while not isinstance(output, torch.Tensor):  # a ControlNet's is nested
        output = output[-1]
    return output, record


def rows(tiny):
    """The rows of a spatial attention: one for each image, or for each frame."""
    return BATCH * FRAMES if tiny.name in VIDEOS else BATCH


@every_unet
def test_every_declared_attention_runs_and_has_a_layout(tiny):
    model = model_of(tiny)
    declared = family_of(model).attentions(model, EVERYWHERE)
    _, record = run(model, tiny.inputs(BATCH, TIMESTEP, 0))
    modules = dict(model.named_modules())
    for attention in declared:
        assert modules[attention.name] is attention.module
        assert attention.block is None or attention.module in set(attention.block.children())
        for query, key in record.seen[attention.name]:
            layout = attention.layout(record.call, query.shape[-2], key.shape[-2])
            assert query.shape[0] == key.shape[0] == rows(tiny)
            assert layout.frames == 1
            assert layout.tokens == query.shape[-2]
            assert layout.first + layout.tokens <= key.shape[-2]
            assert layout.width * 2 == layout.height * 3  # as in all samples
            assert attention.layout(record.call, query.shape[-2] + 1, key.shape[-2] + 1) is None
            assert attention.layout(record.call, query.shape[-2], query.shape[-2] - 1) is None


@every_unet
def test_nothing_else_is_spatial_self_attention(tiny):
    """By what each module does, and not by its name: cross-attention and temporal attention are not
    declared."""
    model = model_of(tiny)
    declared = family_of(model).attentions(model, EVERYWHERE)
    _, record = run(model, tiny.inputs(BATCH, TIMESTEP, 0))
    text = {attention.name: 0 for attention in declared}
    for attention in declared:
        query, key = record.seen[attention.name][0]
        text[attention.name] = key.shape[-2] - query.shape[-2]
    spatial = set()
    for name, [(query, key), *_] in record.seen.items():
        if query.shape[0] == rows(tiny) and key.shape[-2] == query.shape[-2] + text.get(name, 0):
            spatial.add(name)
    assert spatial == set(text)
    assert len(text) == len(declared)  # each is declared once


@every_unet
def test_attentions_are_declared_in_the_order_in_which_they_run(tiny):
    model = model_of(tiny)
    declared = [attention.name for attention in family_of(model).attentions(model, EVERYWHERE)]
    _, record = run(model, tiny.inputs(BATCH, TIMESTEP, 0))
    assert declared == [name for name in record.seen if name in set(declared)]


@every_unet
def test_max_downsample_counts_from_the_topmost_attention(tiny):
    model = model_of(tiny)
    family = family_of(model)
    _, record = run(model, tiny.inputs(BATCH, TIMESTEP, 0))
    tokens = {a.name: record.seen[a.name][0][0].shape[-2] for a in family.attentions(model, EVERYWHERE)}
    most = max(tokens.values())
    assert most >= 8 * 12
    assert len(family.attentions(model, 1)) == tiny.attentions
    for limit in (1, 2, 4):
        names = {attention.name for attention in family.attentions(model, limit)}
        assert names == {name for name, count in tokens.items() if count * limit**2 >= most}


@every_unet
def test_the_pixel_that_changes_is_where_the_layout_says(tiny):
    """The key that a pixel changes most is at its place in the layout; the rows of another image do not
    change."""
    model = model_of(tiny)
    attention = family_of(model).attentions(model, 1)[0]
    inputs = tiny.inputs(BATCH, TIMESTEP, 0)
    # This model does not look at its sample, only at its size.
    changed = "controlnet_cond" if tiny.name == "sparse-controlnet" else "sample"
    height, width = inputs[changed].shape[-2:]
    _, before = run(model, inputs)
    query, key = before.seen[attention.name][0]
    layout = attention.layout(before.call, query.shape[-2], key.shape[-2])
    downsample = math.isqrt(height * width // layout.tokens)
    for row, column in [(1, width - 2), (height - 2, 1), (height // 2, width // 2)]:
        sample = inputs[changed].clone()
        image = sample[1]  # the second of the batch
        if tiny.name in VIDEOS:
            image = image[0] if tiny.name == "svd" else image[:, 0]  # its first frame
        image[..., row, column] += 4 * image.abs().amax()
        _, after = run(model, {**inputs, changed: sample})
        difference = (after.seen[attention.name][0][1] - key).square().sum((1, 3))
        first_image, second_image = difference.chunk(BATCH)
        assert first_image.max() < 1e-6 * second_image.max()
        position = int(difference.argmax()) % key.shape[-2] - layout.first
        assert 0 <= position < layout.tokens
        found = divmod(position, layout.width)
        assert abs(found[0] - row // downsample) <= 2
        assert abs(found[1] - column // downsample) <= 2


@every_unet
def test_a_tiny_model_is_made_to_be_tested_with(tiny):
    """It is the same each time, images do not depend on their batch, and attention matters to the output."""
    model = model_of(tiny)
    for mine, theirs in zip(model.parameters(), tiny.build().parameters(), strict=True):
        assert torch.equal(mine, theirs)
    inputs = tiny.inputs(BATCH, TIMESTEP, 7)
    alone = tiny.inputs(1, TIMESTEP, 8)
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value[len(value) // BATCH :], alone[name], rtol=0, atol=0)
    output, _ = run(model, inputs)
    assert output.isfinite().all()
    handles = [
        attention.module.register_forward_hook(lambda _module, _args, output: torch.zeros_like(output))
        for attention in family_of(model).attentions(model, 1)
    ]
    without, _ = run(model, inputs)
    for handle in handles:
        handle.remove()
    assert (without - output).norm() > 0.05 * output.norm()


@pytest.mark.parametrize(
    ("name", "sample"),
    [("unet-sd", (4, 9, 13)), ("svd", (FRAMES, 8, 9, 13)), ("cascade-decoder", (4, 34, 50))],
)
def test_odd_edges_are_rounded_as_the_model_does(name, sample):
    tiny = next(tiny for tiny in TINY_UNETS if tiny.name == name)
    model = model_of(tiny)
    inputs = tiny.inputs(BATCH, TIMESTEP, 0)
    inputs["sample"] = torch.randn(BATCH, *sample, generator=torch.Generator().manual_seed(0))
    _, record = run(model, inputs)
    grids = set()
    for attention in family_of(model).attentions(model, EVERYWHERE):
        for query, key in record.seen[attention.name]:
            layout = attention.layout(record.call, query.shape[-2], key.shape[-2])
            grids.add((layout.height, layout.width))
    up = {(9, 13), (5, 7), (3, 4)}
    assert grids == {"unet-sd": up, "svd": up - {(3, 4)}, "cascade-decoder": {(8, 12), (4, 6)}}[name]


def test_a_call_whose_sample_is_unknown_has_no_layout():
    tiny = TINY_UNETS[0]
    model = model_of(tiny)
    attention = family_of(model).attentions(model, 1)[0]
    assert attention.layout(ModelCall(model, {}), 96, 96) is None


def grid_by_size(tokens: int, size: tuple[int, int], max_downsample: int) -> tuple[int, int] | None:
    """The token grid of so many tokens in a U-Net whose sample has a size; None if they are downsampled more
    than that."""
    for downsample in (2**level for level in range(max_downsample.bit_length())):
        grid = tuple(math.ceil(edge / downsample) for edge in size)
        if math.prod(grid) == tokens:
            return grid
    return None


def test_unets_of_stable_diffusion_are_as_before():
    """The attentions declared with transformer blocks around them are those that the helpers find, by the
    same grids."""
    for name in ("unet-sd", "unet-sdxl"):
        tiny = next(tiny for tiny in TINY_UNETS if tiny.name == name)
        model = model_of(tiny)
        inputs = tiny.inputs(BATCH, TIMESTEP, 0)
        size = tuple(inputs["sample"].shape[-2:])
        call = ModelCall(model, inputs)
        blocks = unet.transformer_blocks(model)
        for max_downsample in (1, 2, 3, 4):
            declared = {a.block: a for a in family_of(model).attentions(model, max_downsample)}
            limit = unet.topmost_downsample(model) * max_downsample
            _, record = run(model, inputs)
            for block_name, block in blocks.items():
                query, key = record.seen[f"{block_name}.attn1"][0]
                grid = grid_by_size(query.shape[-2], size, limit)
                assert (grid is not None) == (block in declared)
                if grid is not None:
                    layout = declared[block].layout(call, query.shape[-2], key.shape[-2])
                    assert grid == (layout.height, layout.width)


def test_every_class_that_is_named_exists_and_is_named_once():
    declared = [name for family in unet.FAMILIES for name in family.classes]
    named = [*declared, *unet.REFUSED]
    assert len(named) == len(set(named))
    assert all(isinstance(getattr(diffusers, name), type) for name in declared)
    built = {type(model_of(tiny)).__name__ for tiny in TINY_UNETS}
    assert built == set(declared)
    for family in unet.FAMILIES:
        for name in family.classes:
            parameters = inspect.signature(getattr(diffusers, name).forward).parameters
            wanted = {family.timestep, family.sample, family.condition} - {None}
            assert wanted <= set(parameters)


def test_this_version_has_every_private_class():
    tuples = {name: value for name, value in vars(_diffusers).items() if isinstance(value, tuple)}
    counts = {name: len(value) for name, value in tuples.items()}
    assert counts == {
        "ATTENTIONS": 1,
        "CASCADE_BLOCKS": 1,
        "IMAGE_BLOCKS": 5,
        "KANDINSKY_3_BLOCKS": 2,
        "K_BLOCKS": 1,
        "PLAIN_PROCESSORS": 4,
        "SDPA_PROCESSORS": 5,
        "TEMPORAL_MODULES": 2,
        "TEXT_AND_IMAGE_BLOCKS": 3,
        "TRANSFORMER_BLOCKS": 2,
        "TWIN_BLOCKS": 1,
    }
    assert _diffusers.classes("no_such_module", "Attention") == ()
    assert _diffusers.classes("attention_processor", "NoSuchProcessor") == ()


def plain_attention(**more):
    torch.manual_seed(0)
    return Attention(query_dim=16, heads=2, dim_head=8, **more).eval()


@pytest.mark.parametrize("kind", _diffusers.PLAIN_PROCESSORS, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_plain_processors_take_keys_and_a_mask_in_self_attention(kind):
    """The output is that of each row by itself, with these keys and this mask added to the scores."""
    if kind.__name__ == "XFormersAttnProcessor":
        pytest.importorskip("xformers")
    attention = plain_attention(processor=kind(1) if kind is SlicedAttnProcessor else kind())
    tokens = torch.randn(3, 12, 16)
    keys = torch.randn(3, 8, 16)
    mask = torch.randn(3, 1, 8)
    output = attention(tokens, encoder_hidden_states=keys, attention_mask=mask)
    for row in range(3):
        query = attention.to_q(tokens[row]).unflatten(-1, (2, 8)).transpose(0, 1)
        key = attention.to_k(keys[row]).unflatten(-1, (2, 8)).transpose(0, 1)
        value = attention.to_v(keys[row]).unflatten(-1, (2, 8)).transpose(0, 1)
        scores = query @ key.mT / math.sqrt(8) + mask[row]
        merged = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)
        torch.testing.assert_close(output[row], attention.to_out[0](merged), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_fused_processor_takes_no_keys_in_self_attention():
    attention = plain_attention()
    attention.fuse_projections()
    attention.set_processor(FusedAttnProcessor2_0())
    tokens = torch.randn(3, 12, 16)
    attention(tokens)
    with pytest.raises(AttributeError, match="to_kv"):
        attention(tokens, encoder_hidden_states=tokens)


@pytest.mark.parametrize("kind", _diffusers.SDPA_PROCESSORS, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_sdpa_processors_call_it_once_with_every_row(kind):
    attention = plain_attention()
    tokens = torch.randn(3, 12, 16)
    given = {}
    if "AddedKV" in kind.__name__:
        attention = plain_attention(added_kv_proj_dim=16, norm_num_groups=4)
        tokens = torch.randn(3, 16, 4, 3)
        given = {"encoder_hidden_states": torch.randn(3, 5, 16)}
    if "CustomDiffusion" in kind.__name__:
        attention.set_processor(kind(train_kv=False, train_q_out=False))
    else:
        attention.set_processor(kind())
    if "Fused" in kind.__name__:
        attention.fuse_projections()
    with recorded(torch.nn.ModuleDict({"attention": attention})) as record:
        attention(tokens, **given)
    [(query, key)] = record.seen["attention"]
    assert query.shape[::2] == (3, 12)
    assert key.shape[::2] == (3, 17 if given else 12)
