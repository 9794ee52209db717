import gc
import weakref

import numpy as np
import pytest
import tomesd
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)

import catome
from catome import tiny
from catome.models.unet import transformer_blocks
from catome.patch import applied_patch
from helpers import reference
from helpers.embedded import call, counted_matches, unet_inputs

EVERY = tuple(range(60))


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (26, 32)])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.7])
@pytest.mark.parametrize("parts", ["attention", "everything"])
def test_a_fixed_ratio_is_tomesd(pipe, size, ratio, parts):
    """In float64, where rounding does not decide which of two almost equal similarities is the higher."""
    everything = dict(merge_attn=True, merge_crossattn=parts == "everything", merge_mlp=parts == "everything")
    pipe.unet.double(), pipe.text_encoder.double()
    try:
        plain, theirs, ours = three_outputs(
            pipe, unet_inputs(pipe, ["desert", "volcano"], size), ratio, everything
        )
    finally:
        pipe.unet.float(), pipe.text_encoder.float()
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
    assert (plain - theirs).abs().max() > 1e-3  # merging does something here


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_a_fixed_ratio_is_tomesd_in_single_precision(pipe, size):
    plain, theirs, ours = three_outputs(pipe, unet_inputs(pipe, ["desert", "volcano"], size), 0.5, {})
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (plain - theirs).abs().max() > 1e-3


def three_outputs(pipe, inputs, ratio, parts):
    inputs = {name: x.to(pipe.unet.dtype) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    plain = call(pipe, inputs)
    tomesd.apply_patch(pipe, ratio=ratio, use_rand=False, max_downsample=1, **parts)
    try:
        theirs = call(pipe, inputs)
    finally:
        tomesd.remove_patch(pipe)
    with catome.patched(pipe, catome.PAPER, ratio=ratio, schedule=None, **parts):
        return plain, theirs, call(pipe, inputs)


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9])
def test_a_threshold_is_the_naive_reference(pipe, threshold):
    """Batch 1, no guidance: pairs exactly, attention outputs within 1e-5, of the loops in reference.py."""
    inputs = unet_inputs(pipe, ["lighthouse"], size=(16, 16))
    seen = []

    def watch(block, args, kwargs, output):
        seen.append((block, args[0], block.norm1(args[0])))

    blocks = list(transformer_blocks(pipe.unet).values())
    outputs = []
    with catome.patched(pipe, catome.PAPER, threshold=threshold):
        handles = [block.register_forward_hook(watch, with_kwargs=True) for block in blocks]
        handles += [block.attn1.register_forward_hook(lambda m, a, o: outputs.append(o)) for block in blocks]
        call(pipe, inputs)
        for handle in handles:
            handle.remove()
        plans = iter(applied_patch(pipe).cached())
    merged = 0
    checked = 0
    for (block, x, normed), output in zip(seen, outputs, strict=True):
        if x.shape[1] < 256:  # below the top
            continue
        plan = next(plans)
        checked += 1
        pairs, best = reference.pairs_above(x[0].tolist(), 16, 16, threshold)
        doubtful = {s for s, value in best.items() if abs(value - threshold) < 1e-6}
        assert not doubtful  # rounding decides nothing here
        assert plan.pairs(0).tolist() == [list(pair) for pair in pairs]
        merged += len(pairs)

        def attention(rows, block=block):
            return block.attn1(torch.tensor([rows]))[0].tolist()

        with torch.no_grad():
            expected = reference.merge_and_unmerge(normed[0].tolist(), pairs, attention)
        torch.testing.assert_close(output[0], torch.tensor(expected), atol=1e-5, rtol=0)
    assert checked == 5
    assert merged > 0


def test_only_topmost_blocks_merge_unless_asked(pipe):
    inputs = unet_inputs(pipe, ["desert"])
    for max_downsample, expected in ((1, {1024}), (2, {1024}), (4, {1024, 64})):
        with catome.patched(pipe, catome.PAPER, ratio=0.5, max_downsample=max_downsample):
            call(pipe, inputs)
            sizes = {plan.slot.shape[1] for plan in applied_patch(pipe).cached()}
        assert sizes == expected


def test_images_do_not_depend_on_the_batch(pipe, generate):
    """Image i alone and among four different prompts, with guidance: the same pairs at every step and
    block."""
    names = ["desert", "city at night", "flower meadow", "polar aurora"]
    pipe.unet.double(), pipe.text_encoder.double(), pipe.vae.double()  # so that rounding decides nothing
    try:
        with catome.patched(pipe, catome.PAPER, threshold=0.9, schedule=[0, 2]):
            with catome.probe(pipe) as together:
                generate(names, steps=4, seed=10)
            for i, name in enumerate(names):
                with catome.probe(pipe) as alone:
                    generate([name], steps=4, seed=10 + i)
                for step in together.steps():
                    for block in together.blocks():
                        for row_alone, row in ((0, i), (1, i + len(names))):
                            pairs = alone.pairs(step, block, row_alone)
                            assert torch.equal(pairs, together.pairs(step, block, row))
        lengths = together.at(0, 0).plan.lengths
        assert len(set(lengths)) > 1  # images differ in how much they merge
    finally:
        pipe.unet.float(), pipe.text_encoder.float(), pipe.vae.float()


