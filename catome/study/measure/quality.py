"""Measure how good images are: torch-fidelity's and scikit-image's metrics, with intervals, paired over
seeds."""

from __future__ import annotations

import hashlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import norm as normal
from scipy.stats import rankdata
from scipy.stats import t as students_t
from skimage.metrics import structural_similarity
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.utils import create_feature_extractor

from catome.tiny.features import LAYER, register
from catome.tiny.scenes import SIZE

INCEPTION = "inception-v3-compat"
INCEPTION_LAYER = "2048"


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as they are saved: rounded to 8 bits."""
    return (np.clip(images, 0, 1) * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class Extractor:
    """A torch-fidelity feature extractor with a name that says which world its numbers belong to.

    Attributes:
        label: "scene" for the embedded world's own network, "Inception" for the usual one.
        size: edge in pixels to which images are scaled first; None takes them as they are.
        name: the label and a digest of the network's weights; features are only comparable under one name.
    """

    label: str
    name: str
    net: torch.nn.Module
    device: str
    size: int | None = None

    @torch.no_grad()
    def __call__(self, images: np.ndarray, batch: int = 64) -> np.ndarray:
        """uint8 images ``[B, H, W, 3]`` to float32 features ``[B, F]``."""
        found = []
        for at in range(0, len(images), batch):
            part = (
                torch.from_numpy(np.ascontiguousarray(images[at : at + batch]))
                .permute(0, 3, 1, 2)
                .to(self.device)
            )
            if self.size is not None:
                scaled = F.interpolate(part.float(), (self.size, self.size), mode="bilinear", antialias=True)
                part = scaled.round().clamp(0, 255).to(torch.uint8)
            found.append(self.net(part)[0].float().cpu().numpy())
        return np.concatenate(found)


def extractor(embedded: bool, device: str = "cpu") -> Extractor:
    """The embedded world's extractor, or Inception (torch-fidelity's, from its cache or downloaded).

    Where Inception is to be had neither way, a warning says so and the embedded world's extractor takes its
    place, on images scaled to its size; its label says so wherever its numbers are shown."""
    if embedded:
        return _extractor("scene", register(), LAYER, device)
    try:
        return _extractor("Inception", INCEPTION, INCEPTION_LAYER, device)
    except OSError as error:
        warnings.warn(
            f"Inception's weights are neither at hand nor to be downloaded ({error}): "
            "distances are of the embedded world's extractor, which knows drawn scenes only",
            stacklevel=2,
        )
        return _extractor("scene, for want of Inception", register(), LAYER, device, SIZE)


@cache
def _extractor(label: str, name: str, layer: str, device: str, size: int | None = None) -> Extractor:
    net = create_feature_extractor(name, [layer], cuda=device.startswith("cuda"), verbose=False)
    digest = hashlib.sha256()
    for key, tensor in sorted(net.state_dict().items()):
        digest.update(key.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return Extractor(label, f"{label} {digest.hexdigest()[:12]}", net, device, size)


def let_extractors_go() -> None:
    """Free the memory of the extractors; they are made again when they are asked for."""
    _extractor.cache_clear()


def fid(features: np.ndarray, reference: np.ndarray | dict) -> float:
    """Fréchet distance of two sets of features ``[n, F]``, by torch-fidelity; lower is better.

    Args:
        features: of the generated images.
        reference: features, or what `fid_statistics` made of them.

    Returns:
        NaN for fewer than two images, which have no covariance.
    """
    if len(features) < 2:
        return float("nan")
    other = reference if isinstance(reference, dict) else fid_statistics(reference)
    return fid_statistics_to_metric(fid_statistics(features), other, verbose=False)[
        "frechet_inception_distance"
    ]


def fid_statistics(features: np.ndarray) -> dict:
    """Mean and covariance of features ``[n, F]``, float64."""
    return fid_features_to_statistics(torch.from_numpy(np.asarray(features, np.float64)))


def rank_words(features: np.ndarray) -> str:
    """A sentence on how many directions of their features ``[n, F]`` images span: a FID compares covariance
    matrices."""
    count, size = features.shape
    spans = "can span all of them" if count > size else f"span at most {count - 1} of them"
    return f"These features have {size:,} dimensions, and {count:,} images {spans}."


ENOUGH = 50
"""So many draws that change FID as much as merging did end `fid_chance`."""


def fid_chance(
    features: np.ndarray, plain: np.ndarray, reference: np.ndarray | dict, draws: int = 1999, seed: int = 0
) -> float:
    """Two-sided p-value of the change of FID, by a paired permutation test.

    If merging changed nothing, either image of a seed could as well have been the unmerged one. So the two
    are exchanged in randomly drawn seeds, and it is counted how often FID then changes by as much as it did.
    Such a p-value holds for any number of images.

    Args:
        features, plain: ``[n, F]`` of the same seeds.
        reference: features of real images, or what `fid_statistics` made of them.
        draws: at most so many. The observed change counts as one more draw, so the least p-value is
            ``1 / (draws + 1)``. After `ENOUGH` draws that change FID as much it is clear that the p-value is
            not small; then it is their share of the draws until then (Besag and Clifford 1991).
        seed: of the draws.

    Returns:
        NaN for fewer than two images.
    """
    count, size = features.shape
    if count < 2:
        return float("nan")
    real = reference if isinstance(reference, dict) else fid_statistics(reference)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    after, before, mean, covariance = (
        torch.from_numpy(np.asarray(one, np.float64)).to(device)
        for one in (features, plain, real["mu"], real["sigma"])
    )
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()  # root @ root.T is the covariance

    def distances(sets: torch.Tensor) -> torch.Tensor:
        """FID ``[S]`` of ``[S, n, F]``, less the trace of the reference's covariance, which all share."""
        middle = sets.mean(1, keepdim=True)
        apart = sets - middle
        # the trace of the square root of both covariances' product is a sum of singular values
        seen = apart @ root
        smaller = seen @ seen.mT if count < size else seen.mT @ seen
        shared = torch.linalg.eigvalsh(smaller).clamp(min=0).sqrt().sum(-1) / (count - 1) ** 0.5
        spread = apart.square().sum((1, 2)) / (count - 1)
        return (middle[:, 0] - mean).square().sum(-1) + spread - 2 * shared

    def change(exchanged: torch.Tensor) -> torch.Tensor:
        swap = exchanged[..., None].to(device)
        return distances(torch.where(swap, before, after)) - distances(torch.where(swap, after, before))

    observed = change(torch.zeros(1, count, dtype=torch.bool)).abs()
    # equal but for rounding: where nothing changed, and where all or none of the seeds are exchanged
    least = observed - 1e-7 * (before.var(0).sum() + covariance.trace())
    drawn = torch.rand(draws, count, generator=torch.Generator().manual_seed(seed)) < 0.5
    reached = 0
    for at in range(0, draws, step := max(1, min(100, 2**22 // (count * size)))):
        as_much = change(drawn[at : at + step]).abs() >= least
        if reached + int(as_much.sum()) >= ENOUGH:
            last = at + 1 + int((reached + as_much.cumsum(0) >= ENOUGH).nonzero()[0])
            return ENOUGH / last
        reached += int(as_much.sum())
    return (1 + reached) / (1 + draws)


def kid(features: np.ndarray, reference: np.ndarray, subset: int = 100, subsets: int = 50) -> float:
    """Kernel distance (polynomial MMD, unbiased) of two sets of features, by torch-fidelity; lower is
    better."""
    size = min(subset, len(features), len(reference))
    found = kid_features_to_metric(
        torch.from_numpy(np.asarray(features, np.float32)),
        torch.from_numpy(np.asarray(reference, np.float32)),
        kid_subsets=subsets,
        kid_subset_size=size,
        verbose=False,
    )
    return found["kernel_inception_distance_mean"]


def kid_change(
    features: np.ndarray, plain: np.ndarray, reference: np.ndarray, groups: int | Sequence[int] = 24
) -> tuple[float, float, float]:
    """``(change, low, high)``: how much farther features lie from a reference than the unmerged images'
    features do, by KID.

    Both distances are over all images at once, not over random subsets (Binkowski et al. 2018, equation 4),
    so that the interval has no noise of its own. The reference's distance from itself is the same in both,
    and cancels.

    Args:
        features, plain: ``[n, F]`` of the same seeds.
        reference: ``[m, F]``.
        groups: that `jackknife` leaves out in turn.
    """
    sets = [np.asarray(one, np.float64) for one in (features, plain)]
    real = np.asarray(reference, np.float64)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    within = [kernel(one, one) for one in sets]
    across = [kernel(one, real).mean(1) for one in sets]

    def distance(images: np.ndarray, own: np.ndarray, to_real: np.ndarray) -> float:
        pairs = own[np.ix_(images, images)]
        count = len(images)
        return (pairs.sum() - np.trace(pairs)) / (count * (count - 1)) - 2 * to_real[images].mean()

    def change(images: np.ndarray) -> float:
        after, before = (distance(images, own, to_real) for own, to_real in zip(within, across, strict=True))
        return after - before

    if len(features) < 2:
        return float("nan"), float("nan"), float("nan")
    return jackknife(change, np.arange(len(features)), groups=groups)


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each pair of uint8 images ``[B, H, W, 3]``; infinite for equal
    images."""
    error = ((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


def difference(x: Sequence[float], y: Sequence[float]) -> np.ndarray:
    """``x - y`` of a measure of the same images, ``[images]``.

    Where both are infinite, the image is unchanged in both cases, which is no difference."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(x) & np.isinf(y), 0.0, x - y)


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity of each pair of uint8 images ``[B, H, W, 3]``, by scikit-image with Gaussian
    weights."""
    options = dict(
        channel_axis=-1, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return np.array([structural_similarity(x, y, **options) for x, y in zip(a, b, strict=True)])


def jackknife(
    statistic: Callable[..., float], *samples: np.ndarray, groups: int | Sequence[int] = 24, seed: int = 0
) -> tuple[float, float, float]:
    """``(value, low, high)`` of ``statistic(*samples)``, with a 95 % interval from leaving out groups of
    images in turn.

    The interval is by Student's t with one degree of freedom fewer than there are groups: from few groups the
    standard error is itself known badly.

    For statistics such as FID that depend on how many *different* images there are: drawing images anew, with
    repetitions, would shift them by more than they vary.

    Args:
        statistic: of samples.
        samples: rows of images; several are paired, and lose the same images.
        groups: how many groups are drawn, or the group of each image. Images that come from several classes
            must be left out with one of each class: else the mixture changes, which moves the statistic by
            more than chance would.
        seed: of the drawn groups.

    Returns:
        NaN for the interval where there are fewer than four images, or fewer than two groups.

    Raises:
        ValueError: if samples have different numbers of images.
    """
    count = len(samples[0])
    if any(len(sample) != count for sample in samples):
        raise ValueError(f"samples of {[len(sample) for sample in samples]} images cannot be paired")
    value = float(statistic(*samples))
    if count < 4:
        return value, float("nan"), float("nan")
    if isinstance(groups, int):
        left_out = np.array_split(np.random.default_rng(seed).permutation(count), min(groups, count))
    else:
        of_image = np.asarray(groups)
        left_out = [np.flatnonzero(of_image == group) for group in np.unique(of_image)]
    if len(left_out) < 2:
        return value, float("nan"), float("nan")
    without = np.array(
        [statistic(*(np.delete(sample, out, axis=0) for sample in samples)) for out in left_out]
    )
    error = np.sqrt((len(without) - 1) / len(without) * ((without - without.mean()) ** 2).sum())
    reach = float(students_t.ppf(0.975, len(without) - 1) * error)
    return value, value - reach, value + reach


POOR_DB = 30
"""Below this PSNR an image has visibly changed."""


UNTOLD = "not told apart"
"""The verdict on a difference that may be chance."""


def verdict(low: float, high: float, better: str = "closer", worse: str = "farther") -> str:
    """The verdict of a difference's interval: a word for each side of zero, and `UNTOLD` where it holds
    zero."""
    if low > 0:
        return better
    return worse if high < 0 else UNTOLD


def is_best(closeness: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Mark methods that no other beats, by being at least as good in both and better in one: ``[..., M]``
    bool of two ``[..., M]``."""
    own_closeness, own_gain = closeness[..., :, None], gain[..., :, None]
    closeness, gain = closeness[..., None, :], gain[..., None, :]
    as_good = (closeness >= own_closeness) & (gain >= own_gain)
    better = (closeness > own_closeness) | (gain > own_gain)
    # nothing can be said of a method that was not measured
    unknown = np.isnan(own_closeness + own_gain)[..., 0]
    return ~(as_good & better).any(-1) & ~unknown


def unbeaten(closeness: np.ndarray, gain: np.ndarray, unmerged: float = 1.0) -> np.ndarray:
    """`is_best` where the unmerged pipeline competes, too.

    It changes no image, so it beats every method that changes one and gains no more than it does.

    Args:
        closeness: PSNR in dB, infinite where nothing is changed: ``[..., M]``.
        gain: the speed-up, or the share of the work that is left, negated: ``[..., M]``.
        unmerged: the gain of the unmerged pipeline: 1 of a speed-up, -1 of work.

    Returns:
        ``[..., M]`` bool; the unmerged pipeline itself is left out.
    """
    unchanged = np.full((*closeness.shape[:-1], 1), np.inf)
    closeness = np.concatenate([closeness, unchanged], -1)
    gain = np.concatenate([gain, np.full_like(unchanged, unmerged)], -1)
    return is_best(closeness, gain)[..., :-1]


DRAWS = 1000
"""Resamples of `share_unbeaten`."""

SURE = 0.5
"""Text that calls a method unbeaten names its share of resamples, too, where that is less than this."""


def by_chance(stays: float) -> str:
    """Say behind the name of an unbeaten method in what share of the resamples it is so, where that is less
    than `SURE`; else nothing."""
    return f" [in only {stays:.0%} of resamples]" if stays < SURE else ""


def share_unbeaten(psnr: np.ndarray, time_left: np.ndarray, seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """The share of bootstrap resamples in which each method is `unbeaten` in time: ``[M]``.

    Each resample has as many images as there are, drawn anew, and as many turns. All methods get the same
    ones, so the comparison stays paired. The speed-up in a resample is a geometric mean, as of
    `geometric_mean`.

    Args:
        psnr: of each image, in dB: ``[M, images]``. Infinite values are left out of a mean, as in
            `mean_interval`.
        time_left: the time of each turn over that of the unmerged generation in it: ``[M, turns]``.
        seed, draws: of the resamples.
    """
    rng = np.random.default_rng(seed)
    images = rng.integers(psnr.shape[1], size=(draws, psnr.shape[1]))
    turns = rng.integers(time_left.shape[1], size=(draws, time_left.shape[1]))
    # method by method: equal rows get equal means, to the last bit, and so beat each other in no resample
    closeness = np.stack([_finite_means(values[images]) for values in psnr], -1)
    gain = np.stack([np.exp(-np.log(left)[turns].mean(-1)) for left in time_left], -1)
    return unbeaten(closeness, gain).mean(0)


def _finite_means(values: np.ndarray) -> np.ndarray:
    """The mean ``[...]`` of the finite ones of ``[..., images]``; infinite where there are none."""
    finite = np.isfinite(values)
    count = finite.sum(-1)
    total = np.where(finite, values, 0).sum(-1)
    return np.divide(total, count, out=np.full(total.shape, np.inf), where=count > 0)


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, or ``a, b and c``; empty for none."""
    *most, last = names or [""]
    return f"{', '.join(most)} and {last}" if most else last


def with_interval(table: pd.DataFrame, column: str, digits: int = 2) -> pd.Series:
    """``12.34 [11.90, 12.80]``, with a no-break space within the brackets, from the columns ``X``, ``X low``
    and ``X high``.

    Infinite values are "unchanged", and NaN is nothing. Without an interval there are no brackets."""

    def words(row) -> str:
        if np.isinf(row[column]):
            return "unchanged"
        if np.isnan(row[column]):
            return ""
        low, high = (row[f"{column} {end}"] for end in ("low", "high"))
        if np.isnan(low) or np.isnan(high):
            return f"{row[column]:.{digits}f}"
        # an interval stays on one line
        return f"{row[column]:.{digits}f} [{low:.{digits}f},\u00a0{high:.{digits}f}]"

    return pd.Series([words(row) for _, row in table.iterrows()], index=table.index)


def bracketed(found: tuple[float, float, float], digits: int = 2) -> str:
    """A value with its interval, as it stands in a sentence: ``1.13 [0.92, 1.38]``; without brackets where
    the interval is NaN."""
    value, low, high = (f"{one:.{digits}f}" for one in found)
    return value if np.isnan(found[1]) or np.isnan(found[2]) else f"{value} [{low}, {high}]"


def spoken(found: tuple[float, float, float], digits: int = 1) -> str:
    """A difference with its interval, as it stands in a sentence or a table: ``+1.2 [+0.8, +1.6]``."""
    mean, low, high = (f"{value:+.{digits}f}" for value in found)
    return f"{mean} [{low}, {high}]"


def paired_table(
    rows: Mapping[Any, tuple[float, float, float]], column: str = "difference (dB)", **words: str
) -> pd.DataFrame:
    """Differences with their intervals as a table to be read.

    Args:
        rows: ``(mean, low, high)`` by name.
        column: name of the column of differences.
        words: of `verdict`.

    Returns:
        One row for each, with the difference and its 95 % interval as text, and the verdict.
    """
    shown = {
        name: {column: f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]", "verdict": verdict(low, high, **words)}
        for name, (mean, low, high) in rows.items()
    }
    return pd.DataFrame(shown).T


OVER_CLASSES = "for other prompts (dB)"
"""The column of `difference_table` with the interval of `over_classes`."""


def difference_table(
    differences: Mapping[Any, Sequence[float]],
    column: str = "difference (dB)",
    classes: Sequence[str] | None = None,
    **words: str,
) -> pd.DataFrame:
    """`paired_table` of differences seed by seed, with a column ``after Holm``: the verdict that stays when
    all rows are tested at once, by `holm` of their `mean_chance`.

    Args:
        differences: of each seed, by name.
        column, words: as in `paired_table`.
        classes: of the images, by number; with these, a column `OVER_CLASSES` has the interval of
            `over_classes`, unless `one_of_each` holds: then it would say the same again. Differences that
            are fewer are those of the first images.
    """
    if not differences:
        return pd.DataFrame(columns=[column, "verdict", "after Holm"])
    table = paired_table({name: mean_interval(found) for name, found in differences.items()}, column, **words)
    stays = holm([mean_chance(found) for found in differences.values()])
    table["after Holm"] = [
        said if stay else UNTOLD for said, stay in zip(table["verdict"], stays, strict=True)
    ]
    if classes is not None and not one_of_each(classes):
        over = [over_classes(found, classes[: len(found)]) for found in differences.values()]
        table[OVER_CLASSES] = ["" if np.isnan(low) else f"[{low:+.2f}, {high:+.2f}]" for _, low, high in over]
    return table


def held_over_classes(
    differences: Mapping[Any, Sequence[float]], classes: Sequence[str]
) -> tuple[list, list]:
    """``(stays, holds)``: the names of the differences whose verdict stays when all are tested at once, as in
    `difference_table`, and those of them whose interval of `over_classes` gives the same verdict.

    Args:
        differences: of each seed, by name.
        classes: of the images, by number.
    """
    stay = holm([mean_chance(found) for found in differences.values()])
    stays, holds = [], []
    for (name, found), stayed in zip(differences.items(), stay, strict=True):
        said = verdict(*mean_interval(found)[1:])
        if said == UNTOLD or not stayed:
            continue
        stays.append(name)
        if verdict(*over_classes(found, classes[: len(found)])[1:]) == said:
            holds.append(name)
    return stays, holds


def images_needed(
    differences: Sequence[float], effect: float = 1.0, power: float = 0.8, level: float = 0.05
) -> int:
    """The number of images that a paired comparison needs to tell a difference from chance.

    It is ``((z(1 - level / 2) + z(power)) * standard deviation / effect) ** 2``, by the normal approximation.

    Args:
        differences: of each seed, in dB; infinite ones are left out.
        effect: the true difference, in dB.
        power: the probability with which a study of so many images finds it.
        level: of the test, two-sided.

    Returns:
        At least 2; 0 where fewer than two differences are finite, so that their spread is not known.
    """
    values = np.asarray(differences, float)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return 0
    quantiles = normal.ppf(1 - level / 2) + normal.ppf(power)
    return max(2, math.ceil((quantiles * values.std(ddof=1) / effect) ** 2))


def within_classes(values: Sequence[float], classes: Sequence[str]) -> float:
    """The width of the interval of a mean if images were drawn within their classes, over its width as they
    are drawn from all images: a ratio of standard errors. NaN where a class has one image, or nothing
    varies."""
    values, classes = np.asarray(values, float), np.asarray(classes)
    groups = [values[classes == name] for name in dict.fromkeys(classes)]
    if min(map(len, groups), default=0) < 2 or not values.std():
        return float("nan")
    within = sum(len(group) * group.var(ddof=1) for group in groups)
    return float(np.sqrt(within / len(values)) / values.std(ddof=1))


def over_classes(
    values: Sequence[float], classes: Sequence[str], level: float = 0.95
) -> tuple[float, float, float]:
    """``(mean, low, high)`` of a difference for classes like these, rather than for images of these classes.

    The interval is Student's, of the means of the classes, and says whether the difference would be found
    with other prompts. Where classes have several images each, it is mostly wider than that of
    `mean_interval`. Infinite values are left out; NaN where fewer than two classes have any value.
    """
    values, classes = np.asarray(values, float), np.asarray(classes)
    finite = np.isfinite(values)
    values, classes = values[finite], classes[finite]
    means = np.array([values[classes == name].mean() for name in dict.fromkeys(classes)])
    if len(means) < 2:
        return float("nan"), float("nan"), float("nan")
    half = students_t.ppf((1 + level) / 2, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
    return float(means.mean()), float(means.mean() - half), float(means.mean() + half)


def other_prompts(
    values: Sequence[float], classes: Sequence[str], better: str = "closer", worse: str = "farther"
) -> str:
    """Say in a sentence what the interval of `over_classes` tells of a difference in dB, beside that of
    `mean_interval`: whether its verdict would hold for other prompts.

    Args:
        values: of each seed, in dB.
        classes: of the images, by number; where there are more, the first are taken.
        better, worse: as in `verdict`.
    """
    _, low, high = over_classes(values, classes[: len(values)])
    if one_of_each(classes[: len(values)]):
        return ONE_OF_EACH
    if np.isnan(low):
        return "With so few prompts nobody can say what others would give."
    here, there = (verdict(*ends, better, worse) for ends in (mean_interval(values)[1:], (low, high)))
    interval = f"([{low:+.2f}, {high:+.2f}] dB)"
    if there == UNTOLD:
        also = "nothing is decided, either" if here == UNTOLD else "this is not decided"
        return f"For other prompts like these {also} {interval}."
    if there == here:
        return f"This holds for other prompts like these, too {interval}."
    return f"For other prompts like these the verdict is '{there}' {interval}."


def one_of_each(classes: Sequence[str]) -> bool:
    """True if no two images have one class: then the interval of their mean is already one over classes."""
    return len(set(classes)) == len(classes)


ONE_OF_EACH = "Each image has a prompt of its own, so the intervals are over prompts already."
"""Said instead of `over_classes` where `one_of_each` holds."""


def held_words(stays: int, holds: int) -> str:
    """Say in a sentence how many of the detected differences would be found with other prompts."""
    if not stays:
        return "No difference is detected."
    also = ", too" if holds else ""
    if stays == 1:
        return f"The one difference detected {'holds' if holds else 'does not hold'} for other prompts{also}."
    many = {0: "none holds", 1: "one holds", stays: "all hold"}.get(holds, f"{holds} hold")
    return f"Of the {stays} differences detected, {many} for other prompts{also}."


def power_words(differences: Iterable[Sequence[float]], effect: float = 1.0) -> str:
    """`images_needed` of several comparisons, beside the images that there are, as a sentence."""
    given = [np.asarray(one, float) for one in differences]
    needed = [images for one in given if (images := images_needed(one, effect))]
    if not needed:
        return "With so few images nobody can say how many would be enough."
    least, most = min(needed), max(needed)
    span = f"{least:,}" if least == most else f"from {least:,} to {most:,}"
    fewest, largest = min(map(len, given)), max(map(len, given))
    there = f"{fewest:,}" if fewest == largest else f"from {fewest:,} to {largest:,}"
    return (
        f"To find a difference of {effect:g} dB in four studies out of five, these comparisons need "
        f"{span} images, depending on how much their differences vary from seed to seed; there are {there}."
    )


def chance_words(chance: float) -> str:
    """A p-value as it stands in a sentence: ``p = 0.012``, or ``p < 0.001``."""
    return f"p = {chance:.3f}" if chance >= 0.001 else "p < 0.001"


def holm(chances: Sequence[float], level: float = 0.05) -> list[bool]:
    """Mark those of several p-values that tell something when all are looked at.

    By Holm's method (1979) the chance that any one of them does so wrongly is at most ``level``. NaN tells
    nothing."""
    stays = [False] * len(chances)
    for place, at in enumerate(np.argsort(chances)):
        if not chances[at] <= level / (len(chances) - place):
            break
        stays[at] = True
    return stays


RESAMPLES = 2000
"""Drawn by the bootstrap of `mean_interval`."""

ALL_SIGNS = 14
"""Of so many values, `mean_chance` tries every choice of signs."""

SIGNS = 9999
"""Choices of signs that are drawn for more values. The least p-value is 1 / (SIGNS + 1)."""


def mean_chance(values: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value of a mean being zero, by a paired permutation test.

    If two methods do not differ, each seed's difference might as well have the other sign. The p-value is the
    share of choices of signs whose mean lies as far from zero as the observed one. Of at most `ALL_SIGNS`
    values every choice is tried, so that the p-value is exact. Of more, `SIGNS` choices are drawn, and the
    observed one counts as one more. A bootstrap, as in `mean_interval`, finds too much in a dozen values.

    Infinite values are left out, unless all are infinite: then their signs count. NaN if any value is NaN.
    """
    values = np.asarray(values, float)
    if np.isnan(values).any() or not len(values):
        return float("nan")
    finite = values[np.isfinite(values)]
    kept = finite if len(finite) else np.sign(values)
    exact = len(kept) <= ALL_SIGNS
    # sums that are equal may differ by rounding
    as_much = np.abs(_signs(len(kept), exact, seed) @ kept) >= abs(kept.sum()) * (1 - 1e-9)
    return float(as_much.mean() if exact else (1 + as_much.sum()) / (1 + SIGNS))


@lru_cache(maxsize=4)
def _signs(count: int, exact: bool, seed: int) -> np.ndarray:
    """Choices of signs for ``count`` values, float32 ``[choices, count]``."""
    if exact:
        return np.array(list(itertools.product((-1, 1), repeat=count)), np.float32)
    drawn = np.random.default_rng(seed).integers(0, 2, size=(SIGNS, count), dtype=np.int8)
    return (2 * drawn - 1).astype(np.float32)


ALL_ORDERS = 8
"""Of so many values, `rank_correlation` tries every order."""


def rank_correlation(
    a: Sequence[float], b: Sequence[float], draws: int = 9999, seed: int = 0
) -> tuple[float, float]:
    """``(correlation, chance)``: Spearman's rank correlation, and its two-sided p-value by permutations.

    Of at most `ALL_ORDERS` values every order is tried, so that the p-value is exact. Of more, ``draws``
    orders are drawn, and the observed one counts as one more. NaN for both where one of the two does not
    vary, or has a NaN.
    """
    x, y = (rankdata(values) - (len(values) + 1) / 2 for values in (a, b))
    scale = np.sqrt((x @ x) * (y @ y))
    if not scale > 0:  # NaN is not, either
        return float("nan"), float("nan")
    count = len(x)
    if count <= ALL_ORDERS:
        orders = np.array(list(itertools.permutations(range(count))))
    else:
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(count), (draws, 1)), axis=1)
    found = float(x @ y / scale)
    as_much = np.abs(y[orders] @ x / scale) >= abs(found) - 1e-9
    chance = as_much.mean() if count <= ALL_ORDERS else (1 + as_much.sum()) / (1 + draws)
    return found, float(chance)


def mean_interval(
    values: Sequence[float], level: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """``(mean, low, high)``, the interval by bootstrap over the values.

    Infinite values, such as the PSNR of images that nothing changed, are left out, unless all are infinite;
    NaN if any is NaN. Of a dozen values such intervals are too narrow: they hold the true mean in about 90 %
    of studies, not in 95 %."""
    mean, drawn = _drawn_means(values, seed, resamples)
    if not np.isfinite(mean):
        return mean, mean, mean
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return mean, float(low), float(high)


def geometric_mean(ratios: Sequence[float]) -> tuple[float, float, float]:
    """``(mean, low, high)`` of times or of ratios of times: the geometric mean, with Student's 95 % interval
    of their logarithms.

    Of the inverse ratios all three are inverse, so it does not matter which time is divided by which. The
    mean is no median, so that it belongs to its interval. The interval is NaN for a single ratio; all three
    are NaN if any ratio is.
    """
    logs = np.log(np.asarray(ratios, float))
    mean, count = logs.mean(), len(logs)
    reach = float("nan")
    if count > 1:
        reach = students_t.ppf(0.975, count - 1) * logs.std(ddof=1) / np.sqrt(count)
    return float(np.exp(mean)), float(np.exp(mean - reach)), float(np.exp(mean + reach))


def _drawn_means(values: Sequence[float], seed: int, resamples: int) -> tuple[float, np.ndarray]:
    """The mean, and means ``[resamples]`` of as many values drawn anew."""
    values = np.asarray(values, float)
    if np.isnan(values).any() or np.isinf(values).all():
        return float(values.mean()), np.full(resamples, values.mean())
    values = values[np.isfinite(values)]
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return float(values.mean()), values[drawn].mean(1)
