"""Chapters 1 and 2, the page about the embedded model and the front page: their numbers, their words, and
what they draw."""

import ast
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

import catome
from catome.study.bench import attention_times
from catome.study.measure import pairs, quality, reconstruction, similarity
from catome.study.measure.similarity import Similarities, shares_above
from catome.study.plots import interactive, review_figures
from catome.study.run.store import CHECKOUT
from helpers.sentences import assert_says

PAIRS = torch.tensor([[1, 0], [5, 10], [8, 0], [4, 3]])
"""On a grid of four columns: side by side in one window; diagonal, into another one; two rows apart; from a
row's beginning to the end of the row above."""


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    plt.close("all")


# ---- pairs


def test_distances_are_those_of_the_grid():
    assert pairs.distances(PAIRS, 4).tolist() == pytest.approx([1, 2**0.5, 2, 10**0.5])
    assert pairs.leave_window(PAIRS, 4).tolist() == [False, True, True, True]


def test_what_is_said_of_pairs():
    words = pairs.words(PAIRS, 4)
    assert set(words) == {"distances", "leaving"}
    assert_says(words["distances"], "median", "1.4 tokens", " 75%", "within two", "farthest 3 ")
    assert words["leaving"] == "75%"


def test_where_nothing_is_merged_nothing_is_said_of_distances():
    none = torch.empty(0, 2, dtype=torch.int64)
    assert pairs.distances(none, 4).shape == pairs.leave_window(none, 4).shape == (0,)
    words = pairs.words(none, 4)
    assert set(words) == {"distances", "leaving"}
    assert_says(words["distances"], "Nothing is merged", "no pairs")
    assert words["leaving"] == "none"


def test_picking_blindly_among_the_nearest_leaves_the_window_as_often_as_the_chapter_says():
    size = 8
    src, dst = catome.tensors.matching.split_tokens((size, size))
    # whole windows
    inner = [one for one in src.tolist() if all(1 < place < size - 2 for place in divmod(one, size))]
    leaving = []
    for one in inner:
        all_dst = torch.stack([torch.full_like(dst, one), dst], 1)
        apart = pairs.distances(all_dst, size)
        leaving.append(pairs.leave_window(all_dst[apart == apart.min()], size).float().mean())
    assert f"{torch.stack(leaving).mean():.0%}" == "58%"
    assert "58 % of the pairs would leave their window" in re.sub(r"\s+", " ", markdown("01_tome_review"))


# ---- the time of an attention


def clocked(seconds):
    """A clock by which a call takes what ``seconds`` says of the tokens that it returns."""
    return lambda run, times: seconds(run().shape[1])


def test_an_attention_is_timed_on_fewer_tokens():
    outliers = iter([100.0] + [0.0] * 99)  # a median does not mind
    clock = clocked(lambda length: length**2 / 1e6 + next(outliers))
    times = attention_times.timed(
        torch.nn.Identity(), torch.zeros(2, 64, 3), shares=(0, 0.5, 0.75), rounds=9, clock=clock
    )
    assert times["tokens"].tolist() == [64, 32, 16]
    assert times["comparisons"].tolist() == [1, 1 / 4, 1 / 16]
    assert times["seconds"].tolist() == pytest.approx([0.004096, 0.001024, 0.000256])
    table = attention_times.readable(times, "cpu")
    assert table.loc["r = 0.5"].tolist() == ["32", "25%", "25%", "1.0"]
    assert table.columns[-1] == "ms on cpu"
    words = attention_times.words(times, torch.device("cpu"), rounds=9)
    assert words == {"rounds": "9", "device": "cpu", "torch": torch.__version__, "milliseconds": "4.1"}


def test_times_are_relative_to_the_longest_wherever_it_stands():
    clock = clocked(lambda length: length / 1e3)
    times = attention_times.timed(
        torch.nn.Identity(), torch.zeros(1, 8, 3), shares=(0.5, 0.0), rounds=2, clock=clock
    )
    assert attention_times.readable(times, "cpu")["measured time of self-attention"].tolist() == [
        "50%",
        "100%",
    ]
    assert attention_times.words(times, "cpu")["milliseconds"] == "8.0"