def test_a_checkpoint_at_every_step_is_no_cache(generate, pipe):
    with catome.patched(pipe, catome.PAPER, threshold=0.9, schedule=None):
        fresh = generate(["volcano", "desert"], steps=6)
    with catome.patched(pipe, catome.PAPER, threshold=0.9, schedule=EVERY):
        every = generate(["volcano", "desert"], steps=6)
    with catome.patched(pipe, catome.PAPER, threshold=0.9, schedule=[0, 3]):
        cached = generate(["volcano", "desert"], steps=6)
    assert np.array_equal(fresh, every)
    assert not np.array_equal(fresh, cached)


def test_steps_are_unet_calls_and_pairs_are_reused_between_checkpoints(generate, pipe, monkeypatch):
    searches = counted_matches(monkeypatch)
    with (
        catome.patched(pipe, catome.PAPER, threshold=0.9, schedule=[0, 3, 6, 99]),
        catome.probe(pipe) as record,
    ):
        generate(["volcano"], steps=6)
    assert record.steps() == list(range(7))  # 6 PLMS steps are 7 calls
    assert len(searches) == 3 * 5
    assert [record.at(step, 0).timestep for step in (1, 2)] == [record.at(1, 0).timestep] * 2
    plans = [record.at(step, 0).plan.slot for step in range(7)]
    for step, made in enumerate((0, 0, 0, 3, 3, 3, 6)):
        assert torch.equal(plans[step], plans[made])
    assert not torch.equal(plans[0], plans[3])


def test_fifty_plms_steps_are_fifty_one_calls(generate, pipe, monkeypatch):
    searches = counted_matches(monkeypatch)
    with catome.patched(pipe, catome.PAPER, threshold=0.7, schedule="CONF_ADAPTIVE"):
        generate(["volcano"], steps=50, guidance_scale=1.0)
    assert len(searches) == 15 * 5  # of its 16 checkpoints, 51 never comes


@pytest.mark.parametrize("through", ["pipe", "unet"])
def test_a_new_generation_starts_afresh(generate, pipe, monkeypatch, through):
    """Without its pipeline, a timetable of few numbers is not trusted; this one has eleven."""
    searches = counted_matches(monkeypatch)
    with catome.patched(pipe if through == "pipe" else pipe.unet, catome.PAPER, threshold=0.9, schedule=[0]):
        first = generate(["desert"], steps=10, seed=1)
        for _ in range(2):
            again = generate(["desert"], steps=10, seed=1)
        assert np.array_equal(first, again)
        assert len(searches) == 3 * 5
        generate(["desert"], steps=1)
        generate(["desert"], steps=1)
        assert len(searches) == 5 * 5


def test_a_generation_on_a_bare_unet_begins_when_the_timestep_rises(pipe, monkeypatch):
    searches = counted_matches(monkeypatch)
    inputs = unet_inputs(pipe, ["desert"])
    with catome.patched(pipe.unet, catome.PAPER, threshold=0.9, schedule=[0, 2]):
        for timestep in (981, torch.tensor(961), torch.tensor([941]), 921):
            call(pipe, inputs, timestep=timestep)
        assert len(searches) == 2 * 5
        call(pipe, inputs, timestep=981)
        assert len(searches) == 3 * 5
        call(pipe, inputs, timestep=961)
        assert len(searches) == 3 * 5
        call(pipe, inputs, timestep=961)  # another call at the same step has pairs of its own
        assert len(searches) == 4 * 5


def test_a_generation_with_rising_timesteps_is_one_generation_in_a_pipeline(pipe, generate, monkeypatch):
    """Inversion runs the schedule backwards; the pipeline's own calls say where a generation begins."""
    searches = counted_matches(monkeypatch)
    scheduler = pipe.scheduler
    try:
        with catome.patched(pipe, catome.PAPER, threshold=0.9, schedule=[0]):
            pipe.scheduler = DDIMInverseScheduler.from_config(scheduler.config)
            generate(["desert"], steps=4)
            assert len(searches) == 5
            generate(["desert"], steps=4)
            assert len(searches) == 10
    finally:
        pipe.scheduler = scheduler


