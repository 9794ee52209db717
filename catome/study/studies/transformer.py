"""Similarity, drift and the frontier once more, on a diffusion transformer beside a U-Net.

The U-Net's rows are those of the other chapters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import pandas as pd
from pydantic import model_validator

from catome import tiny
from catome.study import methods
from catome.study.measure import quality
from catome.study.measure.comparison import Comparison, compare
from catome.study.measure.drift import Drift, amount_name, drift_study, lag_curves
from catome.study.measure.similarity import Similarities, shares_above, similarity_study, variance_of_share
from catome.study.methods import Method
from catome.study.run.generate import is_pixart, load
from catome.study.run.parameters import (
    Cosines,
    Count,
    Distances,
    Flag,
    Setting,
    Share,
    Text,
    checked_by,
    names_among,
    parameters,
)
from catome.study.studies import curves
from catome.study.studies.jobs import Job, of_drift, of_images

NOTEBOOK = "10_a_transformer"

TOPMOST_OF_UNETS = 5
"""Blocks around the topmost self-attentions of Stable Diffusion 1 and 2, and of the embedded U-Net. Stable
Diffusion XL has 10, so `jobs` counts too few where more than 5 of its layers are asked for."""

KINDS = tuple(kind for kind in curves.kinds() if kind not in (*curves.OF_UNETS, *curves.OF_THE_PAPER[1:]))
"""The methods of `catome.study.studies.curves.kinds` that a transformer can have, which are those that need
no U-Net; the paper's with its own schedule only."""


Kinds = Annotated[list[str] | None, checked_by(names_among(lambda: KINDS))]
"""Names of `KINDS`; None for all."""

SHOWN = ("CA-ToMe", "merged keys", "ToDo", "forecast", "fewer steps")
"""Of which an image is shown, where they were tried: the setting in the middle."""


ALIKE_DB = 1.0
"""Controls whose mean PSNR on the U-Net differs by more do not change its images alike."""

TRANSFORMER, UNET = BOTH = ("transformer", "U-Net")


@parameters
class Parameters(Setting):
    """The parameters of this study: which models, which images, and what is merged.

    Attributes:
        model: "tiny-pixart" (the embedded transformer), a folder with a PixArt-Sigma pipeline, or a name on
            the Hub.
        beside: the model with a U-Net that it is compared with.
        thresholds: cosines whose merged shares are watched.
        ratio: the fixed share whose pairs are watched.
        curve_images: images for the comparison of methods, at most; they have a seed by which no setting was
            chosen.
        curve_kinds: methods to compare, by their names in `KINDS`; None for all of them.
        timed_images: that the methods are timed on, on each model.
        noises: controls: shares of the standard deviation of what the model gives, as
            `catome.study.methods.noise`.
        gentle: thresholds of merged keys beyond those that the comparison has.
        single_layers: how many layers of each model, evenly spaced, have their keys merged while no other one
            has.
        recompute: compute again what was recorded or kept.
    """

    model: Text = "tiny-pixart"
    beside: Text = "tiny"
    thresholds: Cosines = (0.7, 0.8, 0.9, 0.95)
    ratio: Share = 0.5
    curve_images: Count = 12
    curve_kinds: Kinds = None
    timed_images: Count = 4
    noises: Distances = (0.001, 0.01, 0.03)
    gentle: Cosines = (0.9, 0.95)
    single_layers: Count = 6
    recompute: Flag = False

    @model_validator(mode="after")
    def _are_of_two_kinds(self) -> Self:
        if self.model == "tiny" or (Path(self.model).is_dir() and not is_pixart(self.model)):
            raise ValueError(
                f"model={self.model!r} must have a transformer: 'tiny-pixart', a "
                "folder with a PixArt-Sigma pipeline, or the name of one on the Hub"
            )
        if self.beside == "tiny-pixart" or (Path(self.beside).is_dir() and is_pixart(self.beside)):
            raise ValueError(
                f"beside={self.beside!r} must have a U-Net: 'tiny', a folder "
                "with a Stable Diffusion pipeline, or the name of one on the Hub"
            )
        _ = self.of_unet  # what is wrong for the other model is said before the first one is loaded
        return self

    @property
    def of_unet(self) -> Setting:
        """The parameters of every study for the other model, in its own size."""
        return self.common(model=self.beside, height=None, width=None)

    def knobs(self, of: Setting) -> curves.Parameters:
        """The parameters of the comparison of methods on one of the two models; ``of`` says on which."""
        asked = list(KINDS if self.curve_kinds is None else self.curve_kinds)
        return curves.beside(
            of, self.curve_images, only=asked, recompute=self.recompute, timed_images=self.timed_images
        )


