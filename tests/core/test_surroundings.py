"""The patch among everything else that people do to a pipeline: offloading, copies, threads, other hooks,
other U-Nets."""

import copy
import threading
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    PyramidAttentionBroadcastConfig,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    apply_pyramid_attention_broadcast,
)

import catome
from catome import tiny
from catome.models._torch import hooks_of
from catome.patch import applied_patch
from catome.runtime.hooks import Hook

MERGING = dict(threshold=0.9, schedule=[0])
WAYS = {
    "PAPER": catome.PAPER,
    "RECOMMENDED": catome.RECOMMENDED,
    "input compared": catome.RECOMMENDED.changed(compare="input"),
}
every_way = pytest.mark.parametrize("config", WAYS.values(), ids=WAYS)


@pytest.fixture
def own(loaded):
    """A pipeline of this test's own, that it may do anything to."""
    return copy.deepcopy(loaded)


def image(pipe, seed=0, steps=3, name="volcano", **arguments):
    return pipe(
        tiny.prompt(name),
        num_inference_steps=steps,
        guidance_scale=tiny.GUIDANCE_SCALE,
        generator=torch.Generator().manual_seed(seed),
        **{"output_type": "np", **arguments},
    ).images


def inputs(size=32, seed=0, timestep=401, channels=64, batch=1):
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, 4, size, size, generator=generator)
    return sample, timestep, torch.randn(batch, 16, channels, generator=generator)


@torch.no_grad()
def call(unet, *args):
    return unet(*args).sample


@pytest.mark.parametrize(
    ("first", "config"),
    [
        ("offload", WAYS["PAPER"]),
        ("patch", WAYS["PAPER"]),
        ("offload", WAYS["RECOMMENDED"]),
        ("patch", WAYS["input compared"]),
    ],
)
def test_model_offload(own, first, config):
    """Offloading takes the U-Net's forward away and puts it back after each generation."""
    plain = image(own)
    with catome.patched(own, config, **MERGING):
        merged = image(own)
    assert not np.array_equal(plain, merged)
    if first == "offload":
        own.enable_model_cpu_offload(device="cpu")
    catome.apply_patch(own, config, **MERGING)
    if first == "patch":
        own.enable_model_cpu_offload(device="cpu")
    for _ in range(3):
        assert np.array_equal(merged, image(own))
    catome.apply_patch(own, config, **MERGING)
    assert np.array_equal(merged, image(own))
    catome.remove_patch(own)
    seen = []
    hook = own.unet._hf_hook  # accelerate's, which must be left
    real = hook.pre_forward
    hook.pre_forward = lambda module, *args, **kwargs: seen.append(module) or real(module, *args, **kwargs)
    assert np.array_equal(plain, image(own))
    assert seen
    for _ in range(2):
        assert np.array_equal(plain, image(own))


@every_way
def test_a_copy_has_a_patch_of_its_own(own, config):
    catome.apply_patch(own, config, **MERGING)
    assert np.array_equal(image(own, steps=10), image(copy.deepcopy(own), steps=10))
    merged = image(own)
    twin = copy.deepcopy(own)
    assert applied_patch(twin)._scheduler is twin.scheduler is not own.scheduler
    for weight in twin.unet.parameters():
        weight.data.zero_()
    assert torch.equal(call(twin.unet, *inputs()), torch.zeros(1, 4, 32, 32))
    assert np.array_equal(merged, image(own))
    again = copy.deepcopy(own.unet).double()
    assert (
        call(again, *(x.double() if isinstance(x, torch.Tensor) else x for x in inputs())).dtype
        == torch.float64
    )
    for late in (copy.deepcopy(own), own):
        catome.remove_patch(late)
        assert applied_patch(late) is None
        assert not any(hooks_of(module, Hook) for module in late.unet.modules())
        assert not np.array_equal(merged, image(late))


@every_way
def test_a_loop_over_one_timetable_begins_anew_at_its_start(own, config):
    own.scheduler = DDIMScheduler.from_config(own.scheduler.config)
    own.scheduler.set_timesteps(4)
    text = torch.randn(1, 16, 64, generator=torch.Generator().manual_seed(9))

    @torch.no_grad()
    def loop(seed):
        x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(seed))
        for t in own.scheduler.timesteps:
            x = own.scheduler.step(own.unet(x, t, text).sample, t, x).prev_sample
        return x

    with catome.patched(own, config, **MERGING):
        loop(1)
        after_another = loop(7)
    with catome.patched(own, config, **MERGING):
        assert torch.equal(loop(7), after_another)


