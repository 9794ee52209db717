"""The effect of a method on the images, and its cost: one row for each image and method, one for each timed
generation."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from tqdm import tqdm

from catome.patch import applied_patch
from catome.study.measure import quality
from catome.study.measure.clock import counting, device_name, method_set, now, peak_memory, place_of
from catome.study.measure.real_images import Reference
from catome.study.methods import Method
from catome.study.run.claims import Claims, deal
from catome.study.run.denoiser import denoiser, transformer_blocks
from catome.study.run.generate import batches, by_halves, generate_batch
from catome.study.run.parameters import Setting
from catome.study.run.store import (
    RECORDED,
    SHARED_KEYS,
    Stopwatch,
    Store,
    Table,
    image_keys,
    image_size,
    of_these_images,
    provenance,
    shared_keys,
)

QUALITY = Table(
    "quality",
    1,
    SHARED_KEYS | {"method": pa.string(), "extractor": pa.string(), "reference": pa.string()},
    {
        "class": pa.string(),
        "psnr": pa.float32(),
        "ssim": pa.float32(),
        "feature_distance": pa.float32(),
        "psnr_real": pa.float32(),
        "ssim_real": pa.float32(),
        "merged_share": pa.list_(pa.float16()),
        "features": pa.list_(pa.float16()),
    },
)
"""One row for each image and method. ``psnr`` (dB), ``ssim`` and ``feature_distance`` (Euclidean, of the
extractor's features) are against the unmerged image of the same seed; ``psnr_real`` and ``ssim_real`` are the
paper's way, against an unrelated real image of the class (of the set named ``reference``; empty where none
was given); nothing else depends on that set. ``merged_share`` is that of the image's prompted row at each
step, mean over blocks, and empty for methods that merge nothing or do not tell."""

COST = Table(
    "cost",
    1,
    {
        "model": pa.string(),
        "version": pa.int16(),
        "method": pa.string(),
        "kind": pa.string(),
        "device": pa.string(),
        "threads": pa.int16(),
        "steps": pa.int16(),
        "guidance": pa.float64(),
        "height": pa.int32(),
        "width": pa.int32(),
        "dtype": pa.string(),
        "batch": pa.int32(),
        "method_set": pa.string(),
        "repetition": pa.int32(),
    },
    {
        "seconds": pa.float64(),
        "block_seconds": pa.float64(),
        "flops": pa.float64(),
        "peak_bytes": pa.int64(),
    },
)
"""One row for each method and repetition: ``seconds`` a generation took for one image of its batch,
``block_seconds`` of those inside the transformer blocks, ``flops`` of the U-Net for one image, ``peak_bytes``
the device held (empty on CPU). In one run the methods take turns, so that drift of the machine hits all
alike; ``method_set`` is a hash of their labels."""


@dataclass(frozen=True)
class Comparison:
    """Rows of `QUALITY` for the methods that were asked for.

    Attributes:
        rows: one for each image and method, by image.
        methods: the labels, in the order in which they were given.
        label: of the extractor: "scene" or "Inception".
        runs: provenance by the ``run`` column.
    """

    rows: pd.DataFrame
    methods: list[str]
    label: str
    runs: dict[str, dict]

    def of(self, method: str | Method) -> pd.DataFrame:
        """One method's rows, by image."""
        return self.rows[self.rows["method"] == str(method)].sort_values("image", ignore_index=True)

    def features(self, method: str | Method) -> np.ndarray:
        """One method's features ``[images, F]``, float32, by image."""
        return np.stack(self.of(method)["features"].to_numpy()).astype(np.float32)

    def summary(self, reference: np.ndarray | None = None) -> pd.DataFrame:
        """One row for each method: means with 95 % intervals over images (columns ``X``, ``X low``, ``X
        high``).

        Args:
            reference: features ``[n, F]`` of real images, for FID and KID; without them these are left out.

        Returns:
            Columns ``PSNR`` (dB; infinite where every image is unchanged), ``SSIM``, ``distance`` (of
            features) and ``share`` (merged share of all tokens), all against the unmerged images of the same
            seeds; and FID and KID (times 1000) against the reference, and how both differ from the unmerged
            images', paired over seeds.
        """
        statistics = None if reference is None else quality.fid_statistics(reference)
        table = {}
        for method in self.methods:
            rows = self.of(method)
            shares = _shares(rows)
            values = {
                "PSNR": rows["psnr"],
                "SSIM": rows["ssim"],
                "distance": rows["feature_distance"],
                "share": shares,
            }
            values |= {"PSNR real": rows["psnr_real"], "SSIM real": rows["ssim_real"]}
            row: dict[str, float] = {"images": len(rows)}
            for name, found in values.items():
                row[name], row[f"{name} low"], row[f"{name} high"] = quality.mean_interval(
                    np.asarray(found, float)
                )
            if reference is not None:
                features = self.features(method)

                def fid(sample: np.ndarray) -> float:
                    return quality.fid(sample, statistics)

                def change(sample: np.ndarray, plain: np.ndarray) -> float:
                    return fid(sample) - fid(plain)

                of_class = rows.groupby("class").cumcount()  # one image of each class is left out at a time
                of_class = of_class if of_class.nunique() > 1 else 24  # unless there is only one of each
                row["FID"], row["FID low"], row["FID high"] = quality.jackknife(
                    fid, features, groups=of_class
                )
                if "unmerged" in self.methods and method != "unmerged":
                    plain = self.features("unmerged")
                    found = quality.jackknife(change, features, plain, groups=of_class)
                    row["FID change"], row["FID change low"], row["FID change high"] = found
                    found = np.array(quality.kid_change(features, plain, reference, of_class))
                    row["KID change"], row["KID change low"], row["KID change high"] = 1000 * found
                row["KID x 1000"] = 1000 * quality.kid(features, reference)
            table[method] = row
        return pd.DataFrame(table).T

    def told_by_fid(self, reference: np.ndarray, methods: Mapping[Any, str | Method]) -> dict[Any, float]:
        """The methods whose FID differs from the unmerged images' by more than chance: the p-value of
        `quality.fid_chance` by name, of those that stay when all are tested at once (`quality.holm`).

        Args:
            reference: features ``[n, F]`` of real images.
            methods: by name; the unmerged one is passed over.
        """
        statistics = quality.fid_statistics(reference)
        plain = self.features("unmerged")
        asked = {name: method for name, method in methods.items() if str(method) != "unmerged"}
        # large matrices take long: then the draws are as many as Holm's method needs, twice over
        draws = 1999 if min(plain.shape) <= 512 else 40 * len(asked) - 1
        chances = {
            name: quality.fid_chance(self.features(method), plain, statistics, draws)
            for name, method in asked.items()
        }
        stays = quality.holm(list(chances.values()))
        return {name: chances[name] for name, stay in zip(chances, stays, strict=True) if stay}

    def share_of_image(self, method: str | Method, image: int = 0) -> tuple[float, float]:
        """``(one, mean)``: the merged share of one image, and the mean over all images; NaN where nothing is
        merged.

        `cost` times the first images of a study, mostly image 0 alone, where a method by a threshold may
        merge more or less than on average."""
        rows = self.of(method)
        shares = pd.Series(_shares(rows), index=rows["image"])
        return float(shares[image]), float(shares.mean())

    @property
    def classes(self) -> np.ndarray:
        """The class of each image, by its number: ``[images]``."""
        return self.rows.drop_duplicates("image").sort_values("image")["class"].to_numpy()

    def differences(self, column: str, a: str | Method, b: str | Method) -> np.ndarray:
        """``column`` of ``a`` minus that of ``b``, ``[images]``, each on the same seed.

        Seeds where both are infinite (unchanged by both) count as no difference."""
        return quality.difference(*(self.of(method)[column].to_numpy(float) for method in (a, b)))

    def paired(self, column: str, a: str | Method, b: str | Method) -> tuple[float, float, float]:
        """Mean of `differences` with its 95 % interval: ``(mean, low, high)``."""
        return quality.mean_interval(self.differences(column, a, b))


