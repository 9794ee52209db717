"""Attention over merged keys: exact where keys are equal, within the stated bound elsewhere, whatever
surrounds the image."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import catome
from catome.runtime import hooks
from catome.tensors import attention, kernels
from catome.tensors.attention import attend, key_bias, padded, unpadded, way_for, weighted_attention
from catome.tensors.matching import best_matches
from catome.tensors.plan import make_plan, match

GRID = (6, 8)
TOKENS = GRID[0] * GRID[1]


def drawn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heads_of(tokens, heads):
    """``[B, N, C]`` as ``[B, H, N, C / H]``."""
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def repeated(images, channels, kinds, seed=0):
    """Tokens ``[B, N, C]`` of which many are equal to each other."""
    generator = torch.Generator().manual_seed(seed)
    palette = torch.randn(images, kinds, channels, generator=generator)
    which = torch.randint(kinds, (images, TOKENS), generator=generator)
    return palette.gather(1, which[..., None].expand(-1, -1, channels))


def looped(query, key, value, plan, first, weighted):
    """The definition, image by image and group by group, in float64."""
    tokens = plan.slot.shape[1]
    out = []
    for b in range(len(query)):
        keys = []
        values = []
        bias = []
        for place in range(key.shape[2]):
            if not first <= place < first + tokens:
                keys.append(key[b, :, place])
                values.append(value[b, :, place])
                bias.append(0.0)
        for slot in plan.slot[b].unique():
            members = first + (plan.slot[b] == slot).nonzero()[:, 0]
            keys.append(key[b][:, members].mean(1))
            values.append(value[b][:, members].mean(1))
            bias.append(math.log(len(members)) if weighted else 0.0)
        scores = query[b].double() @ torch.stack(keys, 1).double().mT / math.sqrt(query.shape[-1])
        weights = (scores + torch.tensor(bias, dtype=torch.float64)).softmax(-1)
        out.append(weights @ torch.stack(values, 1).double())
    return torch.stack(out)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("first", "behind"), [(0, 0), (5, 0), (0, 3), (4, 2)])
@pytest.mark.parametrize("amount", [{"threshold": 0.25}, {"ratio": 0.5}])
def test_it_is_what_the_words_say(weighted, first, behind, amount):
    """Images that keep different numbers of keys, with text before and behind them."""
    length = first + TOKENS + behind
    query, key, value = (drawn(3, 2, length, 8, seed=seed) for seed in range(3))
    image = key[:, :, first : first + TOKENS].transpose(1, 2).flatten(2)
    plan = match(image, GRID, **amount)
    assert plan.merges
    assert plan.ragged == ("threshold" in amount)
    found = attend(query, key, value, plan, first, weighted=weighted)
    expected = looped(query, key, value, plan, first, weighted)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.integers(1, TOKENS),
    heads=st.sampled_from([1, 2, 4]),
    scale=st.sampled_from([0.01, 1.0, 8.0]),
    seed=st.integers(0, 2**20),
)
def test_exact_duplicates_change_rounding_alone(kinds, heads, scale, seed):
    """threshold=1.0 and weights, whatever the input."""
    key = heads_of(repeated(2, 16, kinds, seed), heads) * scale
    values = heads_of(repeated(2, 16, kinds, seed + 1), heads)
    query = heads_of(drawn(2, TOKENS, 16, seed=seed + 2, scale=scale), heads)
    # merged are those whose keys and values are equal
    tokens = torch.cat([key, values], 3).transpose(1, 2).flatten(2)
    plan = make_plan(best_matches(tokens, GRID), threshold=1.0)
    plain = F.scaled_dot_product_attention(query, key, values)
    torch.testing.assert_close(attend(query, key, values, plan), plain, atol=2e-5, rtol=1e-5)


def test_without_weights_even_duplicates_change_the_result():
    """The paper's method and ToMe count a group as one: why its images change although nothing was lost."""
    key = heads_of(repeated(1, 16, 6), 2)
    query = heads_of(drawn(1, TOKENS, 16), 2)
    tokens = key.transpose(1, 2).flatten(2)
    plan = make_plan(best_matches(tokens, GRID), threshold=1.0)
    assert plan.merges
    plain = F.scaled_dot_product_attention(query, key, key)
    torch.testing.assert_close(attend(query, key, key, plan), plain, atol=1e-5, rtol=0)
    assert (attend(query, key, key, plan, weighted=False) - plain).abs().max() > 0.01