def controls(params: Parameters) -> dict[str, Method]:
    """The controls of merging on both models, by their names in a table: noise, and merged keys that merge
    less."""
    found = {f"noise of {share:.1%}": methods.noise(share) for share in params.noises}
    for threshold in params.gentle:
        found[f"merged keys, t = {threshold:g}"] = methods.merged_keys(
            threshold, schedule="EVEN_13", compare="keys"
        )
    return found


def one_by_one(params: Parameters, layers: int) -> dict[int, Method]:
    """Keys merged in one layer alone, by the layer: a few of so many, evenly spaced; the share is that of the
    watched pairs."""
    places = np.linspace(0, layers - 1, min(layers, params.single_layers)).round().astype(int)
    return {int(layer): methods.keys_in_layer(int(layer), params.ratio) for layer in places}


def _apart(x: float, y: float) -> float:
    """By how much two mean PSNR differ, in dB; infinite where one of them is, or both."""
    return abs(x - y) if np.isfinite(x) and np.isfinite(y) else float("inf")


def _ratio(part: np.ndarray, whole: np.ndarray) -> tuple[float, float, float]:
    """The mean of ``part`` over that of ``whole``, both ``[images]``, with its 95 % interval by bootstrap
    over the images: ``(ratio, low, high)``. Infinite values are left out."""
    images = np.random.default_rng(0).integers(len(part), size=(quality.RESAMPLES, len(part)))
    means = [np.ma.masked_invalid(values[images]).mean(-1).filled(np.nan) for values in (part, whole)]
    low, high = np.nanquantile(means[0] / means[1], [0.025, 0.975])
    ratio = np.ma.masked_invalid(part).mean() / np.ma.masked_invalid(whole).mean()
    return float(ratio), float(low), float(high)


def selectivity(model: str) -> list[float] | None:
    """exp(entropy)/N of each self-attention of an embedded model, as its card has it; None for other
    models."""
    folders = {"tiny": tiny.find_model, "tiny-pixart": tiny.find_transformer}
    if model not in folders:
        return None
    return json.loads((folders[model]() / "figures.json").read_text())["attention_exp_entropy_over_n"]


def jobs(params: Parameters) -> Iterator[Job]:
    """All generations of both models; those of the U-Net are in other chapters, too."""
    most = params.single_layers
    for place, (setting, layers) in enumerate(
        ((params, most), (params.of_unet, min(most, TOPMOST_OF_UNETS)))
    ):
        first, knobs = 4 * place + 1, params.knobs(setting)
        yield Job(first, "similarity", "unmerged, watched", setting, setting.batch_size, setting.calls)
        yield of_drift(first + 1, setting)
        yield from (replace(job, phase=first + 2) for job in curves.jobs(knobs))
        others = [*controls(params).values(), *one_by_one(params, layers).values()]
        yield from of_images(first + 3, knobs, [method.label for method in others])


def run(params: Parameters, pipe, **kept) -> Result:
    """Watch both models unmerged, and generate by all methods.

    Args:
        params: which.
        pipe: an unpatched pipeline with a transformer.
        kept: ``folder`` and ``recorded`` as in `catome.study.compare`.
    """
    asked = {TRANSFORMER: (params, pipe), UNET: (params.of_unet, load(params.of_unet))}
    found = {name: _of_model(params, setting, own, **kept) for name, (setting, own) in asked.items()}
    return Result(params, found)


def _of_model(params: Parameters, setting: Setting, pipe, **kept) -> OfModel:
    seen = similarity_study(pipe, setting, recompute=params.recompute, **kept)
    pairs = drift_study(pipe, setting, ratios=[params.ratio], recompute=params.recompute, **kept)
    knobs = params.knobs(setting)
    turned = curves.run(knobs, pipe, **kept)
    others = [*controls(params).values(), *one_by_one(params, len(seen.blocks)).values()]
    return OfModel(
        pipe, seen, pairs, turned, compare(pipe, knobs, others, recompute=params.recompute, **kept)
    )


