"""Tests of whose pairs serve a call of a patched model: its own where they must be, earlier steps' where they
may."""

import gc
import threading
import weakref
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPanoramaPipeline,
    UniPCMultistepScheduler,
)
from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks

import catome
from catome import tiny
from catome.models._torch import hooks_of
from catome.patch import applied_patch
from catome.runtime.hooks import Hook
from catome.runtime.state import Cached, Kept, Rule, Running
from catome.runtime.steps import Condition, Generation
from catome.tensors.plan import make_plan
from helpers.pipelines import (
    ATTENTIONS,
    CONFIGS,
    SIZE,
    call,
    ddim,
    draw,
    noise,
    prompt,
    sd,
    sdxl,
    searches,
    unet,
    vae,
)

by_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def loop(model, seed=0, steps=6, text=0, first=0, until=None, scheduler=None, start=None):
    """A denoising loop of a user's own on a bare U-Net; a generator that gives the latents after each
    step."""
    scheduler = ddim() if scheduler is None else scheduler
    scheduler.set_timesteps(steps)
    x = noise(seed) if start is None else start
    given = prompt(text)
    for t in scheduler.timesteps[first:until]:
        x = scheduler.step(call(model, x, t, given), t, x).prev_sample
        yield x


def last(steps):
    return list(steps)[-1]


def clean(model):
    """Return True if nothing of catome is on a model."""
    names = [
        name
        for module in model.modules()
        for name in ("forward", "cache_context", "_reset_stateful_cache")
        if name in vars(module)
    ]
    return not names and not any(hooks_of(module, Hook) for module in model.modules())


# Few steps