def test_an_attention_that_fails_is_no_row_that_is_missing():
    def fails(tokens):
        raise RuntimeError("no such size")

    with pytest.raises(RuntimeError, match="no such size"):
        attention_times.timed(fails, torch.zeros(1, 4, 1), rounds=1)


# ---- similarities


def seen(steps: int = 8, images: int = 3) -> Similarities:
    """Two blocks, three src tokens of four. Block 0 grows from 0.5 by 0.05 a step, block 1 falls from 0.9;
    image i is lower by i / 100 and its last src token by 0.1."""
    step, image = np.arange(steps)[:, None, None, None], np.arange(images)[None, None, :, None]
    best = np.array([0.5, 0.9])[None, :, None, None] + 0.05 * step * np.array([1, -1])[None, :, None, None]
    best = best - image / 100 - np.array([0, 0, 0.1])[None, None, None, :]
    return Similarities(best.astype(np.float32), 4, ["down 0", "up 0"], ["desert"] * images, {})


def test_what_was_seen_is_counted():
    table = seen().counts()
    assert table.loc["3 images"].tolist() == [8, 2, 3, 4, "144"]
    assert seen(images=1).counts().index.tolist() == ["1 image"]


def test_the_first_and_the_last_quarter_of_the_steps():
    table = seen(steps=12).by_block()
    fall = 0.01 + 0.1 / 3  # of the mean over images and src tokens
    assert table.loc["down 0"].tolist() == pytest.approx([0.5 - fall, 1.05 - fall, 0.55 - fall, 1.0 - fall])
    assert table.loc["up 0"].tolist() == pytest.approx([0.9 - fall, 0.35 - fall, 0.85 - fall, 0.4 - fall])
    assert similarity.earlier_more_similar(table) == "1 of 2 blocks (up 0)"
    assert similarity.earlier_more_similar(table.loc[["down 0"]]) == "none of the blocks"
    assert similarity.earlier_more_similar(table.loc[["up 0", "up 0"]]) == "2 of 2 blocks (up 0, up 0)"


def test_both_quarters_are_compared_image_by_image():
    table = seen(steps=12, images=8).by_block_table()
    assert table.loc["down 0", "first step"] == "0.43"
    assert table.loc["down 0", "first - last quarter"] == "-0.45 [-0.45, -0.45]"  # nine steps of 0.05
    assert table.loc["up 0", "first - last quarter"] == "+0.45 [+0.45, +0.45]"
    assert table["after Holm"].tolist() == ["more similar late", "more similar early"]
    # three images cannot show it
    assert set(seen(steps=12).by_block_table()["after Holm"]) == {quality.UNTOLD}
    assert set(seen(steps=1).by_block_table()["after Holm"]) == {quality.UNTOLD}


def test_how_many_images_the_quarters_need():
    watched = seen(steps=12, images=4)
    watched.best[:3, 0] += np.array([0, 0.1, 0, 0.1])[:, None]
    most = quality.images_needed(watched.quarters()["down 0"], 0.01)
    assert most == quality.images_needed([0, 0.1, 0, 0.1], 0.01)
    assert_says(similarity.needed(watched), "0.01", f"need 2 to {most} images", "there are 4.")
    assert "nobody can say" in similarity.needed(seen(images=1))


def striped(strengths) -> np.ndarray:
    """Images with columns that are so much brighter than those beside them."""
    images = np.zeros((len(strengths), 4, 4, 3))
    images[:, :, ::2] = np.asarray(strengths)[:, None, None, None]
    return images


def test_neighbouring_pixels_differ_little_in_a_calm_image():
    """Pixels beside each other differ by the strength, and those above each other are equal."""
    assert similarity.roughness(striped([0.0, 0.4, 1.0])) == pytest.approx([0.0, 0.2, 0.5])
    assert similarity.roughness(striped([0.4]).swapaxes(1, 2)) == pytest.approx([0.2])


