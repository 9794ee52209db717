"""The figures to touch: what their scripts compute is what the library computes, by mouse, keyboard and
touch."""

import re

import numpy as np
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock

import catome
from catome.policy.schedule import derive
from catome.study.costs import accounting
from catome.study.measure.drift import mean_staleness
from catome.study.plots import interactive
from helpers import rendered

GRID = (8, 8)
CHANNELS = 16
READY = "document.querySelector('figure').dataset.ready"


@pytest.fixture
def shown(browser, tmp_path):
    """``shown(html, **context)`` -> a browser's page with the figure on it, from a file, with no error and no
    request."""
    faults, contexts = [], []

    def show(figure, **context):
        file = tmp_path / "page.html"
        head = "<!doctype html><html lang='en'><meta charset='utf-8'><title>A figure</title><body><main>"
        file.write_text(f"{head}<h1>A figure</h1>{figure.data}</main></body></html>")
        contexts.append(browser.new_context(viewport={"width": 700, "height": 900}, **context))
        page = contexts[-1].new_page()
        rendered.watch(page, faults)
        page.goto(file.as_uri())
        page.wait_for_function(READY)
        return page

    yield show
    for context in contexts:
        context.close()
    assert faults == []


def numbers(page) -> list[float]:
    """The numbers that the figure says that it has computed, once it has."""
    page.wait_for_function(READY)
    return [float(word) for word in page.evaluate(READY).split()]


def set_to(page, name: str, value) -> None:
    page.evaluate(
        "([name, value]) => { const input = document.querySelector(`[data-part=${name}]`); "
        "input.value = value; input.dispatchEvent(new Event('input')); }",
        [name, str(value)],
    )


# ---- merge it yourself


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    return BasicTransformerBlock(CHANNELS, num_attention_heads=4, attention_head_dim=4).requires_grad_(False)


