"""Recorded results: rows in Parquet files that know how they were computed and are used again only where they fit.

A row is found again by its *keys*: the model's fingerprint, every parameter that its values depend on, and the version of
the computation. Whatever changes one of them finds nothing and computes anew. What the values do not depend on (batch
size, output folder) is no key; what they barely depend on (device, library versions) is provenance: one entry for each
recording run, inside the Parquet file and, to be read by people, in a JSON file beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import catome
from catome.study.parameters import Setting

CHECKOUT = Path(__file__).resolve().parents[2]
RECORDED = CHECKOUT / "data" / "results"
"""What the repository ships."""

SHARED_KEYS = {
    "model": pa.string(),
    "version": pa.int16(),
    "prompt": pa.string(),
    "image": pa.int32(),
    "seed": pa.int64(),
    "steps": pa.int16(),
    "guidance": pa.float64(),
    "guidance_rescale": pa.float64(),
    "height": pa.int32(),
    "width": pa.int32(),
    "dtype": pa.string(),
}
"""Keys of a row about one generated image. ``image`` is its number in the study, which with ``seed`` gives its noise."""


@dataclass(frozen=True)
class Table:
    """The schema of one kind of results.

    Attributes:
        name: of its file.
        version: of the computation; raised whenever its values change, so that older rows are never used again.
        keys: columns that a row is found by, with their types.
        values: columns that were computed, with their types.
    """

    name: str
    version: int
    keys: Mapping[str, pa.DataType]
    values: Mapping[str, pa.DataType]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([*self.keys.items(), *self.values.items(), ("run", pa.string())])


def fingerprint(pipe) -> str:
    """A name for a pipeline's weights and configuration: equal exactly when both are.

    SHA-256, 16 hexadecimal digits, over the configuration and every parameter and buffer of the U-Net, the VAE and the text
    encoder (as float32, so that it does not depend on the precision in which half-precision weights are loaded), and over the
    scheduler's configuration."""
    digest = hashlib.sha256()
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        module = getattr(pipe, part)
        config = module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)
        # what says where and by whom a part was saved, and in which precision it was loaded, is no part of what it computes
        skip = ("transformers_version", "dtype", "torch_dtype", "architectures")
        config = {key: config[key] for key in config if not key.startswith("_") and key not in skip}
        digest.update(f"{part} {json.dumps(config, sort_keys=True, default=str)}".encode())
        if isinstance(module, torch.nn.Module):
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().to("cpu", torch.float32).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def provenance(setting: Setting, model: str) -> dict:
    """Where and with what something is computed: device, versions, commit, date, parameters."""
    cuda = setting.device.startswith("cuda")
    return {
        "id": uuid.uuid4().hex[:12],
        "device": torch.cuda.get_device_name(setting.device) if cuda else f"{os.cpu_count()} CPU cores, {processor()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": __import__("diffusers").__version__,
        "catome": catome.__version__,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model,
        "parameters": {
            name: value
            for name, value in vars(setting).items()
            if name not in ("own", "output", "classes") and value is not None
        },
        "rows": 0,
        "wall_seconds": 0.0,
    }


