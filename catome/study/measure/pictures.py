"""Pictures for the book: images by several methods, kept without loss, and generated only where they are not
there yet."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from tqdm import tqdm

from catome.checks import check_index
from catome.study.measure.quality import to_uint8
from catome.study.methods import Method
from catome.study.run.generate import by_halves, generate_batch
from catome.study.run.parameters import Setting
from catome.study.run.store import (
    RECORDED,
    SHARED_KEYS,
    Stopwatch,
    Store,
    Table,
    image_keys,
    provenance,
    shared_keys,
)

PICTURES = Table("pictures", 1, SHARED_KEYS | {"method": pa.string()}, {"webp": pa.binary()})
"""One row for each image and method: ``webp`` is the image of eight bits a channel, as lossless WebP."""


def pictures(
    pipe,
    setting: Setting,
    methods: Mapping[str, Method],
    images: Sequence[int] = (0,),
    folder: Path | None = None,
    recompute: bool = False,
    recorded: Path | None = RECORDED,
) -> dict[str, np.ndarray]:
    """Some images of a setting by several methods.

    Args:
        pipe: an unpatched pipeline.
        setting: what to generate. Its batch size is the most that is generated at once.
        methods: by the names that the result has.
        images: their numbers within the setting.
        folder: where to keep new pictures; ``setting.output`` unless given.
        recompute: generate all of them again, whatever was kept.
        recorded: a folder of recorded pictures.

    Returns:
        By name of the method: ``[len(images), H, W, 3]`` float32 in [0, 1], rounded to eight bits.

    Raises:
        IndexError: for an image that the setting does not have.
    """
    images = [check_index("images", image, setting.images, "in the setting") for image in images]
    shared = shared_keys(pipe, setting)
    store = Store(PICTURES, Path(folder or setting.output), recorded)
    labels = {method.label: method for method in methods.values()}
    held = {} if recompute else _held(store, shared, setting, labels, images)
    missing = {label: [image for image in images if (label, image) not in held] for label in labels}
    run, watch = provenance(setting, shared["model"]), Stopwatch()
    parts = [
        (label, wanted[at : at + setting.batch_size])
        for label, wanted in missing.items()
        for at in range(0, len(wanted), setting.batch_size)
    ]
    with tqdm(
        total=len(parts) * setting.calls, desc="pictures", unit="step", leave=False, disable=not parts
    ) as bar:
        for label, part in parts:
            with labels[label].applied(pipe):
                batches = by_halves(lambda some: generate_batch(pipe, setting, some, bar.update), part)
            made = to_uint8(np.concatenate(batches))
            rows = [
                shared | image_keys(setting, image) | {"method": label, "webp": _packed(pixels)}
                for image, pixels in zip(part, made, strict=True)
            ]
            store.add(rows, run, watch.lap())
            held |= {(label, image): pixels for image, pixels in zip(part, made, strict=True)}
    store.finish()
    return {
        name: np.stack([held[method.label, image] for image in images]).astype(np.float32) / 255
        for name, method in methods.items()
    }


def _held(store: Store, shared: dict, setting: Setting, labels, images) -> dict[tuple[str, int], np.ndarray]:
    """The kept ones of these pictures, by method and image: ``[H, W, 3]`` of eight bits."""
    rows = store.find(**shared, method=list(labels), image=images)
    return {
        (row.method, row.image): np.asarray(Image.open(io.BytesIO(row.webp)).convert("RGB"))
        for row in rows.itertuples()
        if row.prompt == setting.prompts[row.image]
    }


def _packed(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()
