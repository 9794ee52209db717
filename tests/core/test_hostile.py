"""The patch in hostile surroundings: saved, adapted, interrupted, starved of precision, run ten thousand
times."""

import copy
import gc
import math
import pickle
import sys
import threading
import tracemalloc

import psutil
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

import catome
from catome import tiny
from catome.models._torch import hooks_of
from catome.models.unet import transformer_blocks
from catome.patch import applied_patch
from catome.runtime.hooks import Hook
from catome.tensors.matching import _top_left, split_tokens

COUNTED = dict(keep_queries=True, weighted=True)  # as the recommended configuration
AMOUNTS = {
    "threshold": dict(threshold=0.6, schedule=[0]),
    "ratio": dict(ratio=0.5, schedule=[0]),
    "everything": dict(threshold=0.6, schedule=[0], merge_crossattn=True, merge_mlp=True),
    "keys and values": dict(threshold=0.6, schedule=[0], **COUNTED),
    "input compared": dict(threshold=0.6, schedule=[0], compare="input", **COUNTED),
}


@pytest.fixture(params=["threshold", "keys and values", "input compared"])
def merging(request):
    """The ways to merge: what enters the attention, its context, and at the call inside."""
    return AMOUNTS[request.param]


@pytest.fixture
def own(loaded):
    """A pipeline of this test's own, whose scheduler calls the U-Net once for each step."""
    twin = copy.deepcopy(loaded)
    twin.scheduler = DDIMScheduler.from_config(twin.scheduler.config, clip_sample=False)
    return twin


def drawn(
    pipe, names=("volcano",), steps=3, seed=0, guidance=tiny.GUIDANCE_SCALE, size=(64, 64), **arguments
):
    """Latents, which show any difference that an image would show."""
    return pipe(
        [tiny.prompt(name) for name in names],
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=size[0],
        width=size[1],
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(names))],
        **{"output_type": "latent", **arguments},
    ).images


def small_unet(**change):
    """Random weights, three transformer blocks on the top level, a few milliseconds for each call."""
    torch.manual_seed(0)
    shape = dict(
        sample_size=8, block_out_channels=(8,), norm_num_groups=2, layers_per_block=1, mid_block_type=None
    )
    shape |= dict(down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",))
    return UNet2DConditionModel(
        **{**shape, "cross_attention_dim": 8, "attention_head_dim": 2, **change}
    ).eval()


@pytest.fixture
def light(own):
    """The same pipeline around a small U-Net, for what takes many generations."""
    own.unet = small_unet(sample_size=32, cross_attention_dim=64)
    return own


def sample(batch=2, size=(8, 8), seed=0):
    return torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(seed))


def text(batch=2):
    return torch.randn(batch, 3, 8, generator=torch.Generator().manual_seed(99))


@torch.no_grad()
def call(unet, x, timestep):
    return unet(x, timestep, text(len(x))).sample


def traces(unet):
    """The traces that a patch leaves on a U-Net that it has not been taken off."""
    left = {"_diffusers_hook", "forward", "cache_context", "_reset_stateful_cache"}
    found = [name for name, module in unet.named_modules() if left & set(vars(module))]
    return [*found, *(hook for module in unet.modules() for hook in hooks_of(module, Hook))]