def processor() -> str:
    """What this machine computes on, when it is the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The checkout's commit, with a "+" if tracked files were changed since; None outside a checkout."""
    try:
        run = dict(cwd=CHECKOUT, capture_output=True, text=True, check=True)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **run).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "-uno", "--", "catome"], **run).stdout.strip()
        return commit + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class Store:
    """Rows of one `Table`: read from the recorded ones and from this run's own, written to the latter.

    Args:
        table: their schema.
        folder: where new rows are kept (``<table.name>.parquet`` and ``.json``), and looked for first.
        recorded: a folder of more rows, only read; None for none.

    Raises:
        ValueError: if a file holds another schema or is no whole Parquet file; it names the file.
    """

    def __init__(self, table: Table, folder: Path, recorded: Path | None = RECORDED) -> None:
        self.table, self.file = table, Path(folder) / f"{table.name}.parquet"
        self._own, self._runs = self._read(self.file)
        self._recorded = self._runs_recorded = None
        shipped = recorded and Path(recorded) / f"{table.name}.parquet"
        if shipped and shipped.resolve() != self.file.resolve():
            self._recorded, self._runs_recorded = self._read(shipped)

    def _read(self, file: Path) -> tuple[pa.Table, dict]:
        if not file.exists():
            return self.table.schema.empty_table(), {}
        try:
            found = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{file} is not a whole Parquet file ({error}); remove it and its rows are computed again"
            ) from None
        runs = json.loads((found.schema.metadata or {}).get(b"runs", b"{}"))
        if not found.schema.equals(self.table.schema):
            if (found.column_names[: len(self.table.keys)] != list(self.table.keys)) or "version" not in found.column_names:
                raise ValueError(f"{file} holds other columns than {self.table.schema.names}: it belongs to another study")
            return self.table.schema.empty_table(), {}  # an earlier version's columns: never used again
        return found.replace_schema_metadata(None), runs

    @property
    def runs(self) -> dict[str, dict]:
        """The provenance of every row that can be found, by the ``run`` column."""
        return (self._runs_recorded or {}) | self._runs

    def find(self, **keys) -> pd.DataFrame:
        """The rows whose keys have these values (or one of them, where a list is given); own rows before recorded ones.

        Raises:
            KeyError: for a name that is no key.
        """
        wanted = {"version": self.table.version, **keys}
        for name in wanted:
            if name not in self.table.keys:
                raise KeyError(f"{name!r} is no key of {self.table.name}; the keys are {', '.join(self.table.keys)}")
        parts = []
        for held in (self._own, self._recorded):
            if held is None:
                continue
            frame = held.select(list(wanted)).to_pandas()
            keep = pd.Series(True, index=frame.index)
            for name, value in wanted.items():
                many = isinstance(value, (list, tuple, range, set, frozenset))
                keep &= frame[name].isin(list(value)) if many else frame[name] == value
            parts.append(held.filter(pa.array(keep.to_numpy(bool))))
        return pa.concat_tables(parts).to_pandas().drop_duplicates(list(self.table.keys), ignore_index=True)

    def add(self, rows: Sequence[Mapping], run: dict, seconds: float) -> None:
        """Keep rows, computed in ``run`` (see `provenance`) in ``seconds``; a row with the same keys is replaced.

        The file is replaced in one step: whoever is killed has the old rows or all of the new."""
        if not rows:
            return
        frame = pd.DataFrame([{"version": self.table.version, **row, "run": run["id"]} for row in rows])
        entry = self._runs.setdefault(run["id"], dict(run))
        entry["rows"], entry["wall_seconds"] = entry["rows"] + len(frame), round(entry["wall_seconds"] + seconds, 1)
        self._put(pa.Table.from_pandas(frame, self.table.schema, preserve_index=False))

    def gather(self, folder: Path) -> int:
        """Take over the rows that another process kept in ``folder``, with their provenance; how many there were.

        Rows with the same keys are replaced, so gathering twice changes nothing.

        Raises:
            ValueError: as `Store` itself, if the folder's file is no whole file of this table.
        """
        rows, runs = self._read(Path(folder) / self.file.name)
        if len(rows):
            self._runs |= runs
            self._put(rows)
        return len(rows)

    def _put(self, new: pa.Table) -> None:
        old, keys = self._own, list(self.table.keys)
        if len(old):
            taken = set(new.select(keys).to_pandas().itertuples(index=False, name=None))
            keep = [row not in taken for row in old.select(keys).to_pandas().itertuples(index=False, name=None)]
            old = old.filter(pa.array(keep))
        self._own = pa.concat_tables([old, new.replace_schema_metadata(None)])
        self._write()

    def _write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        alive = set(self._own["run"].unique().to_pylist())
        self._runs = {name: run for name, run in self._runs.items() if name in alive}
        about = json.dumps(self._runs, indent=1)
        partial = self.file.with_suffix(f".{os.getpid()}.partial")
        stored = self._own.replace_schema_metadata({"runs": about})
        pq.write_table(stored, partial, compression="zstd", compression_level=9)
        partial.replace(self.file)
        beside = {
            "study": self.table.name,
            "version": self.table.version,
            "columns": self._columns(),
            "runs": list(self._runs.values()),
        }
        partial.write_text(json.dumps(beside, indent=1) + "\n")
        partial.replace(self.file.with_suffix(".json"))

    def _columns(self) -> dict[str, str]:
        return {field.name: str(field.type) for field in self.table.schema}


def shared_keys(pipe, setting: Setting) -> dict:
    """The keys that all images of a study have in common, for `Store.find`."""
    height, width = image_size(pipe, setting)
    return {
        "model": fingerprint(pipe),
        "seed": setting.seed,
        "steps": setting.steps,
        "guidance": setting.guidance,
        "guidance_rescale": setting.guidance_rescale,
        "height": height,
        "width": width,
        "dtype": setting.dtype,
    }


def image_keys(setting: Setting, image: int) -> dict:
    """The keys of one image; all others are in `shared_keys`."""
    return {"prompt": setting.prompts[image], "image": image}


def image_size(pipe, setting: Setting) -> tuple[int, int]:
    """``(height, width)`` in pixels of what the setting generates: its own, or the model's."""
    size = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return setting.height or size, setting.width or size


def of_these_images(rows: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """The rows of images ``0 ... setting.images - 1`` with the prompts that the setting gives them."""
    prompts = pd.Series(setting.prompts)
    rows = rows[rows["image"] < setting.images]
    return rows[rows["prompt"] == rows["image"].map(prompts)].sort_values("image", kind="stable", ignore_index=True)


def computed_on(runs: Mapping[str, dict]) -> str:
    """One sentence that says where, when and with what rows were computed."""
    words = []
    for device in dict.fromkeys(run["device"] for run in runs.values()):
        here = [run for run in runs.values() if run["device"] == device]
        days = sorted({run["date"][:10] for run in here})
        versions = ", ".join(dict.fromkeys(f"torch {run['torch']}, diffusers {run['diffusers']}" for run in here))
        minutes = sum(run["wall_seconds"] for run in here) / 60
        took = f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.0f} minutes"
        span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
        words.append(f"{device} ({span}; {versions}; {took})")
    return f"Computed on {' and on '.join(words)}." if words else ""


class Stopwatch:
    """Seconds since the last ``lap()``."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return seconds
