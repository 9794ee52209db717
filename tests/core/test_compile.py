"""``torch.compile`` of a patched U-Net: the same numbers, compiled once, and interrupted by catome's hooks
alone."""

import pytest
import torch
from torch._dynamo.utils import counters

import catome
from helpers.embedded import unet_inputs

STEPS = 4
WAYS = {
    "ratio": dict(config=catome.PAPER, ratio=0.5),
    "threshold": dict(config=catome.PAPER, threshold=0.8),
    "keys and values": dict(config=catome.RECOMMENDED, threshold=0.8),
    "input compared": dict(config=catome.RECOMMENDED, compare="input", threshold=0.8),
}
TIMES = torch.arange(50, 0, -1) * 20


@pytest.fixture
def graphs(pipe, compiler):
    yield compiler
    catome.remove_patch(pipe)


@torch.no_grad()
def generation(unet, inputs):
    """The outputs of a few steps."""
    return [
        unet(inputs["sample"], TIMES[step], inputs["encoder_hidden_states"]).sample for step in range(STEPS)
    ]


@pytest.mark.parametrize("way", WAYS)
def test_a_compiled_unet_gives_the_same_and_compiles_nothing_at_cached_steps(pipe, way, graphs):
    handed, backend = graphs
    inputs = unet_inputs(pipe, ["desert", "volcano"])
    plain = generation(pipe.unet, inputs)
    catome.apply_patch(pipe, **WAYS[way], schedule=(0, 2))
    expected = generation(pipe.unet, inputs)
    unet = torch.compile(pipe.unet, backend=backend)
    outputs = []
    known = []
    with torch.no_grad():
        for step in range(STEPS):
            outputs.append(unet(inputs["sample"], TIMES[step], inputs["encoder_hidden_states"]).sample)
            known.append(len(handed))
    for output, same, other in zip(outputs, expected, plain, strict=True):
        torch.testing.assert_close(output, same, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(output, other, atol=1e-4)
    assert 0 < known[0] == known[1]  # a cached step finds its graphs compiled
    # so does the one after another checkpoint, of another number of tokens
    assert known[2] == known[3] <= known[0] + 3
    assert counters["graph_break"]
    for reason in counters["graph_break"]:
        assert "torch.compiler.disable" in reason
        assert "catome decides in Python what to merge" in reason


def test_a_compiled_unet_leaves_steps_out(pipe, graphs):
    """The number of the step is no reason to compile anew."""
    handed, backend = graphs
    inputs = unet_inputs(pipe, ["desert"])
    forecast = catome.Forecast(first=2, interval=2, growth=1.0)
    catome.apply_patch(pipe, merge_attn=False, forecast=forecast)
    expected = generation(pipe.unet, inputs)
    unet = torch.compile(pipe.unet, backend=backend)
    for output, same in zip(generation(unet, inputs), expected, strict=True):
        torch.testing.assert_close(output, same, atol=1e-5, rtol=1e-5)
    known = len(handed)
    assert known
    generation(unet, inputs)
    assert len(handed) == known
    assert catome.summary(pipe).forecasts == 1 / STEPS


@pytest.mark.parametrize("way", ["threshold", "keys and values", "input compared"])
def test_blocks_can_be_compiled_by_themselves(pipe, way, graphs):
    handed, backend = graphs
    inputs = unet_inputs(pipe, ["desert", "volcano"])
    catome.apply_patch(pipe, **WAYS[way], schedule=(0,))
    expected = generation(pipe.unet, inputs)
    pipe.unet.compile_repeated_blocks(backend=backend)
    try:
        for output, same in zip(generation(pipe.unet, inputs), expected, strict=True):
            torch.testing.assert_close(output, same, atol=1e-5, rtol=1e-5)
        assert handed
        catome.remove_patch(pipe)
        plain = generation(pipe.unet, inputs)
    finally:
        for module in pipe.unet.modules():
            module._compiled_call_impl = None
    for output, same in zip(generation(pipe.unet, inputs), plain, strict=True):
        torch.testing.assert_close(output, same, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", ["ratio", "keys and values", "input compared"])
@torch.no_grad()
def test_a_patch_may_come_and_go_after_compiling(pipe, way, graphs):
    _, backend = graphs
    inputs = unet_inputs(pipe, ["desert"])
    plain = generation(pipe.unet, inputs)
    unet = torch.compile(pipe.unet, backend=backend)
    generation(unet, inputs)
    catome.apply_patch(pipe, **WAYS[way])
    expected = generation(pipe.unet, inputs)
    assert not torch.allclose(expected[0], plain[0], atol=1e-4)
    for output, same in zip(generation(unet, inputs), expected, strict=True):
        torch.testing.assert_close(output, same, atol=1e-5, rtol=1e-5)
    catome.remove_patch(pipe)
    for output, same in zip(generation(unet, inputs), plain, strict=True):
        torch.testing.assert_close(output, same, atol=1e-5, rtol=1e-5)
