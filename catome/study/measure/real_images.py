"""Real images to compare generated ones with: held-out scenes of the embedded world, or a folder such as
ImageNet's validation set."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from catome import tiny
from catome.checks import check_integer
from catome.study.measure.quality import Extractor, extractor
from catome.study.run.parameters import Setting, imagenet_classes
from catome.study.run.store import Damaged, image_size
from catome.tiny.evaluate import HELD_OUT

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
PER_CLASS = 5
"""Of a folder with one folder for each class the first so many images are taken, by name, as in the paper."""


def image_files(folder: Path, per_class: int = PER_CLASS) -> list[Path]:
    """The reference images of a folder: all images of a flat one, the first ``per_class`` of each folder in
    it.

    Raises:
        ValueError: if the folder is missing or holds fewer than two images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"reference={str(folder)!r} must be a folder of images, or of one folder for each class"
        )
    groups = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    found = []
    for group in groups:
        files = sorted(path for path in group.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)
        found += files if group == folder else files[:per_class]
    if len(found) < 2:
        kinds = ", ".join(sorted(SUFFIXES))
        raise ValueError(
            f"reference={str(folder)!r} holds {len(found)} images: at least 2 are needed, in it or its "
            f"folders ({kinds})"
        )
    return found


def read_image(file: Path, height: int, width: int) -> np.ndarray:
    """One image as uint8 RGB ``[height, width, 3]``, whatever its mode: scaled to cover that size, then
    cropped in the middle.

    Raises:
        ValueError: naming the file, if it is no whole image.
    """
    try:
        with Image.open(file) as image:
            image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Damaged(
            f"{file} is not a whole image: {error}; reference must be a folder of whole ones"
        ) from None
    return _resized(image, height, width)


def _resized(image: Image.Image, height: int, width: int) -> np.ndarray:
    if image.size == (width, height):
        return np.asarray(image)
    scale = max(height / image.height, width / image.width)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


_NEEDS_A_FOLDER = (
    "reference=None: give the folder of real images to compare with, such as ImageNet's validation set"
)


@dataclass(frozen=True)
class Reference:
    """Real images.

    Attributes:
        name: of the set; equal names mean equal images.
        features: ``[n, F]`` float32, of an extractor, for FID and its relatives.
        like: ``like(image)`` is a real image of the class of the study's image of that number, unrelated to
            it otherwise: uint8 ``[H, W, 3]``. A flat folder knows no classes; there it is any image.
    """

    name: str
    features: np.ndarray
    like: Callable[[int], np.ndarray]


def real_images(
    setting: Setting,
    net: Extractor,
    size: tuple[int, int],
    folder: str | Path | None = None,
    per_class: int = 100,
) -> Reference:
    """The real images of a study; their features are kept in ``setting.output`` for the next time.

    Args:
        setting: the embedded model's reference are held-out renders, ``per_class`` of each class; other
            models need ``folder``.
        net: the extractor.
        size: ``(height, width)`` of the generated images.
        folder: of real images, see `image_files`.
        per_class: renders of each class.

    Raises:
        ValueError: if a folder is needed and was not given, or holds no usable images; nothing is kept then.
    """
    check_integer("per_class", per_class, 1)
    if folder is None and not setting.embedded:
        raise ValueError(_NEEDS_A_FOLDER)
    if folder is None:
        todo = [(name, HELD_OUT + i) for name in tiny.CLASSES for i in range(per_class)]
        name = f"held-out scenes, {per_class} of each class"

        def read(item: tuple[str, int]) -> np.ndarray:
            return _resized(Image.fromarray(tiny.render(*item)), *size)

        def like(image: int) -> np.ndarray:
            classes = setting.classes_in_turn  # a comparison may have more images than the setting
            return read((classes[image % len(classes)], HELD_OUT + image))
    else:
        todo = image_files(Path(folder))
        digest = hashlib.sha256()
        for file in todo:
            digest.update(
                f"{file.relative_to(folder)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode()
            )
        by_class = files_by_class(setting, Path(folder), todo)
        # which of them an image is compared with is part of what they are: rows of another assignment are
        # other rows
        in_turn = [
            len(setting.classes_in_turn),
            *([str(file.relative_to(folder)) for file in files] for files in by_class),
        ]
        digest.update(json.dumps(in_turn).encode())
        name = f"{len(todo)} images {digest.hexdigest()[:12]}"

        def read(item: Path) -> np.ndarray:
            return read_image(item, *size)

        def like(image: int) -> np.ndarray:
            turn, position = divmod(image, len(setting.classes_in_turn))
            of_class = by_class[position] if by_class else todo[position:] + todo[:position]
            return read(of_class[turn % len(of_class)])

    return Reference(name, _features(setting, net, f"{net.name} {size} {name}", todo, read), like)


def files_by_class(setting: Setting, folder: Path, files: Sequence[Path]) -> list[list[Path]]:
    """The real images of each class of a setting; empty where some lie in the folder itself, which knows no
    classes.

    A folder is the class of its name. Where none is named like a class, as with those of WordNet, the folders
    are the setting's classes in their order, or those of ImageNet, whichever are as many.

    Raises:
        ValueError: if neither is so, or some classes have a folder of their name and others have none.
    """
    folders = {
        folder.name: list(group) for folder, group in itertools.groupby(files, key=lambda file: file.parent)
    }
    names = setting.classes_in_turn
    if any(file.parent == folder for file in files):
        return []
    if set(names) <= set(folders):
        return [folders[name] for name in names]
    without = [name for name in names if name not in folders]
    if len(without) < len(names):
        raise ValueError(
            f"reference={str(folder)!r} has folders that are named like "
            f"classes, and none for {without[0]!r}: give one for each class"
        )
    in_order = list(folders.values())
    if len(in_order) == len(names):
        return in_order
    known = imagenet_classes()
    if len(in_order) == len(known) and set(names) <= set(known):
        return [in_order[known.index(name)] for name in names]
    raise ValueError(
        f"reference={str(folder)!r} has {len(folders)} folders, whose names are not those of the "
        f"{len(names)} classes: give a folder for each class, named like it, or all images in one folder"
    )


def check_reference(setting: Setting) -> None:
    """Refuse a study's folder of real images before anything is generated, where that is wrong or missing.

    Raises:
        ValueError: as `real_images`.
    """
    folder = getattr(setting, "reference", None)
    if folder is not None:
        files_by_class(setting, Path(folder), image_files(Path(folder)))
    elif hasattr(setting, "reference") and not setting.embedded:
        raise ValueError(_NEEDS_A_FOLDER)


def beside(pipe, setting: Setting, folder: str | Path | None = None) -> Reference:
    """`real_images` of the size that a pipeline generates, by the extractor of its kind."""
    return real_images(
        setting, extractor(setting.embedded, setting.device), image_size(pipe, setting), folder
    )


def _features(setting: Setting, net: Extractor, key: str, todo: Sequence, read: Callable) -> np.ndarray:
    kept = Path(setting.output) / f"reference-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    with suppress(OSError, EOFError, ValueError):  # missing or damaged: computed
        found = np.load(kept)
        if found.dtype == np.float32 and found.ndim == 2 and len(found) == len(todo):
            return found
    parts = [todo[at : at + 64] for at in range(0, len(todo), 64)]
    features = [
        net(np.stack([read(item) for item in part])) for part in tqdm(parts, desc="reference", leave=False)
    ]
    found = np.concatenate(features)
    partial = setting.folder() / f"{kept.stem}.{os.getpid()}.partial.npy"
    np.save(partial, found)
    partial.replace(kept)
    return found