@pytest.mark.parametrize("change", ["batch", "size", "dtype"])
def test_an_old_plan_is_never_used_for_something_else(pipe, change):
    """In the middle of a generation and between checkpoints."""
    inputs = unet_inputs(pipe, ["desert", "volcano"])
    other = {
        "batch": lambda: unet_inputs(pipe, ["desert"], timestep=381),
        "size": lambda: unet_inputs(pipe, ["desert", "volcano"], size=(16, 64), timestep=381),
        "dtype": lambda: {**unet_inputs(pipe, ["desert", "volcano"], timestep=381)},
    }[change]()
    with catome.patched(pipe.unet, catome.PAPER, threshold=0.9, schedule=[0]):
        call(pipe, inputs)
        with torch.autocast("cpu", torch.bfloat16, enabled=change == "dtype"):
            mixed = call(pipe, other)
    with (
        catome.patched(pipe.unet, catome.PAPER, threshold=0.9, schedule=[0]),
        torch.autocast("cpu", torch.bfloat16, enabled=change == "dtype"),
    ):
        fresh = call(pipe, other)
    assert torch.equal(mixed, fresh)


class Boom(Exception):
    pass


def test_removing_restores_every_bit_also_after_an_exception(pipe, generate):
    before = generate(["lighthouse"])
    inputs = unet_inputs(pipe, ["desert"])
    plain = call(pipe, inputs)
    state = {name: set(vars(module)) for name, module in pipe.unet.named_modules()}

    def explode(module, args):
        raise Boom

    catome.apply_patch(pipe, catome.PAPER, threshold=0.6)
    assert not np.array_equal(before, generate(["lighthouse"]))
    block = transformer_blocks(pipe.unet)["up_blocks.2.attentions.1.transformer_blocks.0"]
    handle = block.ff.register_forward_pre_hook(explode)
    with pytest.raises(Boom):
        generate(["lighthouse"])
    handle.remove()
    assert not applied_patch(pipe).generations
    catome.remove_patch(pipe)
    assert np.array_equal(before, generate(["lighthouse"]))
    assert torch.equal(plain, call(pipe, inputs))
    assert state == {name: set(vars(module)) for name, module in pipe.unet.named_modules()}
    catome.remove_patch(pipe)  # twice is harmless


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
def test_an_interrupted_generation_leaves_nothing_behind(pipe, generate, error):
    stop = 0

    def interrupt(pipeline, step, timestep, tensors):
        if step == stop:
            raise error
        return tensors

    with catome.patched(pipe, catome.PAPER, threshold=0.9, schedule=[0]):
        expected = generate(["misty forest"], seed=3)
        for at in (0, 1):
            stop = at
            with pytest.raises(error):
                generate(["desert"], callback_on_step_end=interrupt)
            assert np.array_equal(expected, generate(["misty forest"], seed=3))


def test_applying_twice_replaces_and_patched_gives_back_what_was_there(pipe, generate):
    catome.apply_patch(pipe, catome.PAPER, threshold=0.6)
    catome.apply_patch(pipe, catome.PAPER, ratio=0.5, schedule=None)
    twice = generate(["desert"])
    with catome.patched(pipe, catome.PAPER, threshold=0.9):
        assert not np.array_equal(twice, generate(["desert"]))
    assert np.array_equal(twice, generate(["desert"]))
    catome.remove_patch(pipe)
    with catome.patched(pipe, catome.PAPER, ratio=0.5, schedule=None):
        assert np.array_equal(twice, generate(["desert"]))


def test_the_configurations_by_name(pipe):
    for given, expected in (
        ((), catome.RECOMMENDED),
        ((catome.PAPER,), catome.PAPER),
        ((catome.TOME,), catome.TOME),
    ):
        catome.apply_patch(pipe, *given)
        assert catome.is_patched(pipe)
        assert applied_patch(pipe).config == expected
        catome.remove_patch(pipe)
        assert not catome.is_patched(pipe)
    assert catome.MergeConfig() == catome.RECOMMENDED
    assert (catome.RECOMMENDED.keep_queries, catome.RECOMMENDED.weighted) == (True, True)
    tome = catome.TOME
    assert (tome.ratio, tome.threshold, tome.schedule, tome.keep_queries, tome.weighted) == (
        0.5,
        None,
        None,
        False,
        False,
    )
    config = catome.PAPER
    assert (config.threshold, config.ratio, config.stride, config.dst) == (0.7, None, (2, 2), "top_left")
    assert config.schedule.at(51) == catome.SCHEDULES["CONFIG_3"]
    assert (config.keep_queries, config.weighted, config.compare) == (False, False, "input")
    assert (config.merge_attn, config.merge_crossattn, config.merge_mlp, config.max_downsample) == (
        True,
        False,
        False,
        1,
    )