@every_way
def test_a_second_pipeline_on_the_same_unet(own, config):
    other = StableDiffusionImg2ImgPipeline(
        **{**own.components, "scheduler": DDIMScheduler.from_config(own.scheduler.config)}
    )
    other.set_progress_bar_config(disable=True)
    start = torch.from_numpy(tiny.render("volcano", 1)).permute(2, 0, 1)[None] / 255

    def interrupt(pipeline, step, timestep, tensors):
        raise KeyboardInterrupt

    def redrawn(strength, **more):
        return image(other, image=start, strength=strength, steps=4, **more)

    with catome.patched(own, config, **MERGING):
        expected = redrawn(0.5)
    with catome.patched(own, config, **MERGING):
        image(own)
        with pytest.raises(KeyboardInterrupt):
            redrawn(1.0, callback_on_step_end=interrupt)
        assert np.array_equal(expected, redrawn(0.5))


@every_way
def test_one_step_models_never_see_an_old_plan(own, config):
    with catome.patched(own.unet, config, **MERGING):
        call(own.unet, *inputs(seed=1, timestep=999))
        second = call(own.unet, *inputs(seed=2, timestep=999))
        with catome.probe(own.unet) as record:
            image(own, steps=1)
            image(own, steps=1)
        # nothing tells them apart but their order
        assert sorted({seen.call for seen in record.generations[0]}) == [0, 1]
    with catome.patched(own.unet, config, **MERGING):
        assert torch.equal(second, call(own.unet, *inputs(seed=2, timestep=999)))


@every_way
def test_two_threads_on_one_unet(own, config):
    other = StableDiffusionPipeline(
        **{**own.components, "scheduler": type(own.scheduler).from_config(own.scheduler.config)},
        requires_safety_checker=False,
    )
    other.set_progress_bar_config(disable=True)
    # encoded beforehand: tokenizers are not made for several threads
    positive, negative = own.encode_prompt(tiny.prompt("volcano"), "cpu", 1, True)

    def drawn(pipe, seed):
        return pipe(
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images

    work_of_each = ((own, (0, 1)), (other, (2, 3)))
    with catome.patched(own, config, threshold=0.9, schedule=[0, 2]):
        expected = {seed: drawn(pipe, seed) for pipe, seeds in work_of_each for seed in seeds}
        found = {}

        def work(pipe, seeds):
            for seed in seeds:
                found[seed] = drawn(pipe, seed)

        threads = [threading.Thread(target=work, args=part) for part in work_of_each]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not applied_patch(own).generations  # nothing is kept of a thread that has ended
    for seed, image_alone in expected.items():
        assert np.array_equal(image_alone, found[seed])


def small_unet(down, up, **change):
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 32),
        down_block_types=down,
        up_block_types=up,
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=8,
        **change,
    ).eval()


def test_topmost_is_where_attention_begins():
    """SDXL's first level has no attention; its topmost blocks are downsampled by 2."""
    unet = small_unet(("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D"))
    plain = call(unet, *inputs(16))
    with catome.patched(unet, catome.PAPER, threshold=-1.0), catome.probe(unet) as record:
        merged = call(unet, *inputs(16))
    assert not torch.equal(plain, merged)
    assert record.merged_share().unique().tolist() == [0.75]
    assert record.at(0, 0).matches.grid == (8, 8)
    assert torch.equal(plain, call(unet, *inputs(16)))


def test_a_unet_whose_attention_is_in_no_transformer_block():
    """It is merged where its attention is called; the probe watches what enters blocks, and there are
    none."""
    unet = small_unet(
        ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D"), mid_block_type="UNetMidBlock2D"
    )
    plain = call(unet, *inputs(16))
    with catome.patched(unet, threshold=-1.0):
        assert not torch.equal(plain, call(unet, *inputs(16)))
        assert catome.summary(unet).merged_share == 0.75
    assert torch.equal(plain, call(unet, *inputs(16)))
    with pytest.raises(TypeError, match="no transformer block"):
        catome.probe(unet).__enter__()


def test_a_unet_without_attention_is_refused():
    unet = small_unet(("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D"), mid_block_type=None)
    for use in (catome.apply_patch, lambda unet: catome.probe(unet).__enter__()):
        with pytest.raises(TypeError, match="no self-attention over image tokens"):
            use(unet)