def files_in(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Files


def test_a_patched_pipeline_saves_the_same_bytes_and_loads_unpatched(own, tmp_path, merging):
    plain = drawn(own)
    own.save_pretrained(tmp_path / "plain")
    with catome.patched(own, catome.PAPER, **merging):
        merged = drawn(own)
        own.save_pretrained(tmp_path / "patched")
    files = files_in(tmp_path / "patched")
    assert any(name.endswith(".safetensors") for name in files)
    assert files == files_in(tmp_path / "plain")
    again = tiny.load_pipeline(tmp_path / "patched")
    assert applied_patch(again) is None
    assert not traces(again.unet)
    assert torch.equal(plain, drawn(again))
    assert not torch.equal(plain, merged)


def test_weights_are_loaded_into_a_patched_unet(own, merging):
    """A state dict from before the patch fits, and the patch merges what the new weights make of the
    tokens."""
    weights = {name: 1.1 * value for name, value in own.unet.state_dict().items()}
    twin = copy.deepcopy(own)
    twin.unet.load_state_dict(weights)
    with catome.patched(twin, catome.PAPER, **merging):
        expected = drawn(twin)
    with catome.patched(own, catome.PAPER, **merging):
        assert not torch.equal(expected, drawn(own))
        assert own.unet.state_dict().keys() == weights.keys()
        own.unet.load_state_dict(weights)
        assert torch.equal(expected, drawn(own))


# Adapters


def low_rank(unet, rank=4):
    """A random LoRA for every linear layer of the transformer blocks, in the names that files of adapters
    use."""
    generator, found = torch.Generator().manual_seed(5), {}
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear) and ".transformer_blocks." in name:
            found[f"unet.{name}.lora_A.weight"] = 0.3 * torch.randn(
                rank, module.in_features, generator=generator
            )
            found[f"unet.{name}.lora_B.weight"] = 0.3 * torch.randn(
                module.out_features, rank, generator=generator
            )
    return found


class Adapted(torch.nn.Module):
    def __init__(self, base, down, up):
        super().__init__()
        self.base, self.down, self.up = base, down, up

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


def load_by_hand(pipe):
    """Put a module of its own in the place of each linear layer, as adapters do; returns what takes them
    out."""
    weights, replaced = low_rank(pipe.unet), []
    for name, module in list(pipe.unet.named_modules()):
        if f"unet.{name}.lora_A.weight" in weights:
            owner, _, leaf = name.rpartition(".")
            owner = pipe.unet.get_submodule(owner)
            down, up = (weights[f"unet.{name}.lora_{side}.weight"] for side in "AB")
            owner.register_module(leaf, Adapted(module, down, up))
            replaced.append((owner, leaf, module))

    def unload():
        for owner, leaf, module in replaced:
            owner.register_module(leaf, module)

    return unload


def load_with_peft(pipe):
    pytest.importorskip("peft", reason="diffusers loads a LoRA with peft, which is not installed")
    pipe.load_lora_weights(low_rank(pipe.unet), adapter_name="random")
    return pipe.unload_lora_weights


@pytest.mark.parametrize("load", [load_by_hand, load_with_peft])
@pytest.mark.parametrize("amount", ["threshold", "everything"])
def test_an_adapter_comes_and_goes_on_a_patched_pipeline(own, load, amount):
    """In each state the outputs are those of a pipeline that got the same adapter first and the patch
    last."""
    twin = copy.deepcopy(own)
    plain = drawn(own)
    unload = load(twin)
    plain_adapted = drawn(twin)
    with catome.patched(twin, catome.PAPER, **AMOUNTS[amount]):
        merged_adapted = drawn(twin)
    unload()
    with catome.patched(twin, catome.PAPER, **AMOUNTS[amount]):
        merged = drawn(twin)
    states = (plain, plain_adapted, merged, merged_adapted)
    assert not any(torch.equal(a, b) for i, a in enumerate(states) for b in states[:i])

    catome.apply_patch(own, catome.PAPER, **AMOUNTS[amount])
    for _ in range(2):
        unload = load(own)
        assert torch.equal(merged_adapted, drawn(own))
        unload()
        assert torch.equal(merged, drawn(own))
    unload = load(own)
    catome.remove_patch(own)
    assert torch.equal(plain_adapted, drawn(own))
    unload()
    assert torch.equal(plain, drawn(own))
    assert not traces(own.unet)


# Generations that end early or change under way


@pytest.mark.parametrize("amount", AMOUNTS)
def test_a_generation_asked_to_stop_makes_room_for_the_next(light, amount):
    """``pipe._interrupt``, which a user interface sets: the pipeline goes through its remaining steps without
    a U-Net."""
    calls = []
    light.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    with catome.patched(light, catome.PAPER, **AMOUNTS[amount]):
        expected = drawn(light, seed=3)
    with catome.patched(light, catome.PAPER, **AMOUNTS[amount]):
        for stop in (0, 1):

            def interrupt(pipeline, step, timestep, tensors, stop=stop):
                pipeline._interrupt = step >= stop
                return tensors

            calls.clear()
            drawn(light, ["desert"], seed=8, callback_on_step_end=interrupt)
            assert len(calls) == stop + 1
            assert not applied_patch(light).generations
            assert torch.equal(expected, drawn(light, seed=3))