SAMPLERS = {
    "DPM++": DPMSolverMultistepScheduler,
    "Euler": EulerDiscreteScheduler,
    "Euler a": EulerAncestralDiscreteScheduler,
    "LCM": LCMScheduler,
    "DDIM": DDIMScheduler,
    "DDPM": DDPMScheduler,
    "UniPC": UniPCMultistepScheduler,
    "PLMS": partial(PNDMScheduler, skip_prk_steps=True),
    "Heun": HeunDiscreteScheduler,
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("schedule", ["CONFIG_3", "EVEN_4", "CONFIG_1"])
def test_a_named_schedule_fits_the_length(sampler, schedule):
    pipe = sd(scheduler=sampler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
    catome.apply_patch(pipe, CONFIGS["RECOMMENDED"], schedule=schedule)
    for steps in (4, 8, 13):
        with searches() as seen:
            draw(pipe, steps)
        found = catome.summary(pipe)
        calls = len(pipe.scheduler.timesteps)
        expected = catome.parse_schedule(schedule).at(calls)
        assert (found.steps, found.length, found.length_known) == (calls, calls, True)
        assert {attention.found_at for attention in found.attentions} == {expected}
        assert seen.count == ATTENTIONS * len(expected)


def decibels(a: np.ndarray, b: np.ndarray) -> list[float]:
    """PSNR of images in 8 bits."""
    a, b = ((255 * x).round().clip(0, 255) for x in (a, b))
    return [10 * np.log10(255**2 / max(((x - y) ** 2).mean(), 1e-6)) for x, y in zip(a, b, strict=True)]


def test_the_default_call_keeps_images_of_eight_steps(pipe, generate):
    """Of all twelve landscapes of the embedded model, 44.1 dB on average; of every second one here."""
    names = list(tiny.CLASSES)[::2]
    before = pipe.scheduler
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(before.config)
    try:
        plain = generate(names, steps=8)
        with catome.patched(pipe):
            merged = generate(names, steps=8)
            assert catome.summary(pipe).merged_share > 0.4
    finally:
        pipe.scheduler = before
    assert np.mean(decibels(plain, merged)) > 34


# Several calls at one place


@by_config
def test_each_view_of_a_panorama_has_its_own(config):
    pipe = sd(StableDiffusionPanoramaPipeline, vae=vae(4))
    pipe.get_views = partial(pipe.get_views, window_size=SIZE, stride=SIZE // 2)
    views = 3
    arguments = dict(height=8 * SIZE, width=16 * SIZE, guidance_scale=1.0)
    with catome.patched(pipe, config, schedule=[0]), searches() as seen:
        one = draw(pipe, 1, **arguments)
        assert seen.since() == views * ATTENTIONS
        several = draw(pipe, 12, **arguments)
        assert seen.since() == views * ATTENTIONS, "found for each view at the first step, and reused"
    with catome.patched(pipe, config, schedule=None):
        assert torch.equal(one, draw(pipe, 1, **arguments)), "each is merged by its own pairs"
        assert not torch.equal(several, draw(pipe, 12, **arguments))


def plans_by_call(record):
    """The plans that served, by step, call and block, and those that the call's own tokens would give."""
    seen = record.generations[0]
    return {
        (it.step, it.call, it.block): (it.plan.target, make_plan(it.matches, threshold=0.3).target)
        for it in seen
    }


def test_each_view_keeps_what_was_its_own():
    pipe = sd(StableDiffusionPanoramaPipeline, vae=vae(4))
    pipe.get_views = partial(pipe.get_views, window_size=SIZE, stride=SIZE // 2)
    with catome.patched(pipe, CONFIGS["PAPER"], schedule=[0, 6]), catome.probe(pipe) as record:
        draw(pipe, 12, height=8 * SIZE, width=16 * SIZE, guidance_scale=1.0)
    plans = plans_by_call(record)
    assert {(step, view) for step, view, _ in plans} == {
        (step, view) for step in range(12) for view in range(3)
    }
    for (step, view, block), (used, own) in plans.items():
        checkpoint = 0 if step < 6 else 6
        assert torch.equal(used, plans[checkpoint, view, block][1])
        if step == checkpoint:
            assert torch.equal(used, own)
    assert not torch.equal(plans[0, 0, record.blocks()[0]][1], plans[0, 1, record.blocks()[0]][1])


PLACES = {
    "an element of the timetable": lambda t: t,
    "a number": int,
    "expanded": lambda t: t.expand(1),
    "a copy": lambda t: t.repeat(1),
    "a slice": lambda t: t[None],
}


@by_config
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_images_at_the_same_place_are_each_merged_by_their_own(config, place):
    """Features of images at one timestep; one-step models in a loop."""
    model = unet()
    scheduler = ddim()
    scheduler.set_timesteps(50)
    t = place(scheduler.timesteps[40])
    with catome.patched(model, config, schedule=None):
        fresh = [call(model, noise(image), t) for image in range(4)]
    with catome.patched(model, config, schedule=[0]), searches() as seen:
        for image in range(4):
            assert torch.equal(call(model, noise(image), t), fresh[image])
        assert seen.count == 4 * ATTENTIONS


def test_images_in_rows_at_the_same_place():
    """Batches of two: the rows are as alone."""
    model = unet()
    with catome.patched(model, CONFIGS["RECOMMENDED"], schedule=[0]):
        alone = [call(model, noise(image), 401) for image in range(4)]
        pairs = [call(model, torch.cat([noise(i), noise(i + 1)]), 401) for i in (0, 2)]
    assert torch.allclose(torch.cat(alone), torch.cat(pairs), atol=1e-5)


@by_config
def test_training_batches_are_merged_by_their_own(config):
    """Random timesteps, and gradients."""
    model = unet()
    scheduler = DDPMScheduler()
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(10):
        timesteps = torch.randint(0, 1000, (2,), generator=generator)
        clean_latents = torch.randn(2, 4, SIZE, SIZE, generator=generator)
        target = torch.randn(2, 4, SIZE, SIZE, generator=generator)
        batches.append((scheduler.add_noise(clean_latents, target, timesteps), timesteps, target))

    def gradients():
        found = []
        for noisy, timesteps, target in batches:
            model.zero_grad()
            ((model(noisy, timesteps, prompt(0, 2)).sample - target) ** 2).mean().backward()
            found.append(model.conv_in.weight.grad.clone())
        return found

    with catome.patched(model, config, schedule=None):
        fresh = gradients()
    with catome.patched(model, config, schedule="CONFIG_3"), searches() as seen:
        mine = gradients()
    assert seen.count == len(batches) * ATTENTIONS
    for a, b in zip(fresh, mine, strict=True):
        assert torch.equal(a, b)


def test_rows_of_a_batch_that_are_exchanged_get_their_own():
    """By values: the first row goes on, the second is another image at every step."""
    model = unet()
    kept = noise(0)
    calls = [(900 - 20 * i, torch.cat([kept, noise(10 + i)])) for i in range(4)]
    with catome.patched(model, CONFIGS["PAPER"], schedule=None):
        fresh = [call(model, x, t) for t, x in calls]
    with catome.patched(model, CONFIGS["PAPER"], schedule=[0]), searches() as seen:
        outputs = [call(model, x, t) for t, x in calls]
    assert seen.rows == [2] * ATTENTIONS + [1] * ATTENTIONS * 3
    for mine, own in zip(outputs, fresh, strict=True):
        assert torch.allclose(mine[1], own[1], atol=1e-5)
    assert not torch.allclose(outputs[3][0], fresh[3][0], atol=1e-5)


def test_a_row_that_was_exchanged_while_its_attention_did_not_run():
    """A plan knows the step it was made at, and each row of latents the step at which its image began."""
    generation = Generation(Kept(Rule(CONFIGS["PAPER"].changed(schedule=[0]))))
    generation.step = 5
    condition = Condition(None, (3, 4, 8, 8), since=torch.tensor([0, 2, 4]))
    running = Running(None, generation, condition)
    plan = catome.match(torch.randn(3, 16, 4), (4, 4), ratio=0.5)
    for made, rows in (
        (1, [False, True, True]),
        (2, [False, False, True]),
        (3, [False, False, True]),
        (4, [False] * 3),
    ):
        assert running._of_other_images(Cached(plan, (), made)).tolist() == rows
    frames = catome.match(torch.randn(6, 16, 4), (4, 4), ratio=0.5)
    assert running._of_other_images(Cached(frames, (), 2)).tolist() == [False] * 4 + [True] * 2


@by_config
@pytest.mark.parametrize("order", ["same order", "by turns"])
def test_guidance_by_separate_calls(config, order):
    model = unet()
    scheduler = ddim()

    @torch.no_grad()
    def guided(steps):
        scheduler.set_timesteps(steps)
        x = noise(0)
        texts = [prompt(0), prompt(1)]
        for i, t in enumerate(scheduler.timesteps):
            out = [None, None]
            for which in (1, 0) if order == "by turns" and i % 2 else (0, 1):
                out[which] = call(model, x, t, texts[which])
            x = scheduler.step(out[1] + 3 * (out[0] - out[1]), t, x).prev_sample
        return x

    with catome.patched(model, config, schedule=None):
        fresh = guided(1)
    with catome.patched(model, config, schedule=[0, 5]), searches() as seen:
        assert torch.equal(guided(1), fresh)
        assert seen.since() == 2 * ATTENTIONS
        guided(20)
        assert seen.since() == 2 * 2 * ATTENTIONS
        assert catome.summary(model).steps == 20
        assert catome.summary(model).attentions[0].found_at == (0, 5)


def test_guidance_by_separate_calls_gives_what_one_batch_gives():
    """Up to rounding: each condition is merged by its own pairs, found at the same steps."""
    model = unet()
    scheduler = ddim()

    def guided(separate):
        scheduler.set_timesteps(12)
        x = noise(0)
        for t in scheduler.timesteps:
            if separate:
                a, b = call(model, x, t, prompt(0)), call(model, x, t, prompt(1))
            else:
                a, b = call(model, torch.cat([x, x]), t, torch.cat([prompt(0), prompt(1)])).chunk(2)
            x = scheduler.step(b + 3 * (a - b), t, x).prev_sample
        return x

    with catome.patched(model, catome.PAPER, ratio=0.5, threshold=None, schedule=[0, 4, 8]):
        torch.testing.assert_close(guided(True), guided(False), atol=1e-3, rtol=1e-3)


def test_a_modular_pipeline():
    """Its guider calls the U-Net once for each condition."""
    parts = sdxl()
    pipe = StableDiffusionXLAutoBlocks().init_pipeline()
    names = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    pipe.update_components(**{name: getattr(parts, name) for name in names})
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=5.0))
    pipe.set_progress_bar_config(disable=True)

    def image(steps, seed=0):
        generator = torch.Generator().manual_seed(seed)
        arguments = dict(
            num_inference_steps=steps, height=64, width=64, generator=generator, output_type="latent"
        )
        return pipe(prompt="a", **arguments).get("images")

    plain = image(4)
    attentions = len(catome.summary(catome.apply_patch(pipe, CONFIGS["RECOMMENDED"])).attentions)
    catome.apply_patch(pipe, CONFIGS["RECOMMENDED"], schedule=None)
    fresh = image(2)
    catome.apply_patch(pipe, CONFIGS["RECOMMENDED"], schedule=[0, 1, 2])
    assert torch.equal(image(2), fresh)
    catome.apply_patch(pipe, CONFIGS["RECOMMENDED"], schedule=[0, 2])
    with searches() as seen:
        merged = image(4)
        assert seen.count == 4 * attentions, "at steps 0 and 2, for each condition"
    assert catome.summary(pipe).steps == 4
    assert not torch.equal(merged, plain)
    assert torch.equal(image(4), merged), "nothing of an earlier generation is left"
    catome.remove_patch(pipe)
    assert torch.equal(image(4), plain)


# Generations by turns


@by_config
def test_loops_by_turns_are_as_alone(config):
    """Two images on timetables of their own, and a third batch of another size, step by step."""
    model = unet()
    with catome.patched(model, config, schedule=[0, 3]), searches() as seen:
        alone = [last(loop(model, seed, steps=12)) for seed in range(3)]
        assert seen.since() == 3 * 2 * ATTENTIONS
        together = [loop(model, seed, steps=12) for seed in range(3)]
        for outputs in zip(*together, strict=True):
            mine = outputs
        assert seen.since() == 3 * 2 * ATTENTIONS, "pairs are reused"
    for a, b in zip(alone, mine, strict=True):
        assert torch.equal(a, b)


def test_batch_sizes_by_turns_are_as_alone():
    model = unet()
    scheduler = ddim()
    scheduler.set_timesteps(12)

    def outputs(sizes):
        found = []
        for i, t in enumerate(scheduler.timesteps):
            found += [call(model, noise(7, rows) * (1 - 0.01 * i), t) for rows in sizes]
        return found

    with catome.patched(model, CONFIGS["PAPER"], schedule=[0, 6]), searches() as seen:
        one = outputs([1])
        two = outputs([2])
        assert seen.since() == 2 * 2 * ATTENTIONS
        both = outputs([1, 2])
        assert seen.since() == 2 * 2 * ATTENTIONS
    for i in range(12):
        assert torch.equal(both[2 * i], one[i])
        assert torch.equal(both[2 * i + 1], two[i])


@pytest.mark.parametrize("given_up", [1, 3])
def test_a_generation_given_up_and_another_begun_further_on(given_up):
    """img2img in a loop of one's own: the next place of the same timetable, and another image."""
    model = unet()
    scheduler = ddim()
    scheduler.set_timesteps(20)

    def calls(seed, places):
        return [call(model, noise(seed), scheduler.timesteps[i]) for i in places]

    with catome.patched(model, CONFIGS["PAPER"], schedule=[0]):
        expected = calls(2, range(given_up, given_up + 4))
    with catome.patched(model, CONFIGS["PAPER"], schedule=[0]):
        calls(1, range(given_up))
        for mine, own in zip(calls(2, range(given_up, given_up + 4)), expected, strict=True):
            assert torch.equal(mine, own)


def test_an_interrupted_pipeline_leaves_no_pairs_for_the_next():
    pipe = sd()
    catome.apply_patch(pipe, CONFIGS["PAPER"], schedule=[0])
    expected = draw(pipe, 6, seed=3)
    for error in (ValueError, KeyboardInterrupt):

        def stop(pipe, step, timestep, tensors, error=error):
            if step == 2:
                raise error
            return tensors

        with pytest.raises(error):
            draw(pipe, 6, callback_on_step_end=stop)
        assert torch.equal(draw(pipe, 6, seed=3), expected)


def test_image_to_image_counts_its_own_steps():
    pipe = sd(StableDiffusionImg2ImgPipeline)
    start = torch.rand(1, 3, 2 * SIZE, 2 * SIZE, generator=torch.Generator().manual_seed(0))
    catome.apply_patch(pipe, CONFIGS["RECOMMENDED"], schedule="EVEN_4")
    for strength, calls in ((1.0, 16), (0.5, 8), (0.25, 4)):
        draw(pipe, 16, image=start, strength=strength)
        found = catome.summary(pipe)
        assert (found.steps, found.length) == (calls, calls)
        assert found.attentions[0].found_at == tuple(range(0, calls, calls // 4))


def test_a_second_pipeline_on_the_model_has_a_length_of_its_own():
    """The patch was put on by way of another pipeline, whose scheduler has planned forty steps."""
    pipe = sd()
    catome.apply_patch(pipe, CONFIGS["RECOMMENDED"], schedule="EVEN_4")
    pipe.scheduler.set_timesteps(40)
    other = sd(unet=pipe.unet)
    draw(other, 8)
    assert catome.summary(other).length == 8
    assert catome.summary(other).attentions[0].found_at == (0, 2, 4, 6)


def test_start_and_end():
    pipe = sd()

    def outputs(**changes):
        found = []
        handle = pipe.unet.register_forward_hook(lambda model, args, output: found.append(output[0].clone()))
        with catome.patched(pipe, CONFIGS["RECOMMENDED"], schedule=None, **changes), searches() as seen:
            draw(pipe, 8)
        handle.remove()
        return found, seen.count

    for start, end in ((0.0, 0.5), (0.5, 1.0), (0.25, 0.75), (0.0, 1.0)):
        _, count = outputs(start=start, end=end)
        assert count == ATTENTIONS * round(8 * (end - start))
    unmerged, count = outputs(start=0.99)
    assert count == 0
    late, _ = outputs(start=0.5)
    assert torch.equal(late[3], unmerged[3])
    assert not torch.equal(late[4], unmerged[4])


def test_merging_does_not_end_where_nobody_told_the_length():
    """A hundred calls by values; 51 are assumed for the schedule, and the end is the end."""
    model = unet(block_out_channels=(8, 8), norm_num_groups=2)
    with catome.patched(model, CONFIGS["RECOMMENDED"]), searches() as seen:
        for i in range(100):
            call(model, noise(0, size=8), 1000 - i)
    with catome.patched(model, CONFIGS["RECOMMENDED"], ratio=0.5):
        for i in range(100):
            call(model, noise(0, size=8), 1000 - i)
        found = catome.summary(model)
        assert found.attentions[0].calls == 100
        assert found.merged_share == 0.5
        assert seen.count


def test_new_generation():
    """For a loop that shows other images, which resemble each other, at each place of the scheduler's own
    timetable."""
    pipe = sd()
    pipe.scheduler.set_timesteps(10)
    shared = noise(0)
    calls = [(t, shared + 0.3 * noise(1 + i)) for i, t in enumerate(pipe.scheduler.timesteps)]
    with catome.patched(pipe, CONFIGS["PAPER"], schedule=None):
        fresh = [call(pipe.unet, x, t) for t, x in calls]
    with catome.patched(pipe, CONFIGS["PAPER"], schedule=[0]), searches() as seen:
        for (t, x), own in zip(calls, fresh, strict=True):
            assert catome.new_generation(pipe) is pipe
            assert torch.equal(call(pipe.unet, x, t), own)
        assert seen.since() == 10 * ATTENTIONS
        for t, x in calls:
            call(pipe.unet, x, t)
        assert seen.since() == ATTENTIONS, "without it, they are taken for one image"
    assert catome.new_generation(pipe) is pipe


def test_a_random_dst_is_the_same_in_each_generation():
    model = unet()
    with catome.patched(model, CONFIGS["PAPER"], dst="random", schedule=None):
        first = last(loop(model, 0, steps=3))
        assert torch.equal(last(loop(model, 0, steps=3)), first)
    with catome.patched(model, CONFIGS["PAPER"], dst="random", schedule=None, seed=1):
        assert not torch.equal(last(loop(model, 0, steps=3)), first)


# Threads


class Other:
    """A thread that does one thing at a time, when it is told to."""

    def __enter__(self):
        self.job = None
        self.todo = threading.Event()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._work)
        self.thread.start()
        return self

    def __call__(self, job):
        self.job = job
        self.done.clear()
        self.todo.set()
        assert self.done.wait(60)
        if isinstance(self.found, BaseException):
            raise self.found
        return self.found

    def _work(self):
        while self.todo.wait() and self.job is not None:
            self.todo.clear()
            try:
                self.found = self.job()
            except BaseException as error:
                self.found = error
            self.done.set()

    def __exit__(self, *error):
        self.job = None
        self.todo.set()
        self.thread.join()


@by_config
def test_nothing_of_a_call_waits_for_the_garbage_collector(config):
    """Merged tokens are large, and a GPU has no room for those of many calls."""
    model = unet()
    catome.apply_patch(model, config)
    gc.collect()
    gc.disable()
    try:
        call(model, noise(0, rows=3))
        running = weakref.ref(applied_patch(model).running)
        catome.new_generation(model)
        assert running() is None
    finally:
        gc.enable()


@by_config
def test_a_generation_that_changes_threads_is_merged_by_its_own(config):
    """Another thread knows nothing of it, and finds pairs there."""
    model = unet()
    with catome.patched(model, config, schedule=[0]):
        steps = loop(model, 0, steps=20)
        before = [next(steps) for _ in range(3)][-1]
        with Other() as other, searches() as seen:
            other(lambda: next(steps))
            assert seen.since() == ATTENTIONS
            moved = other(lambda: next(steps))
            assert seen.since() == 0
            # the same from here on, in a thread that knows nothing either
        with Other() as third:
            again = loop(model, steps=20, first=3, start=before)
            third(lambda: next(again))
            assert torch.equal(third(lambda: next(again)), moved)
        with searches() as seen:
            last(steps)
            assert seen.count in (0, ATTENTIONS), (
                "back again: the pairs that were left here, if the latents are still alike"
            )


@by_config
def test_a_patch_for_a_while_does_not_touch_another_threads_generation(config):
    model = unet()
    with catome.patched(model, config, schedule=[0, 2]):
        expected = last(loop(model, 0, steps=6))
    with catome.patched(model, catome.TOME):
        mine = last(loop(model, 1, steps=6))
    plain = last(loop(model, 1, steps=6))
    catome.apply_patch(model, config, schedule=[0, 2])
    with Other() as other:
        steps = loop(model, 0, steps=6)
        for _ in range(3):
            other(lambda: next(steps))
        with catome.patched(model, catome.TOME, merge_mlp=False):
            assert torch.equal(last(loop(model, 1, steps=6)), mine)
            other(lambda: next(steps))
        catome.remove_patch(model)
        assert not catome.is_patched(model)
        assert torch.equal(last(loop(model, 1, steps=6)), plain)
        other(lambda: next(steps))
        assert torch.equal(other(lambda: next(steps)), expected)
        # a generation on a bare U-Net ends where the next one begins
        assert torch.equal(other(lambda: last(loop(model, 1, steps=6))), plain)
    assert torch.equal(last(loop(model, 1, steps=6)), plain)
    assert clean(model)


def test_a_patch_removed_while_another_thread_generates_goes_when_that_has_ended():
    pipe = sd()
    plain = draw(pipe, 4)
    reached = threading.Event()
    go_on = threading.Event()

    def wait(pipe, step, timestep, tensors):
        if step == 1:
            reached.set()
            assert go_on.wait(60)
        return tensors

    catome.apply_patch(pipe, CONFIGS["PAPER"], schedule=[0])
    merged = draw(pipe, 4)
    with Other() as other:
        found = []
        thread = threading.Thread(
            target=lambda: found.append(other(lambda: draw(pipe, 4, callback_on_step_end=wait)))
        )
        thread.start()
        assert reached.wait(60)
        catome.remove_patch(pipe)
        assert not clean(pipe.unet)
        go_on.set()
        thread.join()
        assert clean(pipe.unet), "the pipeline said that its generation has ended"
    assert torch.equal(found[0], merged)
    assert torch.equal(draw(pipe, 4), plain)


def test_a_patch_removed_while_a_thread_that_then_ends_generates():
    """Nothing says so; the next call of the model finds it out."""
    model = unet()
    plain = call(model, noise(0))
    catome.apply_patch(model, CONFIGS["PAPER"])
    with Other() as other:
        other(lambda: call(model, noise(0)))
        catome.remove_patch(model)
        assert not clean(model)
    assert torch.equal(call(model, noise(0)), plain)
    assert clean(model)
    model.enable_gradient_checkpointing()
    model(noise(0), 1, prompt(0))  # would be refused on a patched model


def test_a_patch_put_on_again_before_the_other_thread_has_ended():
    model = unet()
    catome.apply_patch(model, CONFIGS["PAPER"], schedule=[0])
    merged = call(model, noise(0))
    with Other() as other:
        other(lambda: call(model, noise(0)))
        catome.remove_patch(model)
        catome.apply_patch(model, CONFIGS["PAPER"], schedule=[0])
        other(lambda: catome.new_generation(model) is None)
    assert catome.is_patched(model)
    assert torch.equal(call(model, noise(0)), merged)
    catome.remove_patch(model)
    assert clean(model)


def test_hooks_stay_while_a_thread_is_inside():
    """Another thread changes the patch in the very moment in which this one is inside an attention."""
    model = unet()
    attention = next(module for name, module in model.named_modules() if name.endswith("attn1"))
    catome.apply_patch(model, CONFIGS["PAPER"], schedule=[0])
    expected = call(model, noise(0))
    merging = dict(merge_mlp=True, max_downsample=2)
    changes = [
        lambda: catome.apply_patch(model, CONFIGS["PAPER"], schedule=[0], **merging),
        lambda: catome.apply_patch(model, catome.TOME),
        lambda: catome.remove_patch(model),
        lambda: catome.apply_patch(model, CONFIGS["RECOMMENDED"]),
        lambda: catome.remove_patch(model),
    ]
    with Other() as other:
        for change in changes:
            catome.remove_patch(model)
            catome.apply_patch(model, CONFIGS["PAPER"], schedule=[0])

            def interrupted(module, args, change=change):
                other(change)

            handle = attention.to_q.register_forward_pre_hook(interrupted)
            try:
                assert torch.equal(call(model, noise(0)), expected)
            finally:
                handle.remove()
    catome.remove_patch(model)
    assert clean(model)


def test_many_threads_that_patch_and_generate():
    """Whatever the order: each call gives what some patch, or none, would give."""
    model = unet()
    known = [call(model, noise(0))]
    for config in CONFIGS.values():
        with catome.patched(model, config, schedule=[0]):
            known.append(call(model, noise(0)))
    errors = []

    def generate():
        for _ in range(12):
            output = call(model, noise(0))
            if not any(torch.allclose(output, one, atol=1e-5) for one in known):
                errors.append("an output that no patch gives")
            catome.new_generation(model)

    def change():
        for config in [*CONFIGS.values()] * 4:
            catome.apply_patch(model, config, schedule=[0])
            catome.remove_patch(model)

    @contextmanager
    def noting():
        try:
            yield
        except BaseException as error:
            errors.append(error)

    def noted(job):
        with noting():
            job()

    threads = [threading.Thread(target=noted, args=(job,)) for job in (generate, generate, change)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    catome.remove_patch(model)
    call(model, noise(0))
    assert clean(model)
    assert applied_patch(model) is None