BY_TWO, BY_THREE = ([f"class {i // each}" for i in range(12)] for each in (2, 3))


@pytest.mark.parametrize(
    ("share", "classes", "said"),
    [
        (
            -np.arange(12),
            BY_TWO,
            (
                "Calm images have",
                "At t = 0.9",
                "-1.00 over 12 images (p < 0.001)",
                "-1.00 over the means of 6 classes (p = 0.003)",  # 2 of 720 orders
            ),
        ),
        (np.arange(12), BY_TWO, ("Busy images have", "+1.00 over 12 images", "+1.00 over the means")),
        # with four classes, no order is rarer than 2 of 24
        (np.arange(12), BY_THREE, ("Busy images of these", "not dec", "+1.00 over the means", "(p = 0.083)")),
        # the last two classes have changed places
        (
            -np.array([0, 1, 2, 3, 4, 5, 9, 10, 11, 6, 7, 8]),
            BY_THREE,
            (
                "Calm images of these classes",
                "not dec",
                "over 12 images",
                "-0.80 over the means",
                "p = 0.333",
            ),
        ),
        # the means of all classes are equal
        (
            -np.tile([0, 3, 1, 2], 3),
            [f"class {i // 4}" for i in range(12)],
            ("Whether calm images",),
        ),
        (np.arange(12) % 2, BY_THREE, ("Whether calm images", "not decided", "over 12 images")),
        (-np.arange(12), ["the same"] * 12, ("Calm images have", "-1.00 over 12 images (p < 0.001).")),
        (np.zeros(12), BY_THREE, ("cannot tell",)),
        ([1, 0], ["a", "b"], ("cannot tell",)),
    ],
)
def test_whether_calm_images_have_more_to_merge(share, classes, said):
    """Images are the busier the later they come."""
    own = {"threshold": 0.9, "image": range(len(share)), "share": 0.5 + np.asarray(share) / 100}
    other = {"threshold": 0.7, "image": range(len(share)), "share": 0.5}
    table = pd.concat([pd.DataFrame(one | {"class": classes}) for one in (own, other)])
    images = striped(np.linspace(0.1, 1, len(share)))
    found = similarity.calm(table if len(set(share)) > 1 else table[table["threshold"] == 0.9], images)
    assert_says(found, *said)
    assert "nan" not in found
    if len(share) == 12 and len(set(share)) == 12:
        assert "over 6 images" in similarity.calm(table, images[:6])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_quarter_of_few_steps_is_one_step(steps):
    table = seen(steps).by_block()
    assert (table["first quarter"] == table["first step"]).all()
    assert (table["last quarter"] == table["last step"]).all()
    assert similarity.earlier_more_similar(table) == (
        "none of the blocks" if steps == 1 else "1 of 2 blocks (up 0)"
    )


def shares(
    step: float, image: float, threshold: float = 0.7, steps: int = 3, images: int = 4
) -> pd.DataFrame:
    """Shares that grow by so much from step to step and from image to image."""
    rows = [
        {"threshold": threshold, "step": s, "block": "up 0", "image": i, "share": 0.1 + s * step + i * image}
        for s in range(steps)
        for i in range(images)
    ]
    return pd.DataFrame(rows)


STEP, IMAGE = shares(0.1, 0.01), shares(0.01, 0.1, threshold=0.9)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (STEP, ("step decides more", "at t = 0.7.")),
        (pd.concat([STEP, shares(0.1, 0.0, 0.8)]), ("step decides more", "at every threshold")),
        (IMAGE, ("image decides more", "at t = 0.9.")),
        (pd.concat([IMAGE, shares(0.0, 0.1, 0.8)]), ("image decides more", "at every threshold")),
        (pd.concat([STEP, IMAGE]), ("step decides more", "at t = 0.7 only")),
        (
            pd.concat([STEP, shares(0.1, 0.01, 0.8), IMAGE]),
            ("step decides more", "at t = 0.7 and t = 0.8 only"),
        ),
        (pd.concat([IMAGE, shares(0.5, 0.5, 0.95, 2, 2)]), ("step decides more", "at no threshold")),
        (pd.concat([STEP, shares(0.0, 0.0, 0.99)]), ("step decides more", "at t = 0.7.")),
        (shares(0.0, 0.0), ("not vary", "any threshold")),
        (shares(0.1, 0.1, images=1), ("single image", "step decides all")),
        (shares(0.1, 0.1, steps=1), ("single step", "image decides all")),
        (shares(0.1, 0.1, steps=1, images=1), ("not vary", "any threshold")),
    ],
)
def test_what_decides_about_the_share(table, said):
    assert_says(similarity.deciding(table), *said)