def test_guidance_that_ends_half_way_finds_pairs_for_the_smaller_batch(light):
    """A callback that drops the unconditional half makes a batch of one: no pairs of the batch of two are
    left to reuse."""

    def drop(pipeline, step, timestep, tensors):
        if step == 1:
            pipeline._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        return tensors

    def dropping(checkpoints):
        inputs = ["latents", "prompt_embeds"]
        with catome.patched(light, catome.PAPER, threshold=0.6, schedule=checkpoints):
            return drawn(light, steps=5, callback_on_step_end=drop, callback_on_step_end_tensor_inputs=inputs)

    kept = dropping([0])
    assert torch.equal(kept, dropping([0, 2]))
    assert not torch.equal(kept, dropping([0, 3]))


def test_a_patch_taken_off_or_put_on_within_a_generation_works_from_there_on(own):
    def at_the_end_of_the_first_step(act):
        def callback(pipeline, step, timestep, tensors):
            if step == 0:
                act()
            return tensors

        return callback

    off = at_the_end_of_the_first_step(lambda: catome.remove_patch(own))
    on = at_the_end_of_the_first_step(lambda: catome.apply_patch(own, catome.PAPER, ratio=0.5, schedule=[0]))
    plain, sizes = drawn(own, steps=1), []
    block = next(iter(transformer_blocks(own.unet).values()))
    block.attn1.to_q.register_forward_hook(lambda module, args, output: sizes.append(output.shape[1]))
    drawn(own, callback_on_step_end=on)
    assert sizes == [256, 128, 128]
    catome.apply_patch(own, catome.PAPER, ratio=0.5, schedule=[0])
    sizes.clear()
    drawn(own, callback_on_step_end=off)
    assert sizes == [128, 256, 256]
    assert not traces(own.unet)
    assert torch.equal(plain, drawn(own, steps=1))


@pytest.mark.parametrize("amount", AMOUNTS)
def test_each_call_may_ask_for_something_else(light, amount):
    """Another resolution, batch or guidance at each call of one patched pipeline: each time as if just
    patched."""
    asked = [
        dict(),
        dict(size=(96, 64)),
        dict(size=(64, 96)),  # as many tokens, on another grid
        dict(names=("desert", "volcano")),
        dict(names=("desert", "volcano"), guidance=1.0),
        dict(names=("volcano", "desert"), guidance=1.0),
        dict(guidance=1.0, size=(56, 72)),
        dict(),
    ]
    fresh = []
    for wanted in asked:
        with catome.patched(light, catome.PAPER, **AMOUNTS[amount]):
            fresh.append(drawn(light, steps=2, **wanted))
    plain = drawn(light, steps=2)
    with catome.patched(light, catome.PAPER, **AMOUNTS[amount]):
        for wanted, expected in zip(asked, fresh, strict=True):
            assert torch.equal(expected, drawn(light, steps=2, **wanted))
    assert not torch.equal(plain, fresh[0])


# Growth