@pytest.fixture(scope="module")
def frames():
    """Tokens of two scenes at two steps: smooth ones, many of which are alike."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for scene in ("lake", "street"):
        coarse = torch.randn(2, CHANNELS, 3, 3, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, GRID, mode="bilinear")
        noisy = smooth + 0.15 * torch.randn(smooth.shape, generator=generator)
        found[scene] = dict(zip(("step 0", "step 9"), noisy.flatten(2).mT, strict=True))
    return found


def merging(frames, block, **given):
    images = {scene: np.full((16, 16, 3), 0.5) for scene in frames}
    return interactive.merging(frames, images, GRID, block, **given)


def expected(tokens, block, amount, window, keep, weigh) -> list[float]:
    """The merged share, the scores left and the relative change of what the attention adds, by the
    library."""
    packed = interactive.quantised
    x = interactive.restored(packed(tokens))[None]
    attention = block.attn1
    query, key, value, out = (
        interactive.restored(packed(layer.weight.T))
        for layer in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0])
    )
    plan = catome.match(x, GRID, stride=(window, window), **amount)
    normed = block.norm1(x)
    means = plan.merge(normed)[None]  # packed: the tokens left of the one image

    def attend(queries, keys, bias=None):
        heads = [
            part.unflatten(-1, (4, 4)).transpose(1, 2) for part in (queries @ query, keys @ key, keys @ value)
        ]
        found = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=bias)
        return found.transpose(1, 2).flatten(2) @ out

    bias = plan.sizes.log()[:, None, None, :] if weigh else None
    whole = attend(normed, normed)
    merged = attend(normed, means, bias) if keep else plan.unmerge(attend(means, means, bias)[0])
    left = means.shape[1]
    scores = (x.shape[1] if keep else left) * left / x.shape[1] ** 2
    return [plan.merged_share.item(), scores, ((merged - whole).norm() / whole.norm()).item()]


@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("amount", [{"threshold": 0.9}, {"threshold": 0.5}, {"ratio": 0.4}])
@pytest.mark.parametrize("window", [2, 4])
def test_the_page_merges_as_the_library_does(shown, frames, block, amount, window, keep, weigh):
    page = shown(merging(frames, block))
    page.select_option("[data-part=scene]", "street")
    page.select_option("[data-part=step]", "step 0")
    page.select_option("[data-part=window]", str(window))
    by = "threshold" if "threshold" in amount else "share"
    page.select_option("[data-part=by]", by)
    page.set_checked("[data-part=keep]", keep)
    page.set_checked("[data-part=weigh]", weigh)
    set_to(page, by, next(iter(amount.values())))
    found = expected(frames["street"]["step 0"], block, amount, window, keep, weigh)
    assert 0.05 < found[0] < 0.95
    assert numbers(page) == pytest.approx(found, abs=2e-4)


def test_nothing_merged_changes_nothing(shown, frames, block):
    page = shown(merging(frames, block, threshold=1))
    assert numbers(page) == [0, 1, 0]
    assert "0.0 % of the tokens are merged" in page.inner_text("[data-part=says]")


def test_merging_goes_by_the_keyboard(shown, frames, block):
    page = shown(merging(frames, block, threshold=0.9))
    before = numbers(page)
    page.focus("[data-part=threshold]")
    page.keyboard.press("Home")
    assert numbers(page)[0] > before[0]
    page.focus("[data-part=groups]")
    place = re.compile(r"row (\d+), column (\d+)")
    row, column = map(int, place.search(page.get_attribute("[data-part=groups]", "aria-label")).groups())
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    assert place.search(page.get_attribute("[data-part=groups]", "aria-label")).groups() == (
        str(row - 1),
        str(column + 1),
    )


@pytest.mark.parametrize("touch", [False, True])
def test_a_token_is_chosen_by_mouse_and_by_touch(shown, frames, block, touch):
    page = shown(merging(frames, block), has_touch=touch)
    area = page.locator("[data-part=groups]").bounding_box()
    corner = {"x": area["width"] * 0.95, "y": area["height"] * 0.05}
    canvas = page.locator("[data-part=groups]")
    if touch:
        canvas.tap(position=corner)
    else:
        canvas.hover(position=corner)
    assert f"row 1, column {GRID[1]}" in canvas.get_attribute("aria-label")


def test_buttons_set_known_methods_and_the_curve_is_drawn(shown, frames, block):
    page = shown(merging(frames, block))
    for name, preset in interactive.PRESETS.items():
        page.get_by_role("button", name=name).click()
        assert numbers(page)
        assert page.is_checked("[data-part=keep]") == preset["keep"]
        assert page.is_checked("[data-part=weigh]") == preset["weigh"]
        assert float(page.input_value(f"[data-part={preset['by']}]")) == preset["amount"]
        assert page.get_by_role("button", name=name).get_attribute("aria-pressed") == "true"
    page.click("[data-part=sweep]")
    # queries kept, groups weighted
    page.wait_for_function("document.querySelector('figure').dataset.swept === '3'")
    drawn = [dot.get_attribute("fill") for dot in page.locator("[data-part=trace] circle").all()]
    colours = list(interactive.WAYS.values())
    assert drawn.count(colours[3]) >= 21
    assert drawn.count(colours[0]) == 1  # the button CA-ToMe; dots of a fixed share went with it


def test_a_model_too_large_for_a_page_is_refused(block):
    large = torch.zeros(4096, 320)
    with pytest.raises(ValueError, match=r"4096 tokens of 320 channels .*at most 131072"):
        interactive.merging({"lake": {"step 0": large}}, {"lake": np.zeros((8, 8, 3))}, (64, 64), block)


# ---- design a schedule

CALLS = 20


@pytest.fixture
def designer():
    steps = np.arange(CALLS)
    away = np.abs(steps[:, None] - steps)
    staleness = 1 - np.exp(-0.1 * away * (1 + (steps > 15)))
    known = {"RIVAL": (0, 2, 9, 18), "early": (0, 1, 2, 40)}
    quality, time = {"intercept": 30.0, "slope": -4.0, "spread": 0.5}, {"fixed": 0.8, "each": 0.01}
    amounts = {"t = 0.7": staleness, "t = 0.9": staleness**2}
    each = {
        name: {name: of for name in amounts}
        for name, of in (("known", known), ("quality", quality), ("time", time))
    }
    return amounts, interactive.scheduling(
        amounts, each["known"], each["quality"], each["time"], rival="RIVAL"
    )


def steps_of(page) -> list[int]:
    return [int(word) for word in page.inner_text("[data-part=steps]").split(",")]


def check_schedule(page, staleness, steps) -> None:
    assert steps_of(page) == list(steps)
    count, stale, least = numbers(page)
    whole = (staleness * 255).round() / 255  # a page carries eight bits
    assert count == len(steps)
    assert stale == pytest.approx(mean_staleness(whole, steps), abs=1e-5)
    assert least == pytest.approx(mean_staleness(whole, derive(whole, len(steps))), abs=1e-5)


def test_a_schedule_by_the_keyboard(shown, designer):
    amounts, figure = designer
    page = shown(figure)
    check_schedule(page, amounts["t = 0.7"], (0, 6, 13))
    page.focus("[data-part=timeline]")
    page.keyboard.press("ArrowRight")  # from step 1 to 2
    page.keyboard.press("Space")
    check_schedule(page, amounts["t = 0.7"], (0, 2, 6, 13))
    page.keyboard.press("Shift+ArrowRight")
    check_schedule(page, amounts["t = 0.7"], (0, 3, 6, 13))
    assert "Step 3: a checkpoint" in page.get_attribute("[data-part=timeline]", "aria-label")
    page.keyboard.press("Enter")
    check_schedule(page, amounts["t = 0.7"], (0, 6, 13))
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")  # the first step keeps its checkpoint
    check_schedule(page, amounts["t = 0.7"], (0, 6, 13))
    page.select_option("[data-part=amount]", "t = 0.9")
    check_schedule(page, amounts["t = 0.9"], (0, 6, 13))


def place(page, step: int) -> dict:
    """The place of a step on the timeline."""
    area = page.locator("[data-part=timeline]").bounding_box()
    x = 40 + (step + 0.5) * (640 - 48) / CALLS
    return {"x": area["width"] * x / 640, "y": area["height"] * 130 / 182}


def test_a_schedule_by_the_mouse(shown, designer):
    amounts, figure = designer
    page = shown(figure)
    timeline = page.locator("[data-part=timeline]")
    timeline.click(position=place(page, 10))
    check_schedule(page, amounts["t = 0.7"], (0, 6, 10, 13))
    timeline.click(position=place(page, 6))
    check_schedule(page, amounts["t = 0.7"], (0, 10, 13))
    area, start, end = timeline.bounding_box(), place(page, 13), place(page, 17)
    page.mouse.move(area["x"] + start["x"], area["y"] + start["y"])
    page.mouse.down()
    page.mouse.move(area["x"] + end["x"], area["y"] + end["y"], steps=8)
    page.mouse.up()
    check_schedule(page, amounts["t = 0.7"], (0, 10, 17))


def test_a_schedule_by_touch(shown, designer):
    amounts, figure = designer
    page = shown(figure, has_touch=True)
    page.locator("[data-part=timeline]").tap(position=place(page, 4))
    check_schedule(page, amounts["t = 0.7"], (0, 4, 6, 13))


def test_known_even_and_best_schedules(shown, designer):
    amounts, figure = designer
    staleness = amounts["t = 0.7"]
    page = shown(figure)
    page.select_option("[data-part=known]", "early")  # whose last step this generation does not have
    check_schedule(page, staleness, (0, 1, 2))
    page.click("[data-part=even]")
    check_schedule(page, staleness, (0, 7, 13))
    page.select_option("[data-part=known]", "RIVAL")
    assert "You have beaten it" not in page.inner_text("[data-part=says]")
    page.click("[data-part=best]")
    whole = (staleness * 255).round() / 255
    check_schedule(page, staleness, derive(whole, 4))
    assert "You have beaten it" in page.inner_text("[data-part=says]")
    stale = mean_staleness(whole, derive(whole, 4))
    quality = 30 - 4 * stale
    assert f"{quality - 1:.1f} to {quality + 1:.1f} dB" in page.inner_text("[data-part=says]")
    assert "0.84 of the unmerged one" in page.inner_text("[data-part=says]")
    page.click("[data-part=clear]")
    check_schedule(page, staleness, (0,))


# ---- where the time goes


def test_the_roofline_of_the_page_is_that_of_the_accounting(shown, monkeypatch):
    monkeypatch.setattr(accounting, "TITLES", {"sd15": "SD v1.5", "sd21": "SD v2.1"})
    page = shown(interactive.where_time_goes(sizes=(256, 512), shares=(0.0, 0.5), match_every=4.0))
    device = ("Tesla V100S", "float32")
    bounds = accounting.speedup_bounds("sd15", [512], [0.5], [device], match_every=4.0).set_index("attention")
    page.select_option("[data-part=device]", ", ".join(device))
    for attention in ("naive", "fused"):
        page.select_option("[data-part=attention]", attention)
        taken, free, charged, limit = numbers(page)
        assert free == pytest.approx(bounds.at[attention, "free"], rel=2e-3)
        assert charged == pytest.approx(bounds.at[attention, "charged"], rel=2e-3)
        assert limit == pytest.approx(1 / (1 - taken))
        assert limit > free
    page.focus("[data-part=size]")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("[data-part=size-value]") == "256 px"
    assert numbers(page)[0] < taken
    page.focus("[data-part=share]")
    page.keyboard.press("Home")
    assert numbers(page)[1:3] == [1, 1]
    page.select_option("[data-part=model]", "SD v2.1")  # which is there in float16 alone
    assert page.input_value("[data-part=device]").endswith("float16")


# ---- a blind test


def test_a_blind_test_counts_right_answers(shown):
    rng = np.random.default_rng(0)
    plain = {f"scene {i}": rng.random((32, 32, 3)) for i in range(5)}
    made = {
        name: {scene: image * by for scene, image in plain.items()}
        for name, by in (("faint", 0.9), ("strong", 0.5))
    }
    page = shown(interactive.blind_test(plain, made, rounds=4))
    unmerged = {interactive.picture(image, quality=95) for image in plain.values()}
    seen = set()
    for turn in range(4):
        first = page.get_attribute("[data-part=a]", "src")
        second = page.get_attribute("[data-part=b]", "src")
        truth = "a" if first in unmerged else "b"
        assert {first in unmerged, second in unmerged} == {True, False}
        seen.add(first if truth == "a" else second)
        answer = "neither" if turn == 3 else truth if turn else "ab"[truth == "a"]
        page.click(f"[data-answer={answer}]")
        verdict = ["Wrong", "Right", "Right", "You saw no difference"][turn]
        assert verdict in page.inner_text("[data-part=says]")
        assert page.is_disabled("[data-answer=a]")
        page.keyboard.press("Enter")  # the next button has the focus
    assert len(seen) == 4  # every scene once
    assert page.evaluate(READY) == "score 2 3"
    table = [
        [cell.inner_text() for cell in row.query_selector_all("th, td")]
        for row in page.query_selector_all("tbody tr")
    ]
    assert [row[0] for row in table] == ["faint", "strong"]
    assert [row[1] for row in table] == ["2", "2"]
    assert sum(int(row[2]) for row in table) == 2
    page.keyboard.press("Enter")
    assert page.evaluate(READY) == "ask 0"


# ---- the animation


@pytest.mark.parametrize(("way", "results"), [("tome", 4), ("keys", 16)])
def test_the_animation_goes_by_hand(shown, way, results):
    page = shown(interactive.animation())
    assert page.evaluate(READY) == "tome 50"
    page.select_option("[data-part=way]", way)
    page.focus("[data-part=moment]")
    page.keyboard.press("Home")
    assert page.evaluate(READY) == f"{way} 0"
    assert page.inner_text("[data-part=says]").startswith("Sixteen tokens")
    page.keyboard.press("End")
    assert page.inner_text("[data-part=says]").startswith("Add")
    rings = page.locator("[data-part=stage] circle[fill=none]").all()
    assert len(rings) == 16
    # copies of four, or one for each token
    assert len({ring.get_attribute("stroke") for ring in rings}) == results


def test_the_animation_plays_and_stops(shown):
    page = shown(interactive.animation(moment=95))
    page.click("[data-part=play]")
    assert page.inner_text("[data-part=play]") == "pause"
    page.wait_for_function(f"{READY} === 'tome 100'")
    assert page.inner_text("[data-part=play]") == "play"  # it stops at the end
    page.click("[data-part=play]")  # and begins anew
    page.wait_for_function("document.querySelector('[data-part=moment]').valueAsNumber > 1")
    page.click("[data-part=play]")
    stopped = page.evaluate(READY)
    assert float(stopped.split()[1]) < 90
    page.wait_for_timeout(400)
    assert page.evaluate(READY) == stopped


# ---- all of them


def figures(frames, block, designer):
    picture = {"lake": np.zeros((32, 32, 3))}
    return {
        "merge": merging(frames, block),
        "schedule": designer[1],
        "time": interactive.where_time_goes(sizes=(256,), shares=(0.0, 0.5)),
        "animation": interactive.animation(),
        "blind": interactive.blind_test(picture, {"ToMe": {"lake": np.ones((32, 32, 3))}}),
    }


@pytest.mark.parametrize("kind", ["merge", "schedule", "time", "blind", "animation"])
def test_everyone_can_use_them(shown, frames, block, designer, monkeypatch, kind):
    monkeypatch.setattr(accounting, "TITLES", {"sd21": "SD v2.1"})
    page = shown(figures(frames, block, designer)[kind])
    assert rendered.accessibility_faults(page) == []
    for width in (390, 1366):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