@pytest.mark.parametrize("slope", [0.1, 0.07, 1 / 3])
def test_a_part_that_rounding_leaves_is_not_below_zero(slope):
    parts = similarity.variance_of_share(shares(slope, 0.0, images=1, steps=7))
    assert parts.map("{:.0%}".format).loc[0.7].tolist() == ["100%", "0%", "0%"]


def test_the_threshold_that_adapts_most_and_its_extreme_images():
    table = pd.concat([STEP, IMAGE])
    assert similarity.most_adaptive(table) == 0.9
    few, *_, most = similarity.extremes(table, 0.9).items()
    assert few == (0, pytest.approx(0.11))
    assert most == (3, pytest.approx(0.41))
    assert similarity.extremes(table, 0.9).index.tolist() == [0, 2, 3]
    assert similarity.extremes(shares(0.1, -0.01, images=2), 0.7).index.tolist() == [1, 0]
    one = shares(0.1, 0.1, images=1)
    assert similarity.most_adaptive(pd.concat([one, shares(0.1, 0.1, 0.9, images=1)])) == 0.7
    assert similarity.extremes(one, 0.7).tolist() == pytest.approx([0.2])


def test_the_words_of_chapter_2():
    watched = seen()
    words = similarity.words(watched, shares_above(watched, [0.6, 0.95]), 0.5)
    assert words == {
        "lowest": "0.46",
        "lowest_block": "down 0",
        "lowest_step": "0",
        "highest": "0.86",
        "highest_block": "up 0",
        "highest_step": "0",
        "earlier": "1 of 2 blocks (up 0)",
        "needed": words["needed"],
        "deciding": words["deciding"],
        "fixed_share": "0.5",
        "weakest_low": "0.48",  # image 2 at step 0 of block 0: the second best of three
        "weakest_high": "0.90",
        "share_low": "0%",
        "share_high": "75%",
        "adaptive": "0.6",
    }
    assert words["deciding"].endswith("at t = 0.6.")  # nothing reaches 0.95
    assert_says(words["needed"], "need 2 images", "there are 3.")  # all images differ alike


# ---- what a VAE keeps


class Vae:
    """Its latents are the images; decoding makes them brighter by ``light`` of 255."""

    def __init__(self, light: float = 0):
        self.light = light

    def encode(self, x):
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=x))

    def decode(self, latents):
        return SimpleNamespace(sample=latents + self.light / 127.5)


def test_images_go_through_the_latents_and_back():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    np.testing.assert_array_equal(reconstruction.reconstructed(Vae(), images), images)
    brighter = reconstruction.reconstructed(Vae(20), images)
    assert brighter.dtype == np.uint8
    np.testing.assert_array_equal(brighter, np.minimum(images.astype(int) + 20, 255))


def test_the_hardest_class_is_the_one_that_is_farthest_off():
    scenes = {name: np.full((3, 4, 4, 3), 100, np.uint8) for name in ("desert", "city at night")}
    restored = {
        name: scenes[name][:2] + np.uint8(off) for name, off in (("desert", 51), ("city at night", 5))
    }
    words = reconstruction.words(scenes, restored)
    far, near = (20 * np.log10(255 / off) for off in (51, 5))
    assert words == {
        "decibels": f"{(far + near) / 2:.1f}",
        "hardest": "desert",
        "hardest_decibels": f"{far:.1f}",
    }