@pytest.mark.parametrize("parts", [("merge_crossattn",), ("merge_mlp",), ("merge_crossattn", "merge_mlp")])
def test_cross_attention_and_mlp_merge_each_image_with_its_own_prompt(pipe, parts):
    """Ragged batches run image by image: the same as each image alone."""
    inputs = unet_inputs(pipe, ["desert", "city at night", "volcano"])
    with catome.patched(pipe, catome.PAPER, threshold=0.7, merge_attn=False, **dict.fromkeys(parts, True)):
        together = call(pipe, inputs)
        assert len(set(applied_patch(pipe).cached()[0].lengths)) > 1
        for i in range(3):
            alone = {**inputs, "sample": inputs["sample"][i : i + 1], "timestep": 990 + i}
            alone["encoder_hidden_states"] = inputs["encoder_hidden_states"][i : i + 1]
            torch.testing.assert_close(
                together[i : i + 1], call(pipe, {**alone, "timestep": 401}), atol=1e-4, rtol=0
            )


def test_random_dst_is_reproducible_and_seeded(pipe, generate):
    def images(seed):
        state = torch.get_rng_state()
        with catome.patched(pipe, catome.PAPER, ratio=0.5, dst="random", schedule=None, seed=seed):
            result = generate(["desert"]), generate(["desert"])
        assert torch.equal(state, torch.get_rng_state())
        return result

    first, again = images(1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, images(2)[0])


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_other_schedulers_and_img2img(pipe, generate, scheduler, monkeypatch):
    searches = counted_matches(monkeypatch)
    other = StableDiffusionImg2ImgPipeline(
        **{**pipe.components, "scheduler": scheduler.from_config(pipe.scheduler.config)}
    )
    other.set_progress_bar_config(disable=True)
    picture = torch.from_numpy(tiny.render("volcano", 1)).permute(2, 0, 1)[None] / 255
    with catome.patched(other, catome.PAPER, threshold=0.9, schedule=[0]):
        for _ in range(2):
            other(
                tiny.prompt("volcano"), image=picture, strength=0.5, num_inference_steps=6, output_type="np"
            )
    assert len(searches) == 2 * 5


def test_a_patched_pipeline_is_not_kept_alive():
    pipe = tiny.load_pipeline()
    catome.apply_patch(pipe, catome.PAPER)
    gone = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (dict(threshold=0.5, ratio=0.5), ValueError, "both were given"),
        (dict(threshold=0.7, ratio=0.5), ValueError, "both were given"),
        (dict(keep_queries=1), TypeError, "keep_queries=1"),
        (dict(weighted=None), TypeError, "weighted=None"),
        (dict(compare="values"), ValueError, "compare='values' must be 'input' or 'keys'"),
        (dict(start=0.5, end=0.5), ValueError, "start=0.5, end=0.5"),
        (dict(end=1.5), ValueError, "end=1.5 must be between 0 and 1"),
        (dict(config="PAPER"), TypeError, "config='PAPER' must be a catome.MergeConfig"),
        (dict(threshold=None), ValueError, "neither was given"),
        (dict(threshold=2), ValueError, "threshold=2 must be between -1 and 1"),
        (dict(ratio=0.9), ValueError, "ratio=0.9 must be between 0 and 0.75"),
        (dict(schedule="CONFIG3"), ValueError, "did you mean 'CONFIG_3'"),
        (dict(schedule=[3]), ValueError, "lacks step 0"),
        (dict(stride=(0, 2)), ValueError, "stride[0]=0"),
        (dict(dst="bottom"), ValueError, "dst='bottom'"),
        (dict(seed=-1), ValueError, "seed=-1"),
        (dict(max_downsample=0), ValueError, "max_downsample=0 must be at least 1"),
        (dict(max_downsample=1.5), TypeError, "max_downsample=1.5"),
        (dict(merge_mlp="yes"), TypeError, "merge_mlp='yes'"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(pipe, arguments, error, says):
    with pytest.raises(error) as caught:
        catome.apply_patch(pipe, **({"config": catome.PAPER} | arguments))
    assert says in str(caught.value)


@pytest.mark.parametrize("nothing", [None, torch.nn.Linear(2, 2), "runwayml/stable-diffusion-v1-5"])
def test_what_has_no_unet_is_refused(nothing):
    with pytest.raises(TypeError, match="must be a diffusers pipeline"):
        catome.apply_patch(nothing, catome.PAPER)


def test_a_pipeline_saved_to_disk_loads_and_patches(pipe, generate, tmp_path):
    """The path that real Stable Diffusion weights take: a diffusers folder."""
    with catome.patched(pipe, catome.PAPER, threshold=0.9):
        pipe.save_pretrained(tmp_path)
        expected = generate(["desert"])
    copy = tiny.load_pipeline(tmp_path)
    with catome.patched(copy, catome.PAPER, threshold=0.9):
        again = copy(
            [tiny.prompt("desert")],
            num_inference_steps=4,
            guidance_scale=tiny.GUIDANCE_SCALE,
            generator=[torch.Generator().manual_seed(0)],
            output_type="np",
        ).images
    assert np.array_equal(expected, again)
