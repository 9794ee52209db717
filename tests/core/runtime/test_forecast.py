"""Steps that are left out, and what is forecast there."""

import warnings

import numpy as np
import pytest
import torch

import catome
from catome import Forecast
from catome.models._torch import hooks_of
from catome.policy.forecast import computed_steps, weights
from catome.runtime.compiled import CompiledSteps
from catome.runtime.forecast import ForecastSteps, combined
from catome.runtime.hooks import Hook
from helpers.pipelines import SIZE, noise, prompt, sd, unet
from helpers.sentences import assert_says

TIMES = torch.tensor([950, 950, *range(900, 0, -50)])  # as PLMS goes, whose second timestep comes twice


class Polynomial:
    """Stands in for a U-Net's forward: an output that is a polynomial of third degree in the timestep."""

    def __init__(self, model):
        self.calls = []
        model.forward = self

    def __call__(self, sample, timestep, text, return_dict=True):
        self.calls.append(float(timestep))
        t = float(timestep) / 100
        return (sample * (1 + 2 * t - t**2 + 0.5 * t**3),)


def run(model, times=TIMES, rows: int = 1):
    sample = torch.ones(rows, 4, SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        return [
            model(sample, time, prompt(0, rows), return_dict=False)[0][0, 0, 0, 0].item() for time in times
        ]


def forecast(model, *settings) -> None:
    catome.apply_patch(model, merge_attn=False, forecast=Forecast(*settings))


@pytest.mark.parametrize("interval", [2, 3, 5])
def test_a_forecast_of_high_enough_order_is_exact(interval):
    model = unet()
    real = Polynomial(model)
    exact = run(model)
    real.calls.clear()
    forecast(model, 5, interval, 1.0, 3)
    assert run(model) == pytest.approx(exact, rel=1e-9)
    assert real.calls == [*TIMES[:5].tolist(), *TIMES[5 + interval - 1 :: interval].tolist()]
    catome.remove_patch(model)
    assert model.forward is real


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_forecast_of_lower_order_is_the_polynomial_through_the_last_outputs(order):
    model = unet()
    Polynomial(model)
    exact = run(model)
    forecast(model, 4, 3, 1.0, order)
    found = run(model)
    known = [950.0, 900.0, 850.0][-(order + 1) :]  # the fourth step, 850, was computed last
    values = [exact[TIMES.tolist().index(time)] for time in known]
    expected = np.polyval(np.polyfit(np.array(known) / 100, values, order), 8.0)
    assert found[4] == pytest.approx(expected, rel=1e-6)
    assert found[4] != pytest.approx(exact[4], rel=1e-6)


def test_intervals_grow():
    assert [step for step in range(20) if step in computed_steps(1, 3, 1.5)] == [0, 1, 2, 3, 4, 7, 10, 15]
    model = unet()
    real = Polynomial(model)
    forecast(model, 3, 1.0, 1.5)
    run(model, torch.arange(1000, 0, -50))
    assert real.calls == [1000.0 - 50 * step for step in (0, 1, 2, 3, 4, 7, 10, 15)]
    assert Forecast(3, 1.0, 1.5).share(20) == 8 / 20
    assert sum(map(Forecast().runs, range(51))) == 15


def test_weights_are_those_of_the_polynomial():
    assert sum(weights([5.0, 3.0, 2.0], 0.5)) == pytest.approx(1)
    assert weights([5.0, 3.0], 1.0) == pytest.approx([-1.0, 2.0])
    assert weights([5.0], 1.0) == [1]


def test_another_generation_begins_afresh():
    model = unet()
    real = Polynomial(model)
    forecast(model, 2, 3, 1.0)
    first = run(model, torch.tensor([900, 800, 700, 600]))
    again = run(model, torch.tensor([900, 800, 700]))
    assert real.calls == [900.0, 800.0, 900.0, 800.0]
    assert first[:3] == again


def test_conditions_have_outputs_of_their_own():
    """Guidance in two calls at each step: each is forecast from itself."""
    model = unet()
    sample = noise(0, 1)
    texts = [prompt(0, 1), prompt(1, 1)]
    times = torch.arange(900, 0, -100)

    def generation(texts):
        with torch.no_grad():
            return [[model(sample, time, text).sample for text in texts] for time in times]

    forecast(model, 3, 2, 1.0)
    both = generation(texts)
    for which in range(2):
        catome.new_generation(model)
        alone = generation(texts[which : which + 1])
        for step, outputs in enumerate(both):
            assert torch.equal(outputs[which], alone[step][0])
    assert not torch.equal(both[4][0], both[4][1])


def test_forecasts_go_together_with_merged_keys_and_are_told():
    model = unet()
    catome.apply_patch(model, threshold=0.3, schedule=(0, 4), forecast=Forecast(3, 2, 1.0))
    found = run_real(model)
    summary = catome.summary(model)
    assert summary.forecasts == pytest.approx(4 / 10)  # steps 3, 5, 7 and 9
    assert 0 < summary.merged_share < 1
    assert_says(str(summary), "in 10 steps", " 40% ", "forecast")
    assert summary.attentions[0].calls == 6
    catome.apply_patch(model, threshold=0.3, schedule=(0, 4))
    merged = run_real(model)
    assert ForecastSteps.on(model) is None or catome.summary(model).forecasts == 0
    for step in (0, 1, 2, 4):
        assert torch.equal(found[step], merged[step])
    expected = 2 * merged[2] - merged[1]
    torch.testing.assert_close(found[3], expected)


def run_real(model):
    with torch.no_grad():
        return [model(noise(0, 1), time, prompt(0, 1)).sample for time in torch.arange(1000, 0, -100)]


def test_forecasts_stand_in_front_of_compiled_steps_and_both_come_off():
    model = unet()
    plain = run_real(model)
    catome.apply_patch(model, threshold=0.3, schedule=(0,), forecast=Forecast(3, 2, 1.0))
    expected = run_real(model)
    try:
        catome.compile_cached_steps(model, backend="eager")
        for output, other in zip(run_real(model), expected, strict=True):
            torch.testing.assert_close(output, other, atol=2e-5, rtol=1e-4)
        assert isinstance(model.forward.__self__, ForecastSteps)
        # of the ten steps, six run, and one of them is the checkpoint
        assert CompiledSteps.on(model).steps == 5
    finally:
        torch._dynamo.reset()
    catome.remove_patch(model)
    assert "forward" not in vars(model)
    assert not any(hooks_of(module, Hook) for module in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(run_real(model), plain, strict=True))


def test_where_gradients_are_wanted_the_model_runs():
    model = unet()
    real = Polynomial(model)
    forecast(model, 2, 5, 1.0)
    sample = torch.ones(1, 4, SIZE, SIZE, requires_grad=True)
    for time in TIMES[:6]:
        model(sample, time, prompt(0, 1))[0].sum().backward()
    assert len(real.calls) == 6


def test_a_pipeline_runs_the_model_less_often():
    pipe = sd()
    calls = []
    handle = pipe.unet.conv_in.register_forward_hook(lambda *_: calls.append(1))

    def image():
        calls.clear()
        latents = torch.randn(1, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
        return pipe("a", latents=latents, num_inference_steps=20, output_type="pt").images

    plain = image()
    assert len(calls) == 20
    catome.apply_patch(pipe, merge_attn=False, forecast=Forecast())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = image()
    assert len(calls) == sum(map(Forecast().runs, range(20))) == 11
    assert 20 < -10 * torch.log10((found - plain).square().mean()) < 100
    catome.remove_patch(pipe)
    assert torch.equal(image(), plain)
    handle.remove()


def test_outputs_of_any_form_are_combined():
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    a, b = torch.tensor([1.0]), torch.tensor([3.0])
    shares = [-1.0, 2.0]
    assert combined([a, b], shares).item() == 5
    assert (
        combined([UNet2DConditionOutput(sample=a), UNet2DConditionOutput(sample=b)], shares).sample.item()
        == 5
    )
    first, (second, third), fourth = combined([(a, [a, None], 7), (b, [b, None], 8)], shares)
    assert (first.item(), second.item(), third, fourth) == (5, 5, None, 8)
    # whole numbers are not extrapolated
    assert combined([torch.tensor([1]), torch.tensor([4])], shares).item() == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(order=-1), "order=-1 must be at least 0"),
        (dict(first=1), "first=1 must be at least 2"),
        (dict(first=2.5), "first=2.5 must be an integer"),
        (dict(interval=0.5), "interval=0.5 must be between 1"),
        (dict(growth=0.9), "growth=0.9 must be between 1"),
    ],
)
def test_forecasts_out_of_range_are_refused(given, said):
    with pytest.raises((ValueError, TypeError), match=said):
        Forecast(**given)


def test_a_configuration_wants_a_forecast_or_something_to_merge():
    with pytest.raises(TypeError, match=r"forecast=3 must be a catome\.Forecast"):
        catome.MergeConfig(forecast=3)
    with pytest.raises(ValueError, match=r"merge_attn=False.* at least one .*True.* or forecast"):
        catome.MergeConfig(merge_attn=False)
    assert catome.MergeConfig(merge_attn=False, forecast=Forecast()).forecast == Forecast()
