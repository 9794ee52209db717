"""Time methods over several images: in each turn all of them generate one image, the next turn the next
image.

`catome.study.measure.comparison.cost` times one image again and again. A method that merges by a threshold
merges more of one image than of another, so its time there is that image's alone. Here the turns go through
the images of the study, and with them through its classes. Each turn is whole in itself: what counts is the
time of a method over that of the unmerged generation of the same turn. So turns of several runs go together,
and each is kept when it is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch
from tqdm import tqdm

from catome.study.measure import quality
from catome.study.measure.clock import counting, device_name, method_set, now, place_of
from catome.study.methods import Method
from catome.study.run.generate import generate_batch
from catome.study.run.parameters import Setting
from catome.study.run.store import (
    RECORDED,
    SHARED_KEYS,
    Stopwatch,
    Store,
    Table,
    image_keys,
    of_these_images,
    provenance,
    shared_keys,
)

TURNS = Table(
    "turns",
    1,
    SHARED_KEYS
    | {"method": pa.string(), "sampler": pa.string(), "kind": pa.string(), "device": pa.string()}
    | {"threads": pa.int16(), "method_set": pa.string()},
    {"class": pa.string(), "seconds": pa.float64(), "flops": pa.float64()},
)
"""One row for each image and method: ``seconds`` of generating the image alone, and ``flops`` of the model
for it. ``method_set`` is a hash of the labels of the methods that took turns, ``sampler`` the class of the
scheduler."""


def turns(
    pipe,
    setting: Setting,
    methods: Sequence[Method],
    folder: Path | None = None,
    recorded: Path | None = RECORDED,
    recompute: bool = False,
) -> pd.DataFrame:
    """Time methods over the images of a setting, one image a turn, and count their work.

    Work is counted in a generation of its own, since counting takes time. Where it is the same for two
    images, the method does as much for every image, and it is counted no more.

    Turns of this device are used first; where there are none, those of another device of its kind ("cpu",
    "cuda").

    Args:
        pipe: an unpatched pipeline.
        setting: which images.
        methods: what takes turns; `faster` compares with `catome.study.methods.unmerged`, which must be among
            them.
        folder, recorded, recompute: as in `catome.study.compare`.

    Returns:
        Rows of `TURNS`, all of one device.
    """
    labels = [method.label for method in methods]
    shared = shared_keys(pipe, setting) | {
        "sampler": type(pipe.scheduler).__name__,
        "kind": torch.device(setting.device).type,
        "method_set": method_set(methods),
    }
    here = {"device": device_name(setting.device), "threads": torch.get_num_threads()}
    store = Store(TURNS, folder or setting.output, recorded)
    images = [image_keys(setting, image) for image in range(setting.images)]

    def held(**where) -> pd.DataFrame:
        """Images of which every method was timed."""
        rows = of_these_images(
            store.find(**shared, **where, method=labels, image=range(setting.images)), setting
        )
        return rows[rows.groupby(["device", "threads", "image"])["method"].transform("size") == len(labels)]

    rows = held(**here)
    if not recompute:
        elsewhere = [timed for _, timed in held().groupby(["device", "threads"], sort=False)]
        for timed in (rows, *elsewhere):
            if timed["image"].nunique() == setting.images:
                return timed.reset_index(drop=True)
    done = set() if recompute else set(rows["image"])
    counted = {} if recompute else rows.groupby("method")["flops"].agg(list).to_dict()
    missing = [image for image in range(setting.images) if image not in done]
    run, watch = provenance(setting, shared["model"]), Stopwatch()
    warm = replace(setting, steps=min(setting.steps, 4))
    for method in methods:
        with method.applied(pipe):
            generate_batch(pipe, warm, range(1))
    with tqdm(total=len(missing) * len(methods), desc="turns", unit="image", leave=False) as bar:
        for image in missing:
            seconds, flops = {}, {}
            first = image % len(methods)
            for method in [*methods[first:], *methods[:first]]:
                seconds[method.label] = _seconds(pipe, setting, method, image)
                known = counted.setdefault(method.label, [])
                if len(known) < 2 or len(set(known)) > 1:
                    known.append(_flops(pipe, setting, method, image))
                flops[method.label] = known[-1]
                bar.update()
            rows = [
                shared
                | here
                | images[image]
                | {
                    "method": label,
                    "class": setting.names[image],
                    "seconds": seconds[label],
                    "flops": flops[label],
                }
                for label in labels
            ]
            store.add(rows, run, watch.lap())
    store.finish()
    return held(**here)


def _seconds(pipe, setting: Setting, method: Method, image: int) -> float:
    with method.applied(pipe):
        started = now(setting.device)
        generate_batch(pipe, setting, range(image, image + 1))
        return now(setting.device) - started


def _flops(pipe, setting: Setting, method: Method, image: int) -> float:
    """Of the whole generation; the counter makes it slower, so it is none of those that are timed."""
    with method.applied(pipe), counting() as counter:
        generate_batch(pipe, setting, range(image, image + 1))
    return float(counter.get_total_flops())


def of_unmerged(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """``column`` of each method over that of the unmerged generation of the same image: one row for each
    image, one column for each method, by its label."""
    table = rows.pivot(index="image", columns="method", values=column)
    return table.div(table["unmerged"], axis=0)


def faster(rows: pd.DataFrame) -> pd.DataFrame:
    """The speed-up of each method against unmerged, and the share of the work that is left, over the images.

    The two have different means. Times vary by factors, and a ratio of times may be turned upside down, so
    the speed-up is a geometric mean, as by `catome.study.measure.comparison.speed_ups`. Work is counted and
    adds up. The unmerged generation has the same work for every image, so the arithmetic mean of the shares
    is the share of the work of all images together.

    Returns:
        By the method's label: ``speed-up``, the geometric mean of the ratios of times, each to the unmerged
        generation of the same image, with Student's 95 % interval of their logarithms
        (`catome.study.measure.quality.geometric_mean`: NaN for one image); and ``flops``, the mean share of
        the unmerged generation's that is left, with a 95 % interval by bootstrap over images; ``low`` and
        ``high`` behind the names.
    """
    seconds, flops = of_unmerged(rows, "seconds"), of_unmerged(rows, "flops")
    found = {}
    for label in rows["method"].unique():
        speed = quality.geometric_mean(1 / seconds[label].to_numpy(float))
        work = quality.mean_interval(flops[label].to_numpy(float))
        row = {}
        for name, values in (("speed-up", speed), ("flops", work)):
            row |= dict(zip((name, f"{name} low", f"{name} high"), values, strict=True))
        found[label] = row
    return pd.DataFrame(found).T


def turns_on(rows: pd.DataFrame) -> str:
    """One sentence that says where the rows of `turns` were timed, and on which images."""
    first = rows.iloc[0]
    images, classes = rows["image"].nunique(), rows["class"].nunique()
    return (
        f"Timed on {place_of(first)}: {images} images of {classes} classes, one at a time, all methods in "
        "turns on each."
    )