def timed(result: Result, pipe, **kept) -> dict[str, pd.DataFrame]:
    """Rows of `catome.study.measure.turns.TURNS`, by model; the pipelines are those that ``result`` was made
    with."""
    return {name: curves.timed(of.curves, of.pipe, **kept) for name, of in result.models.items()}


@dataclass(frozen=True)
class OfModel:
    """The results on one model.

    Attributes:
        pipe: the pipeline, unpatched.
        seen: best similarities of all src tokens.
        drift: distances between the pairs of all steps.
        curves: the methods, each over its own knob.
        controls: the rows of `controls` and of `one_by_one`.
    """

    pipe: object
    seen: Similarities
    drift: Drift
    curves: curves.Result
    controls: Comparison


@dataclass(frozen=True)
class Result:
    """The results of this study.

    Attributes:
        params: the parameters.
        models: what was found on each, by `TRANSFORMER` and `UNET`.
    """

    params: Parameters
    models: dict[str, OfModel]

    def shares(self) -> pd.DataFrame:
        """The share of all tokens that are as similar as a threshold to their best partner, by model: the
        mean, and the least and the largest of a layer.

        Similarity is that of what enters a layer. A U-Net merges by it with `catome.PAPER`; a transformer, by
        its keys."""
        columns = {}
        for name in self.models:
            by_layer = self._shares_of_layers(name)
            columns[name] = [
                f"{row.mean():.0%} ({row.min():.0%} to {row.max():.0%})" for _, row in by_layer.iterrows()
            ]
        return pd.DataFrame(columns, index=[f"t = {t:g}" for t in self.merged_at])

    def _shares_of_layers(self, model: str) -> pd.DataFrame:
        """The mean share above each threshold (rows, the highest first) in each layer (columns)."""
        shares = shares_above(self.models[model].seen, self.params.thresholds)
        return shares.groupby(["threshold", "block"])["share"].mean().unstack().loc[self.merged_at]

    @property
    def merged_at(self) -> list[float]:
        """The thresholds, each once, the highest first."""
        return sorted(set(self.params.thresholds), reverse=True)

    def variance(self) -> pd.DataFrame:
        """Of the variance of the merged share, the parts that go by the step and by the image, for each
        threshold and model."""
        columns = {}
        for name, of in self.models.items():
            parts = variance_of_share(shares_above(of.seen, self.params.thresholds)).loc[self.merged_at]
            for part in ("step", "image"):
                columns[name, part] = [
                    f"{value:.0%}" if np.isfinite(value) else "nothing varies" for value in parts[part]
                ]
        return pd.DataFrame(columns, index=[f"t = {t:g}" for t in self.merged_at])

    @property
    def amount(self) -> str:
        """The name of the fixed share."""
        return amount_name(ratio=self.params.ratio)

    def ages(self) -> pd.DataFrame:
        """The mean Jaccard distance of steps so far apart, on each model, to be read."""
        return pd.DataFrame({name: of.drift.ages(self.amount) for name, of in self.models.items()}).T

    def lags(self) -> dict[str, np.ndarray]:
        """The mean distance of steps k apart, ``[images, T - 1]``, by model."""
        return {name: lag_curves(of.drift.rows) for name, of in self.models.items()}

    def drifts(self) -> str:
        """On which model the pairs of neighbouring steps differ less, as a sentence; `expected` has by how
        much."""
        sign, *_ = self._minus_unet({name: curves[:, 0] for name, curves in self.lags().items()}, 3)
        longer = {-1: TRANSFORMER, 1: UNET}.get(sign)
        return (
            f"So pairs can be reused for longer on the {longer}."
            if longer
            else "So it is not shown that pairs can be reused for longer on either."
        )

    def expected(self) -> str:
        """On which model merging should cost less, by what the paper argues with: similar tokens, and pairs
        that last. In sentences, with the differences of the two."""
        shares = {name: self._shares_of_images(name) for name in BOTH}
        near = {name: curves[:, 0] for name, curves in self.lags().items()}
        similar, more, of_shares = self._minus_unet(shares, 2)
        apart, moved, of_distances = self._minus_unet(near, 3)
        first, second = {1: TRANSFORMER, -1: UNET}.get(similar), {-1: TRANSFORMER, 1: UNET}.get(apart)
        if not first and not second:
            said = "Neither measure tells the two models apart."
        elif first == second:
            said = f"By both measures, merging should cost less on the {first}."
        else:
            by = [
                f"merging should cost less on the {model}" if model else "nothing is decided"
                for model in (first, second)
            ]
            said = f"By the first measure {by[0]}, by the second {by[1]}."
        said += (
            f" From the U-Net to the transformer, the share of similar tokens changes by {more}, and the "
            f"distance of neighbouring steps by {moved}, over {len(shares[UNET])} images."
        )
        if not of_shares:
            return said
        return f"{said} For other prompts these intervals are {of_shares} and {of_distances}."

    def _minus_unet(self, values: dict[str, np.ndarray], digits: int) -> tuple[int, str, str]:
        """``(sign, words, others)`` of the transformer's values ``[images]`` minus the U-Net's, on the same
        seeds and prompts: the sign is 0 where the interval holds zero, the words have the mean with its
        interval, and ``others`` is the interval for other prompts, empty where nothing can be said of
        them."""
        difference = values[TRANSFORMER] - values[UNET]
        mean, low, high = quality.mean_interval(difference)
        rows = self.models[TRANSFORMER].drift.rows.drop_duplicates("image").sort_values("image")
        _, least, most = quality.over_classes(difference, rows["class"].to_numpy())
        others = ""
        if np.isfinite(least) and not quality.one_of_each(rows["class"]):
            others = f"[{least:+.{digits}f}, {most:+.{digits}f}]"
        return int(low > 0) - int(high < 0), quality.spoken((mean, low, high), digits), others

    def _shares_of_images(self, model: str) -> np.ndarray:
        """The share of all tokens above the thresholds, mean over thresholds, steps and layers, by image."""
        shares = shares_above(self.models[model].seen, self.params.thresholds)
        return shares.groupby("image")["share"].mean().sort_index().to_numpy()

    def records(self, clocks: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
        """`catome.study.studies.curves.Result.records` of each model, with ``distance``, that of the
        features; ``clocks`` of `timed`."""
        found = {}
        for name, of in self.models.items():
            away = [
                float(of.curves.made.of(method)["feature_distance"].mean())
                for some in of.curves.kinds.values()
                for method in some.values()
            ]
            found[name] = of.curves.records(clocks[name]).assign(distance=away)
        return found

    def compared(self, records: dict[str, pd.DataFrame]) -> pd.DataFrame:
        """PSNR, the share of images below `catome.study.measure.quality.POOR_DB`, the distance of features,
        the work that is left and the speed-up of every setting on both models, to be read."""
        columns = {}
        for name, rows in records.items():
            columns[name, "PSNR (dB)"] = quality.with_interval(rows, "PSNR", 1).to_list()
            columns[name, f"below {quality.POOR_DB} dB"] = [f"{value:.0%}" for value in rows["poor"]]
            columns[name, "feature distance"] = [f"{value:.2f}" for value in rows["distance"]]
            columns[name, "work left"] = [f"{value:.2f}" for value in rows["flops"]]
            columns[name, "speed-up"] = [f"{value:.2f}" for value in rows["speed-up"]]
        first = next(iter(records.values()))
        return pd.DataFrame(
            columns, index=pd.MultiIndex.from_frame(first[["kind", "setting"]], names=[None, None])
        )

    def held_against(self) -> pd.DataFrame:
        """PSNR of the controls on both models, and the share of the tokens that was merged, to be read."""
        columns = {}
        for name, of in self.models.items():
            summary = of.controls.summary().loc[[method.label for method in controls(self.params).values()]]
            columns[name, "PSNR (dB)"] = quality.with_interval(summary, "PSNR", 1).to_list()
            columns[name, "merged"] = summary["share"].map("{:.2f}".format).replace("nan", "").to_list()
        return pd.DataFrame(columns, index=list(controls(self.params)))

    def layers(self) -> dict[str, pd.DataFrame]:
        """By model, PSNR where keys are merged in one layer alone, beside how selective its self-attention
        is, to be read."""
        found = {}
        for name, of in self.models.items():
            alone = one_by_one(self.params, len(of.seen.blocks))
            summary = of.controls.summary().loc[[method.label for method in alone.values()]]
            columns = {
                "PSNR (dB), merged in this layer alone": quality.with_interval(summary, "PSNR", 1).to_list()
            }
            spread = selectivity(of.curves.params.model)
            if spread is not None:
                columns["exp(entropy)/N of its attention"] = [f"{spread[layer]:.2f}" for layer in alone]
            found[name] = pd.DataFrame(columns, index=[of.seen.blocks[layer] for layer in alone])
        return found

    def psnr_of_layers(self, model: str) -> dict[int, float]:
        """Mean PSNR (dB) by the layer that alone is merged."""
        of = self.models[model]
        alone = one_by_one(self.params, len(of.seen.blocks))
        return {layer: float(of.controls.of(method)["psnr"].mean()) for layer, method in alone.items()}

    def by_selectivity(self) -> str:
        """Say in sentences whether layers lose more the fewer tokens their attention rests on, on each model
        of which that is known."""
        found, said = {}, []
        for name, model in zip(BOTH, (self.params.model, self.params.beside), strict=True):
            psnr, spread = self.psnr_of_layers(name), selectivity(model)
            if spread is None or len(psnr) < 3:
                continue
            agreement, chance = quality.rank_correlation(
                [spread[layer] for layer in psnr], list(psnr.values())
            )
            if np.isfinite(agreement):
                found[name] = agreement, chance
                over = f"the {name}'s {len(psnr)} layers"
                said.append(f"{agreement:.2f} over {over} ({quality.chance_words(chance)})")
        if not found:
            return "How selective these layers are is not known here."
        stays = quality.holm([chance for _, chance in found.values()])
        told = []
        for (name, (agreement, _)), stay in zip(found.items(), stays, strict=True):
            if stay:
                fewer = "fewer" if agreement > 0 else "more"
                told.append(f"on the {name}, layers that attend to {fewer} tokens lose more")
        neither = "neither is" if len(found) > 1 else "it is not"
        verdict = (
            f"what stays is that {quality.listed(told)}"
            if told
            else f"{neither} more than chance could do with so few layers"
        )
        return (
            f"The rank correlation of PSNR and exp(entropy)/N is {quality.listed(said)}, by permutations of "
            f"the layers. Tested at once (Holm's method), {verdict}."
        )

    def spread_of_layers(self, model: str) -> str:
        """exp(entropy)/N of each layer's self-attention of one of the two models, as it stands in a
        sentence."""
        spread = selectivity({TRANSFORMER: self.params.model, UNET: self.params.beside}[model])
        return "not known here" if spread is None else quality.listed([f"{value:.2f}" for value in spread])

    def _alike(self) -> tuple[str, str]:
        """A control by noise and one by merging, by their names in `controls`, that change the U-Net's images
        most nearly alike, by mean PSNR (`_apart`)."""
        of = self.models[UNET].controls
        psnr = {name: float(of.of(method)["psnr"].mean()) for name, method in controls(self.params).items()}
        noises = [name for name in psnr if name.startswith("noise")]
        pairs = [(noise, merged) for noise in noises for merged in psnr if merged not in noises]
        return min(pairs, key=lambda pair: _apart(psnr[pair[0]], psnr[pair[1]]))

    def sensitivity(self) -> str:
        """Say in sentences what two controls do to both models that change the U-Net's images most nearly
        alike (`_alike`), and what follows from it: `accounts`.

        The gap of a control is the U-Net's PSNR minus the transformer's on the same seed. Where no two
        controls come within `ALIKE_DB`, no gaps are compared."""
        alike, psnr = self._alike(), self._psnr_of_alike()
        if _apart(*(values.mean() for values in psnr[UNET])) > ALIKE_DB:
            return self.accounts()
        by_noise, by_merging = map(quality.difference, psnr[UNET], psnr[TRANSFORMER])
        left = {model: [f"{values.mean():.1f}" for values in both] for model, both in psnr.items()}
        found = quality.mean_interval(by_merging)
        said = (
            f"Two controls change the U-Net's images most nearly alike: {alike[0]} leaves {left[UNET][0]} dB "
            f"there, and {alike[1]} leaves {left[UNET][1]} dB. On the transformer they leave "
            f"{left[TRANSFORMER][0]} and {left[TRANSFORMER][1]} dB. These are gaps of "
            f"{quality.spoken(quality.mean_interval(by_noise))} and {quality.spoken(found)} dB, over "
            f"{len(by_noise)} images. "
        )
        merging = controls(self.params)[alike[1]]
        shares = {name: of.controls.share_of_image(merging)[1] for name, of in self.models.items()}
        said += (
            f"On average, {alike[1]} merges {shares[TRANSFORMER]:.0%} of the tokens on the transformer and "
            f"{shares[UNET]:.0%} on the U-Net. "
        )
        return said + self.accounts()

    def _psnr_of_alike(self) -> dict[str, list[np.ndarray]]:
        """By model, the PSNR ``[images]`` (dB) with each of the two controls of `_alike`."""
        ways = [controls(self.params)[name] for name in self._alike()]
        return {
            model: [self.models[model].controls.of(way)["psnr"].to_numpy(float) for way in ways]
            for model in BOTH
        }

    def accounts(self) -> str:
        """Say in sentences how much of what merging costs the transformer more than the U-Net comes with
        noise as well, by the gaps of `sensitivity`. The interval of their ratio is by bootstrap over the
        images."""
        psnr = self._psnr_of_alike()
        if _apart(*(values.mean() for values in psnr[UNET])) > ALIKE_DB:
            return (
                "No control by noise and none by merging change the U-Net's images alike, within "
                f"{ALIKE_DB:g} dB, so nothing is said of the two gaps."
            )
        by_noise, by_merging = map(quality.difference, psnr[UNET], psnr[TRANSFORMER])
        mean, least, _ = quality.mean_interval(by_merging)
        if not np.isfinite(mean):  # merging changed none of the images of one model
            return "The two gaps cannot be compared."
        if not least > 0:
            return "It is not shown that merging costs more on the transformer."
        share, low, high = _ratio(by_noise, by_merging)
        said = (
            f"The gap by noise is {share:.0%} of the gap by merging, with a 95 % interval of {low:.0%} to "
            f"{high:.0%}. "
        )
        if low > 1:
            accounts = "accounts for all of the loss"
        elif high < 1:
            accounts = f"accounts for at most {high:.0%} of the loss, and " + (
                f"for at least {low:.0%}" if low > 0 else "not detectably for any of it"
            )
        elif low > 0:
            accounts = f"accounts for at least {low:.0%} of the loss, and perhaps for all of it"
        else:
            accounts = "may account for none of the loss, or for all of it"
        return said + f"So what noise shows of the model's own sensitivity {accounts}."

    def agreement(self, records: dict[str, pd.DataFrame]) -> float:
        """Spearman's rank correlation of the settings' PSNR on the two models; NaN for fewer than three
        settings."""
        both = [rows["PSNR"].to_numpy(float) for rows in records.values()]
        return quality.rank_correlation(*both)[0] if len(both[0]) > 2 else float("nan")

    def farther(self, records: dict[str, pd.DataFrame]) -> str:
        """In how many settings the transformer's images are farther from the unmerged ones than the U-Net's:
        ``20 of 24``."""
        own, other = (records[name]["PSNR"].to_numpy(float) for name in BOTH)
        return f"{(own < other).sum()} of {len(own)}"

    def gaps(self) -> dict[tuple[str, str], np.ndarray]:
        """PSNR on the U-Net minus that on the transformer for every ``(kind, setting)`` that both have, in
        dB, by image. Both have the same seeds and prompts."""
        found = {}
        own, other = (self.models[name].curves for name in BOTH)
        for kind, some in own.kinds.items():
            for setting in some:
                if setting in other.kinds.get(kind, {}):
                    both = (
                        of.made.of(of.kinds[kind][setting])["psnr"].to_numpy(float) for of in (other, own)
                    )
                    found[kind, setting] = quality.difference(*both)
        return found

    @property
    def _classes(self) -> np.ndarray:
        """The class of each image of `gaps`."""
        return self.models[TRANSFORMER].curves.made.classes

    def gap_table(self) -> pd.DataFrame:
        """`gaps` to be read; the verdict says on which model an image is closer to the unmerged one."""
        closer = {"better": "closer on the U-Net", "worse": "closer on the transformer"}
        return quality.difference_table(self.gaps(), "gap (dB)", self._classes, **closer)

    def farther_told(self) -> str:
        """In how many of the settings of `gaps` the interval and Holm's method tell the two models apart, in
        how many of these it would be found with other prompts, and how large a gap is excluded in the others,
        as sentences."""
        gaps, classes = self.gaps(), self._classes
        stays, holds = quality.held_over_classes(gaps, classes)
        ends = {name: quality.mean_interval(values)[1:] for name, values in gaps.items()}
        farther = [name for name in stays if ends[name][0] > 0]
        said = (
            f"With all {len(gaps)} settings tested at once (Holm's method), this is detectable in "
            f"{len(farther)} of them."
            if len(gaps) > 1
            else f"In the one setting here this is {'' if farther else 'not '}detectable."
        )
        if farther and len(set(classes)) > 1:
            count = sum(name in holds for name in farther)
            each = quality.one_of_each(classes)
            said += f" {quality.ONE_OF_EACH if each else quality.held_words(len(farther), count)}"
        others = [high for name, (_, high) in ends.items() if name not in farther]
        if others:
            said += (
                " Where it is not detectable, the intervals exclude that the transformer's image is farther "
                f"by more than {max(others):.1f} dB."
            )
        return said

    def psnr_of(self, records: dict[str, pd.DataFrame], kind: str, setting: str) -> dict[str, str]:
        """PSNR (dB) of one setting on each model, with its interval; "not tried" where the parameters left it
        out."""
        found = {}
        for name, rows in records.items():
            row = rows[(rows["kind"] == kind) & (rows["setting"] == setting)]
            found[name] = quality.with_interval(row, "PSNR", 1).iloc[0] if len(row) else "not tried"
        return found

    def words(self, records: dict[str, pd.DataFrame]) -> dict[str, str]:
        """The numbers that the chapter's text takes up, by their names there, with _ for -; ``records`` of
        `records`."""
        own = records[TRANSFORMER]
        curve = self.models[TRANSFORMER].curves
        at = self.merged_at[min(1, len(self.merged_at) - 1)]
        agreement = self.agreement(records)
        fewer = f"{methods.kept_steps(0.75, self.params.steps)} steps"
        named = {
            "paper": ("CA-ToMe", "t = 0.9"),
            "keys": ("merged keys", "t = 0.8"),
            "fewer": ("fewer steps", fewer),
        }
        psnr = {}
        for name, (kind, setting) in named.items():
            found = self.psnr_of(records, kind, setting)
            psnr[f"{name}_transformer"], psnr[f"{name}_unet"] = found[TRANSFORMER], found[UNET]
        return psnr | {
            "images": str(self.params.images),
            "curve_images": str(curve.params.images),
            "settings": str(len(own)),
            "farther": self.farther(records),
            "farther_told": self.farther_told(),
            "needed": quality.power_words(self.gaps().values()),
            "sensitivity": self.sensitivity(),
            "accounts": self.accounts(),
            "by_selectivity": self.by_selectivity(),
            "spread_transformer": self.spread_of_layers(TRANSFORMER),
            "spread_unet": self.spread_of_layers(UNET),
            "tokens": f"{self.models[TRANSFORMER].seen.tokens:,}",
            "ratio": f"{self.params.ratio:g}",
            "drifts": self.drifts(),
            "expected": self.expected(),
            "share_at": f"{at:g}",
            "share_transformer": f"{self._shares_of_layers(TRANSFORMER).loc[at].mean():.0%}",
            "share_unet": f"{self._shares_of_layers(UNET).loc[at].mean():.0%}",
            "layers": str(len(self.models[TRANSFORMER].seen.blocks)),
            "next_transformer": f"{self.models[TRANSFORMER].drift.by_lag(self.amount)[1]:.2f}",
            "next_unet": f"{self.models[UNET].drift.by_lag(self.amount)[1]:.2f}",
            "agreement": "none to speak of with so few settings"
            if np.isnan(agreement)
            else f"{agreement:.2f}",
            "best_in_time": curve.best(own, "best in time"),
            "best_in_work": curve.best(own, "best in work"),
            "papers_place": curve.place_of(own, "CA-ToMe"),
            "own_place": curve.place_of(own, "merged keys"),
            "curve_resamples": f"{quality.DRAWS:,}",
        }

    def shown(self) -> dict[str, Method]:
        """The methods whose images of the transformer are shown, by their titles; the first is no merging."""
        tried = self.models[TRANSFORMER].curves.kinds
        found = {"unmerged": methods.unmerged()}
        for kind in SHOWN:
            if some := tried.get(kind):
                setting = list(some)[len(some) // 2]
                found[f"{kind},\n{setting}"] = some[setting]
        return found
