"""A rule that says at every step which images need new pairs, beside the checkpoints."""

import pickle
from dataclasses import dataclass

import pytest
import torch

import catome
from catome.runtime.compiled import CompiledSteps
from catome.runtime.install import install
from helpers.pipelines import ATTENTIONS, CONFIGS, call, noise, searches, unet

STEPS = 3
ONCE = dict(schedule=(0,), only_where_faster=False)


@dataclass(frozen=True)
class Always:
    """New pairs for the same images at every step."""

    rows: tuple[bool, ...]

    def __call__(self, plan, tokens, config):
        assert len(plan.lengths) == len(tokens) == len(self.rows)
        assert plan.target.shape == tokens.shape[:2]
        assert isinstance(config, catome.MergeConfig)
        return torch.tensor(self.rows)


def samples(step: int) -> torch.Tensor:
    """Latents of two images that change little by little."""
    return noise(0, 2) + 0.1 * step * noise(1, 2)


def outputs(config, outdated=None) -> tuple[list[torch.Tensor], set, list[int]]:
    """Of every step; the steps at which attentions found pairs; and the rows of every search."""
    model = unet()
    install(model, config, outdated=outdated)
    with searches() as seen:
        made = [call(model, samples(step), 900 - 10 * step) for step in range(STEPS)]
    return made, {attention.found_at for attention in catome.summary(model).attentions}, seen.rows


@pytest.mark.parametrize("amount", [dict(threshold=0.3), dict(ratio=0.5)], ids=["threshold", "ratio"])
@pytest.mark.parametrize("name", CONFIGS)
def test_outdated_images_alone_get_new_pairs(name, amount):
    """An image that is always outdated is merged as with pairs found at every step, and the other one as with
    pairs found once."""
    config = CONFIGS[name].changed(**amount, **ONCE)
    once, _, _ = outputs(config)
    afresh, _, _ = outputs(config.changed(schedule=None))
    found, at, rows = outputs(config, Always((False, True)))
    assert at == {(0, 1, 2)}
    assert rows == [2] * ATTENTIONS + [1] * ATTENTIONS * (STEPS - 1)
    for step in range(STEPS):
        torch.testing.assert_close(found[step][0], once[step][0], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(found[step][1], afresh[step][1], atol=2e-5, rtol=1e-4)
    # else it would not matter which pairs there are
    assert not torch.allclose(once[-1][1], afresh[-1][1], atol=1e-3)


def test_where_nothing_is_outdated_nothing_is_found():
    config = CONFIGS["PAPER"].changed(**ONCE)
    found, at, rows = outputs(config, Always((False, False)))
    assert at == {(0,)}
    assert rows == [2] * ATTENTIONS
    assert all(map(torch.equal, found, outputs(config)[0]))


def test_another_image_gets_new_pairs_though_its_old_ones_are_not_outdated():
    """The latents of the second row are those of another image from step 1 on."""
    model = unet()
    install(model, CONFIGS["PAPER"].changed(**ONCE), outdated=Always((False, False)))
    call(model, samples(0), 900)
    changed = samples(1)
    changed[1] = noise(7)[0]
    with searches() as seen:
        # a jump on the timetable: the latents decide
        call(model, changed, 400)
    assert seen.rows
    assert set(seen.rows) <= {1, 2}


def test_a_copy_has_the_rule():
    config = CONFIGS["PAPER"].changed(**ONCE)
    model = unet()
    install(model, config, outdated=Always((True, True)))
    twin = pickle.loads(pickle.dumps(model))
    for step in range(STEPS):
        call(twin, samples(step), 900 - 10 * step)
    assert {attention.found_at for attention in catome.summary(twin).attentions} == {(0, 1, 2)}


def test_nothing_is_compiled_as_a_whole():
    """No step is known to be a cached one before it has run."""
    model, config = unet(), CONFIGS["RECOMMENDED"].changed(**ONCE)
    install(model, config, outdated=Always((False, True)))
    with pytest.raises(ValueError, match="decides while it runs when pairs are found"):
        catome.compile_cached_steps(model)
    assert CompiledSteps.on(model) is None


def test_what_is_compiled_already_still_asks(compiler):
    """A rule that comes after the compiler is asked at every step, and no program runs."""
    _, backend = compiler
    model, config = unet(), CONFIGS["RECOMMENDED"].changed(**ONCE)
    catome.apply_patch(model, config)
    catome.compile_cached_steps(model, backend=backend)
    install(model, config, outdated=Always((False, True)))
    for step in range(STEPS):
        call(model, samples(step), 900 - 10 * step)
    assert CompiledSteps.on(model).steps == 0
    assert {attention.found_at for attention in catome.summary(model).attentions} == {(0, 1, 2)}