@pytest.fixture
def only_new():
    """The collector looks at what is made from here on, not at the million objects of imported modules."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def allocated():
    """Bytes that Python has allocated and uses, as `tracemalloc` sees them.

    Lookups by C keep the names they look for in the cache of attributes, up to a few hundred KiB; it is
    emptied first."""
    gc.collect()
    sys._clear_type_cache()
    return tracemalloc.get_traced_memory()[0]


def live_tensors():
    gc.collect()
    return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())


@pytest.mark.parametrize(
    "arguments",
    [
        dict(threshold=0.6, schedule=[0, 2]),
        dict(ratio=0.5, schedule=None, dst="random"),
        dict(threshold=0.6, schedule=[0, 1], merge_mlp=True, merge_crossattn=True),
    ],
)
def test_hundreds_of_calls_of_changing_shape_keep_nothing(only_new, arguments):
    """Generations of three steps, each with a batch and a size of its own: only the last one's plans are
    held."""
    unet = small_unet()

    def generations(count):
        for generation in range(count):
            batch, size = 1 + generation % 3, ((8, 8), (6, 10), (4, 4))[generation // 3 % 3]
            for step in range(3):
                call(unet, sample(batch, size, seed=generation), 900 - step)

    with catome.patched(unet, catome.PAPER, **arguments):
        generations(9)  # each shape once
        before = live_tensors()
        tracemalloc.start()
        try:
            generations(9)
            used = allocated()
            generations(45)
            grown = allocated() - used
        finally:
            tracemalloc.stop()
        assert len(applied_patch(unet).generations) == 1
        assert len(applied_patch(unet).cached()) == 3
        assert live_tensors() == before
    assert grown < 10_000


def test_a_new_thread_never_has_the_plans_of_one_that_has_ended():
    """Systems give the number of an ended thread to the next one."""
    unet, merged, expected = small_unet(), {}, {}

    def work(seed, timestep, into):
        with torch.no_grad():
            into[seed] = unet(sample(seed=seed), timestep, text()).sample

    with catome.patched(unet, catome.PAPER, threshold=0.5, schedule=[0]):
        for seed, timestep in ((0, 900), (1, 800), (2, 700)):
            thread = threading.Thread(target=work, args=(seed, timestep, merged))
            thread.start()
            thread.join()
            del thread
        gc.collect()
        assert not applied_patch(unet).generations
    for seed in merged:
        with catome.patched(unet, catome.PAPER, threshold=0.5, schedule=[0]):
            work(seed, 900 - 100 * seed, expected)
    assert all(torch.equal(merged[seed], expected[seed]) for seed in merged)


def test_ten_thousand_calls_do_not_grow(only_new):
    """A U-Net that is nothing but one of its transformer blocks, for speed; all that a patch hooks into is
    there."""
    unet = small_unet()
    block, context = next(iter(transformer_blocks(unet).values())), text(1)

    def only_a_block(x, timestep):
        tokens = x.flatten(2).mT.repeat(1, 1, 2)
        return block(tokens, encoder_hidden_states=context)

    unet.forward = only_a_block
    latents = sample(1, (4, 4))
    timesteps = torch.arange(1000, 0, -1)

    @torch.inference_mode()
    def run(count):
        for number in range(count):
            unet(latents, timesteps[number % 50])

    with catome.patched(unet, catome.PAPER, ratio=0.5, schedule=[0, 10, 20, 30, 40]):
        run(1000)
        tensors, process = live_tensors(), psutil.Process()
        resident = process.memory_info().rss
        run(10_000)
        assert live_tensors() == tensors
        assert process.memory_info().rss - resident < 4 * 2**20
        assert len(applied_patch(unet).generations) == len(applied_patch(unet).cached()) == 1
    unet.__dict__.pop("forward")
    assert not traces(unet)


def test_patching_again_and_again_keeps_nothing(only_new, merging):
    unet = small_unet()
    expected = call(unet, sample(), 900)

    def rounds(count):
        for _ in range(count):
            catome.apply_patch(unet, catome.PAPER, **merging)
            call(unet, sample(), 900)
        catome.remove_patch(unet)

    rounds(2)
    before, modules = live_tensors(), {name: dict(vars(module)) for name, module in unet.named_modules()}
    rounds(20)
    assert live_tensors() == before
    for name, module in unet.named_modules():
        assert vars(module).keys() == modules[name].keys()
    assert torch.equal(expected, call(unet, sample(), 900))


def test_threads_that_come_and_go_leave_nothing_behind(light, merging):
    """Generations that end well, that are stopped and that fail in the U-Net, each in a thread of its own."""
    positive, negative = light.encode_prompt(tiny.prompt("volcano"), "cpu", 1, True)
    ends, everybody = {}, threading.Barrier(6)

    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = True
        return tensors

    def fail(*_):
        if threading.current_thread().name.endswith("2"):
            raise ZeroDivisionError

    def work(number):
        scheduler = DDIMScheduler.from_config(light.scheduler.config)
        twin = type(light)(**{**light.components, "scheduler": scheduler}, requires_safety_checker=False)
        twin.set_progress_bar_config(disable=True)
        everybody.wait()
        try:
            twin(
                prompt_embeds=positive,
                negative_prompt_embeds=negative,
                num_inference_steps=3,
                output_type="latent",
                callback_on_step_end=stop if number % 3 == 1 else None,
            )
            ends[number] = "well"
        except BaseException as error:
            ends[number] = type(error).__name__

    plain = drawn(light)
    with catome.patched(light, catome.PAPER, **merging):
        merged = drawn(light)
        handle = light.unet.conv_out.register_forward_pre_hook(fail)
        threads = [
            threading.Thread(target=work, args=(number,), name=f"kind {number % 3}") for number in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        handle.remove()
        assert ends == {n: "ZeroDivisionError" if n % 3 == 2 else "well" for n in range(6)}
        assert not applied_patch(light).generations
        assert torch.equal(merged, drawn(light))
    assert torch.equal(plain, drawn(light))
    assert not torch.equal(plain, merged)


# What is not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("since", [0, 1])
def test_what_is_not_finite_stays_in_its_image(bad, amount, since):
    """From the first step on, or first seen by pairs that were found before."""
    unet = small_unet()
    states = []
    for sick in (False, True):
        with catome.patched(unet, catome.PAPER, **AMOUNTS[amount]):
            for step in range(3):
                x = sample(3) + 0.1 * sample(3, seed=1 + step)
                if sick and step >= since:
                    x[1, 2, 5, 3] = bad
                states.append(
                    (call(unet, x, 900 - step), [plan.target for plan in applied_patch(unet).cached()])
                )
            assert applied_patch(unet).cached()[0].merged_share.max() > 0
    for step, ((healthy, pairs), (ill, pairs_ill)) in enumerate(zip(states[:3], states[3:], strict=True)):
        assert torch.isfinite(healthy).all()
        assert torch.isfinite(ill[1]).all() == (step < since)
        for image in (0, 2):
            assert all(torch.equal(a[image], b[image]) for a, b in zip(pairs, pairs_ill, strict=True))
            torch.testing.assert_close(ill[image], healthy[image], atol=1e-5, rtol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("threshold", [-1.0, 0.6, 1.0])
@pytest.mark.parametrize("schedule", [[0], None])
def test_tokens_that_are_not_finite_are_never_merged_by_a_threshold(bad, threshold, schedule):
    unet = small_unet()
    with catome.patched(unet, catome.PAPER, threshold=threshold, schedule=schedule):
        for step in range(3):
            assert call(unet, torch.full((2, 4, 8, 8), bad), 900 - step).isnan().all()
            assert [plan.lengths for plan in applied_patch(unet).cached()] == [(64, 64)] * 3
        # and what comes after is as if nothing had been
        after = call(unet, sample(), 950)
    with catome.patched(unet, catome.PAPER, threshold=threshold, schedule=schedule):
        assert torch.equal(after, call(unet, sample(), 950))


@pytest.mark.parametrize("schedule", [[0], None])
def test_a_ratio_keeps_its_count_where_nothing_is_finite(schedule):
    unet = small_unet()
    with catome.patched(unet, catome.PAPER, ratio=0.5, schedule=schedule):
        for step in range(3):
            assert call(unet, torch.full((2, 4, 8, 8), math.nan), 900 - step).isnan().all()
            assert [plan.lengths for plan in applied_patch(unet).cached()] == [(32, 32)] * 3


@pytest.mark.parametrize("amount", AMOUNTS)
def test_a_whole_generation_of_nan_ends_and_harms_no_later_one(light, amount):
    with catome.patched(light, catome.PAPER, **AMOUNTS[amount]):
        expected = drawn(light)
        assert drawn(light, latents=torch.full((1, 4, 16, 16), math.nan)).isnan().all()
        assert torch.equal(expected, drawn(light))


# Modes of torch


def assert_exact(record, threshold, checkpoints):
    """At each checkpoint, what float64 says of the tokens that the block got is what was merged."""
    merged, checked = 0, 0
    for seen in record.generations[-1]:
        if seen.step not in checkpoints:
            continue
        unit = torch.nn.functional.normalize(seen.tokens.double(), dim=-1)
        similarity = unit[:, seen.matches.src] @ unit[:, seen.matches.dst].mT
        for image, best in enumerate(similarity.amax(-1)):
            pairs = seen.plan.pairs(image)
            assert set(pairs[:, 1].tolist()) <= set(seen.matches.dst.tolist())
            wanted = torch.isin(seen.matches.src, pairs[:, 0])
            doubtful = (best - threshold).abs() < 1e-5
            assert torch.equal(wanted[~doubtful], (best >= threshold)[~doubtful])
            chosen = (unit[image][pairs[:, 0]] * unit[image][pairs[:, 1]]).sum(-1)
            assert (chosen >= best[wanted] - 1e-5).all()
            merged, checked = merged + len(pairs), checked + 1
    assert checked
    assert merged


@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
def test_half_precision_merges_what_float64_finds_similar(own, how):
    """For a whole generation; similarities are never computed in the half precision that the tokens come
    in."""
    if how == "bfloat16":
        own.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        plain = drawn(own)
        with catome.patched(own, catome.PAPER, threshold=0.6, schedule=[0, 2]):
            with catome.probe(own, keep_tokens=True) as record:
                merged = drawn(own)
            assert_exact(record, 0.6, (0, 2))
            assert torch.equal(merged, drawn(own))
        with catome.patched(own, catome.PAPER, ratio=0.0):
            assert torch.equal(plain, drawn(own))
        assert torch.equal(plain, drawn(own))
    assert torch.isfinite(merged).all()
    assert not torch.equal(plain, merged)


def test_inference_mode_changes_no_bit_and_spoils_nothing_for_autograd(own, merging):
    _top_left.cache_clear()  # or its indices may stem from another test
    with torch.inference_mode():
        catome.apply_patch(own, catome.PAPER, **merging)
        inside = drawn(own)
        drawn(own, steps=1)
    assert torch.equal(inside, drawn(own))
    catome.apply_patch(own, catome.PAPER, **merging)
    with torch.inference_mode():
        assert torch.equal(inside, drawn(own))
    x = torch.randn(1, 4, 16, 16, requires_grad=True)
    own.unet(x, 500, torch.zeros(1, 16, 64)).sample.sum().backward()
    assert x.grad.abs().max() > 0
    # the indices of tokens are kept for the next call, which may be anybody's
    tokens = torch.randn(1, 256, 3, requires_grad=True)
    for indices in split_tokens((16, 16)):
        tokens.index_select(1, indices).sum().backward()
    assert torch.equal(tokens.grad, torch.ones_like(tokens))


@pytest.mark.parametrize("amount", [*AMOUNTS, "duplicates"])
def test_deterministic_algorithms_are_all_there_and_give_the_same(own, amount):
    arguments = {**AMOUNTS, "duplicates": dict(threshold=1.0, dst="random", schedule=None)}[amount]
    with catome.patched(own, catome.PAPER, **arguments):
        expected = drawn(own)
        try:
            torch.use_deterministic_algorithms(True)
            assert torch.equal(expected, drawn(own))
            x = torch.randn(1, 4, 16, 16, requires_grad=True)
            own.unet(x, 500, torch.zeros(1, 16, 64)).sample.sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
    assert torch.isfinite(x.grad).all()


def test_another_default_dtype_changes_no_pair(own):
    with catome.patched(own, catome.PAPER, threshold=0.6, schedule=None):
        inputs = sample(2, (16, 16)), 500, torch.zeros(2, 16, 64)
        with torch.no_grad():
            expected = own.unet(*inputs).sample
            for dtype in (torch.float64, torch.bfloat16):
                try:
                    torch.set_default_dtype(dtype)
                    found = own.unet(*inputs).sample
                finally:
                    torch.set_default_dtype(torch.float32)
                assert torch.equal(expected, found)


# Gradients


def test_gradient_checkpointing_is_refused_and_only_where_it_would_be_done():
    """It would run blocks again in another order, or in another thread, with pairs that are not those of the
    first time."""
    unet = small_unet().train()
    unet.enable_gradient_checkpointing()
    with catome.patched(unet, catome.PAPER, **AMOUNTS["threshold"]):
        with pytest.raises(RuntimeError, match=r"gradient checkpointing.*disable_gradient_checkpointing"):
            unet(sample(), 900, text())
        with torch.no_grad():
            merged = unet(sample(), 900, text()).sample
        unet.disable_gradient_checkpointing()
        assert torch.equal(unet(sample(), 900, text()).sample, merged)
    assert not traces(unet)


def test_plans_made_in_inference_mode_serve_gradients_later():
    unet = small_unet()
    with catome.patched(unet, catome.PAPER, **AMOUNTS["threshold"] | {"schedule": [0]}):
        with torch.inference_mode():
            unet(sample(), 900, text())
        x = sample(seed=1).requires_grad_()
        unet(x, 800, text()).sample.sum().backward()
        assert x.grad.isfinite().all()
        assert (x.grad != 0).any()


@pytest.mark.parametrize("amount", AMOUNTS)
def test_the_gradient_through_a_patched_unet_is_that_of_finite_differences(amount):
    """At a cached step, where the pairs stand still."""
    unet = small_unet().double().train()
    start, x, direction, weight = (sample(seed=seed).double() for seed in range(4))

    def loss(x):
        return (unet(x, 800, text().double()).sample * weight).sum()

    with catome.patched(unet, catome.PAPER, **AMOUNTS[amount]):
        with torch.no_grad():
            unet(start, 900, text().double())
        assert applied_patch(unet).cached()[0].merged_share.min() > 0
        x.requires_grad_()
        loss(x).backward()
        for name, parameter in unet.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        with torch.no_grad():
            numeric = (loss(x + 1e-6 * direction) - loss(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((x.grad * direction).sum(), numeric, rtol=1e-6, atol=1e-8)


# Plans


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda plan: pickle.loads(pickle.dumps(plan))])
def test_a_plan_copied_in_any_way_does_the_same(way, used):
    """Also one that has been used, and so has worked out its groups."""
    tokens = torch.randn(2, 36, 4, generator=torch.Generator().manual_seed(0))
    plan = catome.match(tokens, (6, 6), threshold=0.8)
    assert 0 < len(plan.pairs(0)) != len(plan.pairs(1)) > 0
    expected = None if not used else plan.merge(tokens)
    assert plan.bounds.tolist() == [0, plan.lengths[0], sum(plan.lengths)]
    twin = way(plan)
    assert twin is not plan
    assert twin.lengths == plan.lengths
    assert torch.equal(twin.bounds, plan.bounds)
    assert all(torch.equal(twin.pairs(image), plan.pairs(image)) for image in range(2))
    expected = plan.merge(tokens) if expected is None else expected
    assert torch.equal(twin.merge(tokens), expected)
    assert torch.equal(twin.unmerge(expected), plan.unmerge(expected))
    if way is not copy.copy:
        twin.target.zero_(), twin.slot.zero_()
        assert torch.equal(plan.merge(tokens), expected)
        assert len(plan.pairs(0)) == 36 - plan.lengths[0]


def test_a_match_copied_makes_the_same_plan():
    tokens = torch.randn(2, 36, 4, generator=torch.Generator().manual_seed(0))
    tokens[0, 1] = tokens[0, 0]
    matches = catome.best_matches(tokens, (6, 6))
    for twin in (copy.deepcopy(matches), pickle.loads(pickle.dumps(matches))):
        for amount in (dict(threshold=0.8), dict(threshold=1.0), dict(ratio=0.5)):
            expected = catome.make_plan(matches, **amount)
            assert len(expected.pairs(0)) > 0
            assert torch.equal(catome.make_plan(twin, **amount).target, expected.target)