def _shares(rows: pd.DataFrame) -> list[float]:
    """The merged share of each row, mean over steps; NaN where nothing is merged."""
    return [np.mean(share.astype(float)) if len(share) else np.nan for share in rows["merged_share"]]


def compare(
    pipe,
    setting: Setting,
    methods: Sequence[Method],
    real: Reference | None = None,
    folder: Path | None = None,
    recompute: bool = False,
    recorded: Path | None = RECORDED,
    failed: dict[str, Exception] | None = None,
    plain: dict[range, np.ndarray] | None = None,
) -> Comparison:
    """Generate the same images by several methods; each batch is kept when all methods have made it.

    Args:
        pipe: an unpatched pipeline.
        setting: what to generate.
        methods: labels must differ.
        real: real images to compare with as well, the paper's way. Without them, rows that were compared with
            any serve, too.
        folder: where to keep new rows; ``setting.output`` unless given.
        recompute: compute everything again, whatever was kept.
        recorded: a folder of recorded rows.
        failed: gets the error of each method that raises one, by label, and the others go on without it;
            where this is None, the first error is raised.
        plain: gets the unmerged images of each batch, and gives them where it has them: for several calls
            with one pipeline and setting.

    Raises:
        ValueError: if two methods have one label, or the pipeline is patched already.
    """
    labels = [method.label for method in methods]
    if len(set(labels)) != len(labels):
        raise ValueError(f"methods={labels!r}: each may be named once")
    if applied_patch(pipe) is not None:
        raise ValueError("pipe is patched: take the patch off, the methods put on their own")
    net = quality.extractor(setting.embedded, setting.device)
    shared = shared_keys(pipe, setting) | {"extractor": net.name, "reference": real.name if real else ""}
    folder = Path(folder or setting.output)
    store, again = Store(QUALITY, folder, recorded), set()
    run, watch = provenance(setting, shared["model"]), Stopwatch()

    def need(part: range) -> list[Method]:
        wanted = [method for method in methods if method.label not in (failed or ())]
        if recompute:
            return [] if part in again else wanted
        held = _kept(store, setting, shared | {"image": part})
        have = held.groupby("method")["image"].nunique()
        return [method for method in wanted if have.get(method.label, 0) < len(part)]

    def name(part: range) -> str:
        return (
            f"images {part[0]} to {part[-1]} of "
            f"{json.dumps([shared, labels, recompute and run['id']], sort_keys=True)}"
        )

    todo = {part: needed for part in batches(setting) if (needed := need(part))}
    generations = sum(1 + sum(method.family != "unmerged" for method in needed) for needed in todo.values())
    pieces = deal(todo, need, name, Claims(folder), store.refresh)
    with (
        tqdm(
            total=generations * setting.calls,
            desc="methods",
            unit="step",
            leave=False,
            disable=not generations,
        ) as bar,
        closing(pieces),
    ):
        for part, missing in pieces:
            unmerged = _plain(pipe, setting, part, bar) if plain is None or part not in plain else plain[part]
            if plain is not None:
                plain[part] = unmerged
            rows = []
            for method in missing:
                images, share = unmerged, [[]] * len(part)
                if method.family != "unmerged":
                    try:
                        images, share = _made(pipe, setting, method, part, bar)
                    except Exception as error:
                        if failed is None:
                            raise
                        failed[method.label] = error
                        continue
                rows += _rows(setting, shared, method, part, unmerged, images, share, net, real)
            store.add(rows, run, watch.lap())
            again.add(part)
    store.finish()
    there = [label for label in labels if label not in (failed or ())]
    rows = _kept(store, setting, shared | {"method": there, "image": range(setting.images)})
    runs = store.runs_of(rows)
    return Comparison(rows, there, net.label, runs)