@settings(max_examples=60, deadline=None)
@given(spread=st.floats(0.0, 3.0), seed=st.integers(0, 2**20), ratio=st.sampled_from([0.25, 0.5, 0.75]))
def test_the_bound_holds(spread, seed, ratio):
    """That of the module's first lines, for each query."""
    key = (repeated(1, 8, 5, seed) + drawn(1, TOKENS, 8, seed=seed + 1, scale=spread / 4)).double()
    value = (repeated(1, 8, 5, seed) + drawn(1, TOKENS, 8, seed=seed + 2, scale=spread / 4)).double()
    query = drawn(1, 1, TOKENS, 8, seed=seed + 3).double()
    plan = match(key, GRID, ratio=ratio)
    plain = F.scaled_dot_product_attention(query, key[:, None], value[:, None])[0, 0]
    merged = attend(query, key[:, None], value[:, None], plan)[0, 0]
    groups = [(plan.slot[0] == slot).nonzero()[:, 0] for slot in range(plan.lengths[0])]
    means = torch.stack([value[0, group].mean(0) for group in groups])
    between = torch.cdist(means, means).max()
    within = max(torch.cdist(value[0, group], value[0, group]).max() for group in groups)
    scores = query[0, 0] @ key[0].T / math.sqrt(8)
    delta = torch.stack(
        [(scores[:, g] - scores[:, g].mean(1, keepdim=True)).abs().amax(1) for g in groups]
    ).amax(0)
    exact = torch.tanh(delta.cosh().log() / 4) * between + torch.tanh(delta / 2) * within
    simple = delta**2 / 8 * between + delta / 2 * within
    off = (merged - plain).norm(dim=1)
    assert (off <= exact + 1e-9).all()
    assert (exact <= simple + 1e-9).all()


def test_the_error_is_of_second_order():
    """Half the spread of the keys and values within groups makes a quarter of the error."""
    centre = repeated(1, 8, 4)
    noise = drawn(1, TOKENS, 8, seed=5)
    query = drawn(1, 1, TOKENS, 8, seed=6).double()
    plan = match(centre + 0.001 * noise, GRID, threshold=0.999)
    assert plan.merged_share.item() > 0.4
    off = []
    for spread in (0.1, 0.05):
        tokens = (centre + spread * noise).double()[:, None]
        plain = F.scaled_dot_product_attention(query, tokens, tokens)
        off.append((attend(query, tokens, tokens, plan) - plain).norm().item())
    assert 3.5 < off[0] / off[1] < 4.5


@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("amount", [{"threshold": 0.25}, {"ratio": 0.5}])
def test_merged_queries_are_the_attention_of_merged_tokens(first, amount):
    """Every image token has the result of its group; text keeps its own."""
    query, key, value = (drawn(2, 2, first + TOKENS, 8, seed=seed) for seed in range(3))
    plan = match(key[:, :, first:].transpose(1, 2).flatten(2), GRID, **amount)
    found = attend(query, key, value, plan, first, merge_queries=True)
    image = plan.unmerge(plan.merge(query[:, :, first:].transpose(1, 2).flatten(2)))
    merged = torch.cat([query[:, :, :first], heads_of(image, 2)], 2)
    expected = attend(merged, key, value, plan, first)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_queries_of_the_image_alone_may_be_merged_where_keys_have_text():
    first = 3
    query = drawn(2, 2, TOKENS, 8)
    key, value = (drawn(2, 2, first + TOKENS, 8, seed=seed) for seed in (1, 2))
    plan = match(key[:, :, first:].transpose(1, 2).flatten(2), GRID, threshold=0.25)
    found = attend(query, key, value, plan, first, merge_queries=True)
    merged = heads_of(plan.unmerge(plan.merge(query.transpose(1, 2).flatten(2))), 2)
    torch.testing.assert_close(found, attend(merged, key, value, plan, first), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["boolean", "added"])