# ---- figures


IMAGE_OF_GREY = np.full((8, 8, 3), 0.5, np.float32)
TOKENS = torch.randn(2, 16, 5, generator=torch.Generator().manual_seed(0))


def titles(figure) -> list[str]:
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


def test_how_close_an_image_is_in_words():
    assert review_figures.closeness(IMAGE_OF_GREY, IMAGE_OF_GREY) == "unchanged"
    assert review_figures.closeness(IMAGE_OF_GREY + 0.1, IMAGE_OF_GREY) == "20.0 dB"
    assert review_figures.closeness(IMAGE_OF_GREY + 0.1, IMAGE_OF_GREY, 0) == "20 dB"


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 8), (0.75, 12), (0.0, 1)])
def test_a_fixed_share_stands_at_the_weakest_pair_that_it_merges(ratio, count):
    matches = catome.best_matches(TOKENS, (4, 4))
    figure = review_figures.best_similarity(IMAGE_OF_GREY, "desert", matches, 1, ratio, 0.9)
    lines = {line.get_label(): line.get_xdata()[0] for line in figure.axes[2].lines}
    weakest = sorted(matches.similarity[1].tolist())[-count]
    assert lines == {"t = 0.9": 0.9, f"r = {ratio:g}": pytest.approx(weakest)}
    assert titles(figure)[:2] == ["desert", "best similarity"]


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 8), (0.0, 0)])
def test_pairs_are_drawn_with_the_similarity_that_they_have(ratio, count):
    matches = catome.best_matches(TOKENS, (4, 4))
    merged = catome.make_plan(matches, ratio=ratio).pairs(1)
    figure = review_figures.pairs_and_distances(IMAGE_OF_GREY, matches, 1, merged, most=5)
    assert titles(figure)[0] == f"{min(count, 5)} of {count} pairs"
    assert sum(bar.get_height() for bar in figure.axes[1].patches) == count
    lines = next(c for c in figure.axes[0].collections if hasattr(c, "get_segments"))
    of_src = dict(zip(matches.src.tolist(), matches.similarity[1].tolist(), strict=True))
    for (start, _), value in zip(lines.get_segments(), lines.get_array(), strict=True):
        x, y = (4 * start).astype(int)
        assert value == pytest.approx(of_src[4 * y + x])
    assert len(figure.axes) == (3 if count else 2)  # no pairs, no scale of their colours


def test_a_page_says_when_it_cannot_compute(monkeypatch):
    monkeypatch.setattr(interactive, "merging", lambda *arguments: arguments)
    frames = {"desert": {"step 0": torch.zeros(4, 3)}}
    assert review_figures.merging_by_hand(frames, {}, (2, 2), None) == (frames, {}, (2, 2), None)
    monkeypatch.setattr(interactive, "MOST_NUMBERS", 11)
    assert "cannot compute as many" in review_figures.merging_by_hand(frames, {}, (2, 2), None).data


def test_growing_shares_are_compared_with_the_first():
    images = {"unmerged": IMAGE_OF_GREY, "r = 0.25": IMAGE_OF_GREY, "r = 0.5": IMAGE_OF_GREY + 0.1}
    figure = review_figures.growing_shares(images)
    assert titles(figure) == ["unmerged", "r = 0.25", "r = 0.5", "unchanged", "20.0 dB"]


@pytest.mark.parametrize("count", [1, 3])
def test_images_with_their_shares(count):
    found = pd.Series({7: 0.1, 2: 0.25, 0: 0.5}).iloc[:count]
    names = [f"class {i}" for i in range(8)]
    figure = review_figures.least_and_most(np.stack([IMAGE_OF_GREY] * 8), names, found, 0.9)
    assert (
        titles(figure)
        == ["class 7: 10% at t = 0.9", "class 2: 25% at t = 0.9", "class 0: 50% at t = 0.9"][:count]
    )