def _kept(store: Store, setting: Setting, keys: dict) -> pd.DataFrame:
    """The rows of the images of a setting. Where no real images were asked for, rows with any serve as well,
    but those without any come first."""
    if keys["reference"]:
        return of_these_images(store.find(**keys), setting)
    rows = store.find(**{name: value for name, value in keys.items() if name != "reference"})
    # the set of no real images is named ""
    rows = rows.sort_values("reference", kind="stable").drop_duplicates(["image", "prompt", "method"])
    return of_these_images(rows.assign(psnr_real=np.nan, ssim_real=np.nan), setting)


def _plain(pipe, setting: Setting, part: range, bar) -> np.ndarray:
    made = by_halves(lambda images: generate_batch(pipe, setting, images, bar.update), part)
    return quality.to_uint8(np.concatenate(made))


def _made(pipe, setting: Setting, method: Method, part: range, bar) -> tuple[np.ndarray, list]:
    if method.batch is not None:  # what it makes depends on what else is in the batch
        return _made_at_once(pipe, setting, method, part, bar)
    made = by_halves(lambda images: _made_at_once(pipe, setting, method, images, bar), part)
    return np.concatenate([images for images, _ in made]), [share for _, shares in made for share in shares]


def _made_at_once(pipe, setting: Setting, method: Method, part: range, bar) -> tuple[np.ndarray, list]:
    shares = []

    def note() -> None:
        bar.update()
        patch = applied_patch(pipe)
        if patch is not None and patch.cached():
            shares.append(torch.stack([plan.merged_share[-len(part) :] for plan in patch.cached()]).mean(0))

    with method.applied(pipe):
        images = quality.to_uint8(generate_batch(pipe, setting, part, note))
    return images, list(torch.stack(shares, 1).numpy().astype(np.float16)) if shares else [[]] * len(part)