def test_nothing_to_merge_is_an_error(own):
    with pytest.raises(ValueError, match=r"merge_attn=False.*at least one"):
        catome.apply_patch(own, catome.PAPER, merge_attn=False)


@pytest.mark.parametrize("arguments", [dict(seed=2**65), dict(threshold=2.0), dict(schedule=[1])])
def test_a_refused_patch_leaves_the_old_one(own, arguments):
    catome.apply_patch(own, catome.PAPER, **MERGING)
    merged = image(own)
    with pytest.raises(ValueError, match=next(iter(arguments))):
        catome.apply_patch(own, catome.PAPER, **arguments)
    assert np.array_equal(merged, image(own))


def test_autocast_does_not_touch_the_matching(own):
    tokens = torch.randn(1, 1, 64) + 0.45 * torch.randn(1, 256, 64)
    exact = catome.best_matches(tokens, (16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = catome.best_matches(tokens, (16, 16))
    assert torch.equal(exact.similarity, mixed.similarity)
    assert torch.equal(exact.best, mixed.best)


@every_way
def test_another_hook_of_diffusers_stays(own, config):
    """One that keeps the outputs of attentions; catome merges around it or inside it, in either order."""

    def broadcast(unet):
        apply_pyramid_attention_broadcast(
            unet,
            PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2,
                spatial_attention_timestep_skip_range=(100, 950),
                current_timestep_callback=lambda: 500,
            ),
        )

    twin = copy.deepcopy(own)
    other = copy.deepcopy(own)
    broadcast(twin.unet)
    expected = image(twin)
    catome.apply_patch(twin, config, **MERGING)
    catome.apply_patch(other, config, **MERGING)
    broadcast(other.unet)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        merged = image(twin)
        assert np.array_equal(merged, image(other))
    assert not np.array_equal(expected, merged)
    assert 0 < catome.summary(twin).merged_share == catome.summary(other).merged_share
    for patched in (twin, other):
        catome.remove_patch(patched)
        assert np.array_equal(expected, image(patched))
        assert not any(hooks_of(module, Hook) for module in patched.unet.modules())


@every_way
def test_a_processor_that_treats_parts_of_the_batch_differently(own, config):
    """Perturbed attention guidance calls attention for two thirds of its rows: these are merged by their own
    keys."""
    guided = StableDiffusionPAGPipeline(
        **own.components, pag_applied_layers=["down_blocks.0"], requires_safety_checker=False
    )
    guided.set_progress_bar_config(disable=True)

    def two(**arguments):
        prompts = [tiny.prompt("volcano"), tiny.prompt("city at night")]
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        return guided(
            prompts, num_inference_steps=2, generator=generators, output_type="np", **arguments
        ).images

    plain = two()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with catome.patched(guided, config, threshold=0.9):
            assert not np.array_equal(plain, two())
            assert all(attention.merged_share > 0 for attention in catome.summary(guided).attentions)
        with catome.patched(guided, config, ratio=0.0):
            assert np.allclose(plain, two(), atol=1e-6)


@pytest.mark.parametrize(
    "change", ["attention slicing", "channels last", "vae tiling", "fused projections", "half"]
)
@pytest.mark.parametrize("config", [catome.PAPER, catome.RECOMMENDED], ids=["PAPER", "RECOMMENDED"])
def test_other_ways_to_run(own, change, config):
    if change == "attention slicing":
        own.enable_attention_slicing(1)
    elif change == "channels last":
        own.unet.to(memory_format=torch.channels_last)
    elif change == "vae tiling":
        own.vae.enable_tiling()
    elif change == "fused projections":
        own.unet.fuse_qkv_projections()
    else:
        own.to(torch.bfloat16)
    plain = image(own)
    with catome.patched(own, config, **MERGING):
        merged = image(own)
        assert np.isfinite(merged).all()
        assert not np.array_equal(plain, merged)
        assert np.array_equal(merged, image(own))
    assert np.array_equal(plain, image(own))


@every_way
def test_nan_in_the_latents_stays_in_its_image(own, config):
    sample, timestep, text = inputs(batch=2)
    with catome.patched(own, config, threshold=0.9):
        healthy = call(own.unet, sample, timestep, text)
        sample[0, :, 3, 3] = float("nan")
        sick = call(own.unet, sample, timestep, text)
    assert sick[0].isnan().any()
    # keys are padded to those of the image that keeps most, which may round differently
    rounding = 1e-5 if config.keep_queries else 0.0
    torch.testing.assert_close(sick[1], healthy[1], atol=rounding, rtol=0)