@pytest.mark.parametrize("rows", [1, 7 + TOKENS])
def test_a_mask_over_text_still_holds(kind, rows):
    first = 7
    query, key, value = (drawn(2, 2, first + TOKENS, 8, seed=seed) for seed in range(3))
    allowed = torch.ones(2, 1, rows, first + TOKENS, dtype=torch.bool)
    allowed[0, ..., 2:first] = False
    allowed[1, ..., 5:first] = False
    mask = allowed if kind == "boolean" else torch.zeros(allowed.shape).masked_fill(~allowed, -math.inf)
    plan = match(key[:, :, first:].transpose(1, 2).flatten(2), GRID, threshold=0.25)
    found = attend(query, key, value, plan, first, attn_mask=mask)
    for b, kept in enumerate((2, 5)):
        places = [*range(kept), *range(first, first + TOKENS)]
        own = make_plan(
            best_matches(key[b : b + 1, :, first:].transpose(1, 2).flatten(2), GRID), threshold=0.25
        )
        alone = attend(query[b : b + 1], key[b : b + 1, :, places], value[b : b + 1, :, places], own, kept)
        torch.testing.assert_close(found[b : b + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("merge_queries", [False, True])
def test_padding_and_one_image_at_a_time_are_the_same(monkeypatch, merge_queries):
    """The way of a GPU, whose images are padded and masked, against that of a CPU."""
    query, key, value = (drawn(3, 2, TOKENS, 8, seed=seed) for seed in range(3))
    plan = match(key.transpose(1, 2).flatten(2), GRID, threshold=0.25)
    assert plan.ragged
    expected = attend(query, key, value, plan, merge_queries=merge_queries)
    monkeypatch.setattr(attention, "_pads", lambda query: True)
    found = attend(query, key, value, plan, merge_queries=merge_queries)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for b in range(3):
        own = match(key[b : b + 1].transpose(1, 2).flatten(2), GRID, threshold=0.25)
        alone = attend(query[b : b + 1], key[b : b + 1], value[b : b + 1], own, merge_queries=merge_queries)
        torch.testing.assert_close(found[b : b + 1], alone, atol=1e-5, rtol=0)


def test_fewer_heads_of_keys_than_of_queries():
    query = drawn(2, 4, TOKENS, 8)
    key, value = (drawn(2, 2, TOKENS, 8, seed=seed) for seed in (1, 2))
    plan = match(key.transpose(1, 2).flatten(2), GRID, threshold=0.25)
    found = attend(query, key, value, plan, enable_gqa=True)
    repeated_key, repeated_value = (x.repeat_interleave(2, 1) for x in (key, value))
    torch.testing.assert_close(found, attend(query, repeated_key, repeated_value, plan), atol=1e-5, rtol=0)


def test_padding_is_undone_and_its_keys_count_nothing():
    tokens = drawn(2, TOKENS, 4)
    plan = match(tokens, GRID, threshold=0.25)
    packed = plan.merge(tokens)
    batch = padded(plan, packed)
    assert batch.shape == (2, max(plan.lengths), 4)
    assert torch.equal(unpadded(plan, batch), packed)
    for weighted in (False, True):
        bias = key_bias(plan, weighted, torch.float32)
        for row, length in zip(bias, plan.lengths, strict=True):
            assert row[:length].isfinite().all()
            assert (row[length:] == -math.inf).all()
            assert weighted == bool(row[:length].any())
    assert key_bias(plan, True, torch.float32).exp().sum(1).tolist() == pytest.approx([TOKENS, TOKENS])
    even = match(tokens, GRID, ratio=0.5)
    assert key_bias(even, False, torch.float32) is None


def test_a_video_merges_within_its_frames_or_across_them():
    tokens = drawn(2, 3 * TOKENS, 8)
    within = best_matches(tokens.view(6, TOKENS, 8), GRID)
    across = best_matches(tokens, GRID, frames=3)
    assert len(across.dst) == 3 * len(within.dst)
    assert torch.equal(across.src[: len(within.src)], within.src)
    best = torch.stack([part.amax(1) for part in within.similarity.view(2, 3, -1).unbind(1)], 1)
    everywhere = across.similarity.view(2, 3, -1).amax(2)
    assert (everywhere >= best - 1e-6).all()
    assert (across.similarity >= within.similarity.view(2, -1) - 1e-6).all()
    assert (across.similarity > within.similarity.view(2, -1) + 1e-3).any()


# The ways to weigh keys

WAYS = ("bias", "channel", "values")


def weighed(query, key, value, log_weights, scale=None):
    """The definition, in float64."""
    scores = (
        query.double() @ key.double().mT * (scale or 1 / math.sqrt(query.shape[-1]))
        + log_weights[:, None, None].double()
    )
    return scores.softmax(-1) @ value.double()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", [8, 40, 64, 13])
@pytest.mark.parametrize("scale", [None, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_way_weighs_alike(way, channels, scale, dtype):
    query, key, value = (drawn(2, 3, 20, channels, seed=seed).to(dtype) for seed in range(3))
    sizes = torch.randint(1, 200, (2, 20), generator=torch.Generator().manual_seed(3)).float()
    sizes[0, :2] = 4096
    sizes[1, -5:] = 0  # no keys at all
    value[1, :, -5:] = 0
    found = weighted_attention(query, key, value, sizes.log(), way=way, scale=scale)
    rounding = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(
        found.double(), weighed(query, key, value, sizes.log(), scale), atol=rounding, rtol=rounding
    )


@pytest.mark.parametrize("way", WAYS)
def test_every_way_has_the_same_gradients(way):
    inputs = [drawn(1, 2, 12, 8, seed=seed).double().requires_grad_() for seed in range(3)]
    log_weights = torch.arange(1.0, 13.0)[None].double().log()
    weighed(*inputs, log_weights).square().sum().backward()
    expected = [x.grad.clone() for x in inputs]
    for x in inputs:
        x.grad = None
    weighted_attention(*inputs, log_weights, way=way).square().sum().backward()
    for x, gradient in zip(inputs, expected, strict=True):
        torch.testing.assert_close(x.grad, gradient)


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_mask_needs_the_bias(way):
    query = drawn(1, 2, 12, 8)
    with pytest.raises(ValueError, match=f"way='{way}' cannot go with a mask"):
        weighted_attention(query, query, query, torch.zeros(1, 12), torch.zeros(12, 12), way=way)


def test_the_way_is_chosen_by_device_dtype_and_head():
    def way(channels, dtype=torch.float16, device="cuda", mask=None, trained=False):
        query = SimpleNamespace(
            dtype=dtype,
            is_cuda=device == "cuda",
            requires_grad=trained,
            shape=torch.Size([2, 8, 64, channels]),
        )
        return way_for(query, mask)

    assert [way(channels) for channels in (40, 80, 120)] == ["channel"] * 3, "their widths have room"
    assert [way(channels) for channels in (32, 64, 96, 128, 256)] == ["bias"] * 5, (
        "a wider head would take longer"
    )
    assert (
        way(40, torch.float32)
        == way(40, device="cpu")
        == way(40, mask=torch.zeros(1))
        == way(40, trained=True)
        == "bias"
    )


@pytest.mark.parametrize("way", ["bias", "channel"])
@pytest.mark.parametrize(("first", "behind"), [(0, 0), (3, 2)])
@pytest.mark.parametrize("amount", [{"threshold": 0.25}, {"ratio": 0.5}])
@pytest.mark.parametrize("weighted", [True, False])
def test_what_a_gpu_does_is_what_the_words_say(monkeypatch, way, first, behind, amount, weighted):
    """Keys and values merged by the kernel, images padded, each way; on the interpreter."""
    pytest.importorskip("triton")
    monkeypatch.setattr(kernels, "usable", lambda x: x.dtype in kernels.DTYPES)
    monkeypatch.setattr(attention, "way_for", lambda query, mask=None: way)
    monkeypatch.setattr(attention, "_pads", lambda query: True)
    length = first + TOKENS + behind
    query, key, value = (drawn(2, 2, length, 8, seed=seed) for seed in range(3))
    value = value.transpose(2, 3).contiguous().transpose(2, 3)  # of other strides
    plan = match(key[:, :, first : first + TOKENS].transpose(1, 2).flatten(2), GRID, **amount)
    found = attend(query, key, value, plan, first, weighted=weighted)
    expected = looped(query, key, value, plan, first, weighted)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("amount", [{"threshold": 0.7}, {"ratio": 0.5}])
def test_a_unet_whose_keys_are_weighed_without_a_mask(monkeypatch, pipe, generate, amount):
    """As CUDA does it in half precision, against the mask."""
    with catome.patched(pipe, schedule=(0,), **amount):
        expected = generate(["desert", "lighthouse"], steps=2, height=64, width=64)
    seen = []
    real = attention.weighted_attention

    def watched(query, key, value, log_weights, attn_mask=None, **rest):
        assert attn_mask is None
        seen.append(query.shape)
        return real(query, key, value, log_weights, attn_mask, way="channel", **rest)

    monkeypatch.setattr(hooks, "avoids_masks", lambda x: True)
    monkeypatch.setattr(hooks, "weighted_attention", watched)
    with catome.patched(pipe, schedule=(0,), **amount):
        found = generate(["desert", "lighthouse"], steps=2, height=64, width=64)
    assert len(seen) == 3 * 5, "calls and attentions"
    assert abs(found - expected).max() < 1e-4