def _rows(setting, shared, method, part, plain, images, share, net, real) -> list[dict]:
    features, reference = net(images), net(plain)
    others = None if real is None else np.stack([real.like(image) for image in part])
    nothing = np.full(len(part), np.nan)
    psnr_real, ssim_real = (
        nothing if others is None else measure(images, others) for measure in (quality.psnr, quality.ssim)
    )
    psnr, ssim = quality.psnr(images, plain), quality.ssim(images, plain)
    away = np.linalg.norm(features - reference, axis=1)
    return [
        shared
        | image_keys(setting, image)
        | {
            "method": method.label,
            "class": setting.names[image],
            "psnr": psnr[i],
            "ssim": ssim[i],
            "feature_distance": away[i],
            "psnr_real": psnr_real[i],
            "ssim_real": ssim_real[i],
            "merged_share": share[i],
            "features": features[i].astype(np.float16),
        }
        for i, image in enumerate(part)
    ]


@contextmanager
def timed_blocks(pipe, device: str) -> Iterator[list[float]]:
    """A list that gets the seconds of every run of a transformer block of the U-Net."""
    spent: list[float] = []
    started: list = []
    cuda = device.startswith("cuda")

    def before(module, args):
        started.append(torch.cuda.Event(enable_timing=True) if cuda else time.perf_counter())
        if cuda:
            started[-1].record()

    def after(module, args, output):
        if cuda:
            end = torch.cuda.Event(enable_timing=True)
            end.record()
            spent.append((started.pop(), end))
        else:
            spent.append(time.perf_counter() - started.pop())

    handles = []
    for block in transformer_blocks(denoiser(pipe)).values():
        handles += [block.register_forward_pre_hook(before), block.register_forward_hook(after)]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()
        if cuda:
            torch.cuda.synchronize()
            spent[:] = [start.elapsed_time(end) / 1000 for start, end in spent]


def timed_alone(pipe, params: Setting, methods: Sequence[Method], **kept) -> pd.DataFrame:
    """`cost` as a study asks for it: one image at a time, with the study's ``repetitions`` and
    ``recompute``."""
    alone = replace(params, batch_size=1)
    return cost(pipe, alone, methods, params.repetitions, recompute=params.recompute, **kept)