def test_two_classes_stand_beside_each_other():
    image = np.zeros((4, 4, 3), np.uint8)
    figure = review_figures.rows_of_scenes({"a": [image] * 2, "b": [image] * 2, "c": [image]}, 2)
    assert titles(figure) == ["a", "c", "b"]
    assert figure.axes[0].images[0].get_array().shape == (4, 8, 3)
    assert not figure.axes[3].axison


def test_the_front_page_writes_every_time_into_its_bar():
    matches = catome.best_matches(TOKENS, (4, 4))
    merged = SimpleNamespace(plan=catome.make_plan(matches, ratio=0.5), step=7, matches=matches)
    once = float("nan"), float("nan")
    times = {"all tokens": (1.0, 1.0, 1.0), "t = 0.9": (1.25, 1.1, 1.42), "t = 0.7": (0.6, *once)}
    figure = review_figures.cover(IMAGE_OF_GREY, IMAGE_OF_GREY + 0.1, merged, times)
    assert titles(figure) == ["all tokens", "50% merged, step 7", "the result, 20 dB", "time for one image"]
    bars = figure.axes[3]
    assert [text.get_text() for text in bars.texts] == ["100%", "125%", "60%"]
    assert [label.get_text() for label in bars.get_yticklabels()] == list(times)
    assert [patch.get_width() for patch in bars.patches] == [1.0, 1.25, 0.6]
    (line,) = bars.lines  # an interval only where there is one
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1.1, 1.42], [1, 1])
    assert bars.get_xlim()[1] > 1.42


def test_the_front_page_says_every_time_with_its_interval():
    times = {"all tokens": (1.0, 1.0, 1.0), "t = 0.9": (0.94, 0.83, 1.07), "t = 0.7": (0.776, 0.644, 0.933)}
    said = review_figures.time_words(times)
    assert_says(said, "time with all tokens", " 94% [83%, 107%] at t = 0.9 and 78% [64%, 93%] at t = 0.7.")
    once = {name: (share, float("nan"), float("nan")) for name, (share, _, _) in times.items()}
    assert_says(review_figures.time_words(once), " 94% at t = 0.9 and 78% at t = 0.7.")


# ---- the text of the notebooks


GIVEN = {
    "of_pairs.words": pairs.words(PAIRS, 4),
    "attention_times.words": attention_times.words(pd.DataFrame({"tokens": [4], "seconds": [1.0]}), "cpu"),
    "similarity.words": similarity.words(seen(), shares_above(seen(), [0.6]), 0.5),
    "reconstruction.words": reconstruction.words(
        {"desert": np.zeros((1, 4, 4, 3), np.uint8)}, {"desert": np.ones((1, 4, 4, 3), np.uint8)}
    ),
}
"""By the name that the notebooks call it by."""

NOTEBOOKS = ["01_tome_review", "02_similarity_per_step", "embedded_model", "cover"]


def cells(name: str):
    return nbformat.read(CHECKOUT / f"notebooks/{name}.ipynb", 4).cells


def markdown(name: str) -> str:
    return "\n".join(cell.source for cell in cells(name) if cell.cell_type == "markdown")


def glued(name: str) -> list[str]:
    """The names of all words that a notebook gives to its text."""
    found = []
    for cell in cells(name):
        for call in ast.walk(ast.parse(cell.source if cell.cell_type == "code" else "")):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "figures.glue":
                assert {"remove-cell", "slide-skip"} <= set(cell.metadata.tags)
                for keyword in call.keywords:
                    found += [keyword.arg] if keyword.arg else GIVEN[ast.unparse(keyword.value.func)]
    return [one.replace("_", "-") for one in found]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_number_that_the_text_takes_up_is_given_to_it(name):
    taken = re.findall(r"\{glue:text\}`([\w-]+)`", markdown(name))
    assert sorted(set(taken)) == sorted(glued(name))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_are_short_and_build_no_sentences(name):
    for cell in cells(name):
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            assert len(cell.source.splitlines()) <= 15, cell.source
            assert "Markdown(" not in cell.source
