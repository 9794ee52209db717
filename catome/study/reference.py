"""Real images to compare generated ones with: held-out scenes of the embedded world, or a folder such as ImageNet's validation set."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from catome import tiny
from catome.study.parameters import Setting
from catome.study.quality import Extractor
from catome.tiny.evaluate import HELD_OUT

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
PER_CLASS = 5
"""Of a folder with one folder for each class the first so many images are taken, by name, as in the paper."""


def image_files(folder: Path, per_class: int = PER_CLASS) -> list[Path]:
    """The reference images of a folder: all images of a flat one, the first ``per_class`` of each folder in it.

    Raises:
        ValueError: if the folder is missing or holds fewer than two images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"reference={str(folder)!r} must be a folder of images, or of one folder for each class")
    groups = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    found = []
    for group in groups:
        files = sorted(path for path in group.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)
        found += files if group == folder else files[:per_class]
    if len(found) < 2:
        raise ValueError(f"reference={str(folder)!r} holds {len(found)} images: at least 2 are needed")
    return found


def read_image(file: Path, height: int, width: int) -> np.ndarray:
    """One image as uint8 RGB ``[height, width, 3]``, whatever its mode: scaled to cover that size, then cropped in the middle.

    Raises:
        ValueError: naming the file, if it is no whole image.
    """
    try:
        with Image.open(file) as image:
            image = image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{file} is not a whole image: {error}") from None
    scale = max(height / image.height, width / image.width)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def reference_features(
    setting: Setting, net: Extractor, size: tuple[int, int], folder: str | Path | None = None, per_class: int = 100
) -> np.ndarray:
    """Features ``[n, F]`` of the reference images, kept in ``setting.output`` for the next time.

    Args:
        setting: the embedded model's reference are held-out renders, ``per_class`` of each class; other models need ``folder``.
        net: the extractor.
        size: ``(height, width)`` of the generated images.
        folder: of real images, see `image_files`.
        per_class: renders of each class.

    Raises:
        ValueError: if a folder is needed and was not given, or holds no usable images.
    """
    if folder is None and not setting.embedded:
        raise ValueError("reference=None: give the folder of real images to compare with, such as ImageNet's validation set")
    files = None if folder is None else image_files(Path(folder))
    key = hashlib.sha256(f"{net.name} {size} {per_class} {tiny.CLASSES}".encode())
    for file in files or []:
        about = os.stat(file)
        key.update(f"{file.resolve()} {about.st_size} {about.st_mtime_ns}".encode())
    kept = setting.folder() / f"reference-{key.hexdigest()[:16]}.npy"
    if kept.exists():
        return np.load(kept)
    features, batch = [], []

    def flush() -> None:
        if batch:
            features.append(net(np.stack(batch)))
            batch.clear()

    todo = files or [(name, HELD_OUT + i) for name in tiny.CLASSES for i in range(per_class)]
    for item in tqdm(todo, desc="reference", leave=False):
        batch.append(tiny.render(*item) if files is None else read_image(item, *size))
        if len(batch) == 64:
            flush()
    flush()
    found = np.concatenate(features)
    partial = kept.with_suffix(f".{os.getpid()}.partial.npy")
    np.save(partial, found)
    partial.replace(kept)
    return found