def cost(
    pipe,
    setting: Setting,
    methods: Sequence[Method],
    repetitions: int = 5,
    folder: Path | None = None,
    recompute: bool = False,
    recorded: Path | None = RECORDED,
) -> pd.DataFrame:
    """Time the methods in turns: one generation of ``setting.batch_size`` images each, ``repetitions`` times
    after a warm-up.

    Rows that are kept are used only when all of them are there and come from one run, since only turns taken
    in one run compare. Rows of this device come first, then those of another of its kind (``kind``: "cpu",
    "cuda"): they hold for where they were taken, which `timed_on` says; ``recompute`` takes them here.

    Args:
        pipe, setting, methods, folder, recompute, recorded: as in `compare`.
        repetitions: timed generations of each method.

    Returns:
        Rows of `COST` for these methods, all from one run, with a column ``class``: of the first image, which
        `timed_on` names.
    """
    height, width = image_size(pipe, setting)
    keys = {
        "model": shared_keys(pipe, setting)["model"],
        "kind": torch.device(setting.device).type,
        "device": device_name(setting.device),
        "threads": torch.get_num_threads(),
        "steps": setting.steps,
        "guidance": setting.guidance,
        "height": height,
        "width": width,
        "dtype": setting.dtype,
        "batch": setting.batch_size,
    }
    labels = [method.label for method in methods]
    own = {"method_set": method_set(methods)}
    store = Store(COST, folder or setting.output, recorded)
    if not recompute:
        anywhere = {name: value for name, value in keys.items() if name not in ("device", "threads")}
        for wanted in (keys | own, keys, anywhere | own, anywhere):
            held = store.find(**wanted, method=labels)
            whole = (
                held.groupby("run")["method"]
                .value_counts()
                .unstack(fill_value=0)
                .reindex(columns=labels, fill_value=0)
            )
            fitting = whole[whole.min(axis=1) >= repetitions].index
            if len(fitting):
                return _with_class(held[held["run"] == fitting[-1]], store, setting)
    run = provenance(setting, keys["model"]) | {"timed": setting.names[: setting.batch_size]}
    watch = Stopwatch()
    quality.let_extractors_go()  # their weights are no part of a method's memory
    rows = []
    with tqdm(
        total=len(methods) * (repetitions + 1) * setting.calls, desc="cost", unit="step", leave=False
    ) as bar:
        flops = {}
        for method in methods:  # the warm-up, and with it the count
            with method.applied(pipe), counting() as counter:
                generate_batch(pipe, setting, range(setting.batch_size), bar.update)
            flops[method.label] = counter.get_total_flops() / setting.batch_size
        for repetition in range(repetitions):
            turn = [*methods[repetition % len(methods) :], *methods[: repetition % len(methods)]]
            for method in turn:
                images = range(setting.batch_size)
                with method.applied(pipe), timed_blocks(pipe, setting.device) as spent:
                    memory, started = peak_memory(setting.device), now(setting.device)
                    generate_batch(pipe, setting, images, bar.update)
                    seconds = now(setting.device) - started
                rows.append(
                    keys
                    | {
                        "method": method.label,
                        **own,
                        "repetition": repetition,
                        "seconds": seconds / len(images),
                        "block_seconds": sum(spent) / len(images),
                        "flops": flops[method.label],
                        "peak_bytes": memory(),
                    }
                )
    store.add(rows, run, watch.lap())
    store.finish()
    found = store.find(**keys, method=labels)
    return _with_class(found[found["run"] == run["id"]], store, setting)


def _with_class(rows: pd.DataFrame, store: Store, setting: Setting) -> pd.DataFrame:
    """Rows of one run with the class of the first image. Runs that do not say it took the model's classes in
    turn."""
    run = store.runs[rows["run"].iloc[0]]
    return rows.assign(**{"class": (run.get("timed") or replace(setting, classes=None).names)[0]})


def time_ratio(
    rows: pd.DataFrame, method: str | Method, other: str | Method = "unmerged"
) -> tuple[float, float, float]:
    """``(ratio, low, high)``: how long a generation takes by one method, over how long it takes by another in
    the same turns.

    The ratio and its interval are the `catome.study.measure.quality.geometric_mean` over turns.

    Args:
        rows: of `cost`.
        method, other: two of its methods.

    Returns:
        NaN for the interval where there is only one turn.
    """
    seconds = rows.pivot(index="repetition", columns="method", values="seconds")
    ratios = seconds[str(method)] / seconds[str(other)]
    return quality.geometric_mean(ratios.dropna().to_numpy(float))


SPEED_UP = ["speed-up", "speed-up low", "speed-up high"]
"""The columns of a speed-up and its interval."""


def speed_ups(rows: pd.DataFrame) -> pd.DataFrame:
    """The speed-up of each method against unmerged, by its label, from rows of `cost`.

    Returns:
        ``speed-up``, the geometric mean over turns, each against the unmerged generation of the same turn,
        and the 95 % interval of `time_ratio`, ``speed-up low`` and ``speed-up high``: NaN for one turn. The
        columns are `SPEED_UP`.
    """
    found = {}
    for method in rows["method"].unique():
        found[method] = dict(zip(SPEED_UP, time_ratio(rows, "unmerged", method), strict=True))
    return pd.DataFrame(found).T


def timed_on(rows: pd.DataFrame) -> str:
    """One sentence that says where the rows of `cost` were timed, how, and on which images."""
    first = rows.iloc[0]
    turns = int(rows.groupby("method").size().min())
    which = f"images 0 to {first['batch'] - 1} together (image 0: {first['class']})"
    which = f"image 0 ({first['class']}) alone" if first["batch"] == 1 else which
    return f"Timed on {place_of(first)}: {which}, the methods in turns, {turns} times after a warm-up."
