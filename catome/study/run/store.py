"""Recorded results: rows in Parquet files that know how they were computed and are used again only where they
fit.

A row is found again by its *keys*: the model's fingerprint, every parameter that its values depend on, and
the version of the computation. Whatever changes one of them finds nothing and computes anew. What the values
do not depend on (batch size, output folder) is no key; what they barely depend on (device, library versions)
is provenance: one entry for each recording run, inside the Parquet file and, to be read by people, in a JSON
file beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import stat
import subprocess
import time
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

import catome
from catome.checks import check_collection, check_kind, check_number, near, shown
from catome.policy.rates import processor
from catome.study.run.claims import Claims, born, here
from catome.study.run.denoiser import denoiser, part_name
from catome.study.run.parameters import Setting

CHECKOUT = Path(__file__).resolve().parents[3]
RECORDED = CHECKOUT / "data" / "results"
"""The folder of the results that the repository ships."""

_MANY = (list, tuple, range, set, frozenset)  # what may hold several values of a key

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
"""Keys of a row about one generated image. ``image`` is its number in the study, which with ``seed`` gives
its noise."""


class Damaged(ValueError):
    """A file that is read is not whole, or belongs to something else."""


@dataclass(frozen=True)
class Table:
    """The schema of one kind of results.

    Attributes:
        name: of its file.
        version: of the computation; raised whenever its values change, so that older rows are never used
            again.
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

    SHA-256, 16 hexadecimal digits, over the configuration and every parameter and buffer of the denoising
    model, the VAE and the text encoders (as float32, so that it does not depend on the precision in which
    half-precision weights are loaded), and over the scheduler's configuration."""
    digest = hashlib.sha256()
    second = ["text_encoder_2"] if hasattr(pipe, "text_encoder_2") else []  # of Stable Diffusion XL
    for part in (part_name(pipe), "vae", "text_encoder", *second, "scheduler"):
        module = getattr(pipe, part)
        config = module.config.to_dict() if hasattr(module.config, "to_dict") else dict(module.config)
        # what says where and by whom a part was saved, and in which precision it was loaded, is no part of
        # what it computes
        skip = ("transformers_version", "dtype", "torch_dtype", "architectures")
        config = {key: config[key] for key in config if not key.startswith("_") and key not in skip}
        digest.update(f"{part} {json.dumps(config, sort_keys=True, default=str)}".encode())
        if isinstance(module, torch.nn.Module):
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(name.encode())
                digest.update(
                    tensor.detach().to("cpu", torch.float32).contiguous().view(torch.uint8).numpy().data
                )
    return digest.hexdigest()[:16]


_MATTER = ("numpy", "transformers", "tomesd", "DeepCache", "torch-fidelity", "scikit-image", "triton")
"""Packages beside torch and diffusers that a row may depend on."""


def provenance(setting: Setting, model: str) -> dict:
    """The record of where and with what something is computed: device, versions, commit, date, parameters."""
    cuda = setting.device.startswith("cuda")
    return {
        "id": uuid.uuid4().hex[:12],
        "device": torch.cuda.get_device_name(setting.device)
        if cuda
        else f"{os.cpu_count()} CPU cores, {processor()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "versions": {name: _version(name) for name in _MATTER},
        "threads": torch.get_num_threads(),
        "catome": catome.__version__,
        "commit": _commit(),
        "sources": sources(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model,
        "parameters": {
            one.name: value
            for one in fields(setting)
            if one.name not in ("output", "classes") and (value := getattr(setting, one.name)) is not None
        },
        "rows": 0,
        "wall_seconds": 0.0,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def sources(folder: Path = Path(catome.__file__).parent) -> str:
    """A name for the sources in a folder, 16 hexadecimal digits over the names and contents of its Python
    files: it tells which code ran, also where files were changed since the commit."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder).as_posix()}\0{_checksum(file.read_bytes())}\n".encode())
    return digest.hexdigest()[:16]


def _commit() -> str | None:
    """The checkout's commit, with a "+" if tracked files were changed since; None outside a checkout."""
    try:
        run = dict(cwd=CHECKOUT, capture_output=True, text=True, check=True)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **run).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno", "--", "catome"], **run
        ).stdout.strip()
        return commit + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class Store:
    """Rows of one `Table`: read from the recorded ones and from this folder's own, written to the latter.

    What is added is a file of its own in ``<folder>/<table.name>.parts``, whole or not there, with its
    checksum in its name, so any number of processes may add at once. `finish` puts all into
    ``<folder>/<table.name>.parquet`` (and what is to be read by people into ``.json``). A damaged file of the
    folder's own is set aside with a warning, and its rows are computed again.

    Args:
        table: their schema.
        folder: where new rows are kept, and looked for first.
        recorded: a folder of more rows, only read; None for none.

    Raises:
        ValueError: if a file belongs to another study, lacks a key or its provenance, or a recorded one is
            damaged, or where a file or folder of rows must be is something else; it names the file.
        TypeError: for arguments of another type.
    """

    def __init__(self, table: Table, folder: Path, recorded: Path | None = RECORDED) -> None:
        check_kind("table", table, Table, "a catome.study.run.store.Table")
        check_kind("folder", folder, (str, os.PathLike), "a path")
        check_kind("recorded", recorded, (str, os.PathLike, type(None)), "a path, or None for none")
        self.table, self.file = table, Path(folder) / f"{table.name}.parquet"
        self.parts = self.file.with_suffix(".parts")
        for place in (self.file.parent, self.parts, *([Path(recorded)] if recorded else [])):
            _check_place(place, stat.S_ISDIR, "folder")
        _check_place(self.file.with_suffix(".json"), stat.S_ISREG, "file")
        self._forget()
        self._recorded = self._runs_recorded = None
        shipped = recorded and Path(recorded) / f"{table.name}.parquet"
        if shipped and shipped.resolve() != self.file.resolve():
            self._recorded, self._runs_recorded = self._read(shipped) or (self.table.schema.empty_table(), {})
        self.refresh()

    def _forget(self) -> None:
        self._own, self._runs, self._seen, self._main = self.table.schema.empty_table(), {}, set(), None

    def refresh(self) -> None:
        """Take in what other processes have kept since."""
        while True:
            # before the file that they may go into
            names = sorted(path.name for path in self.parts.glob("*.parquet"))
            main = _state(self.file)
            try:
                if main != self._main:
                    self._forget()
                    self._main = main
                    self._take(self._read(self.file, own=True))
                for name in names:
                    if name not in self._seen:
                        part = self._read(
                            self.parts / name, own=True, checksum=name.split(".")[0].rpartition("-")[2]
                        )
                        if part is not None:
                            # it may be in the file already: whoever put it there was killed before it could
                            # remove the part. Its rows are taken all the same, for it may replace an older
                            # part; its hours count once
                            self._take((part[0], {}) if self._holds(part[0]) else part)
                        self._seen.add(name)
                return
            except FileNotFoundError:  # a part went into the file just now
                self._forget()

    def _take(self, found: tuple[pa.Table, dict] | None) -> None:
        if found is None:
            return
        rows, runs = found
        self._own = pa.concat_tables([self._own, rows])
        for name, run in runs.items():
            entry = self._runs.setdefault(name, run | {"rows": 0, "wall_seconds": 0.0})
            entry["rows"] += run["rows"]
            entry["wall_seconds"] = round(entry["wall_seconds"] + run["wall_seconds"], 1)

    def _holds(self, rows: pa.Table) -> bool:
        """Return True if rows of these runs with these keys were taken in already.

        A part goes into the file whole, so its first row tells."""
        if not len(rows) or rows["run"][0].as_py() not in self._runs:
            return False
        first = rows.slice(0, 1).to_pylist()[0]
        same = pc.equal(self._own["run"], first["run"])
        for name in self.table.keys:
            same = pc.and_(same, pc.equal(self._own[name], pa.scalar(first[name], self.table.keys[name])))
        return bool(pc.any(same).as_py())

    def _read(self, file: Path, own: bool = False, checksum: str = "") -> tuple[pa.Table, dict] | None:
        """The rows of a file and their provenance; None if there is no such file, or it is set aside."""
        if not file.exists() and not checksum:
            return None
        _check_place(file, stat.S_ISREG, "file")
        data = file.read_bytes()
        sums = [checksum] if checksum else _sums_beside(file)
        try:
            if sums and _checksum(data) not in sums:
                raise pa.ArrowInvalid("its checksum is not that of what was written")
            found = pq.read_table(pa.BufferReader(data))
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            if not own:
                raise Damaged(
                    f"{file} is not a whole Parquet file ({reason}); get it from the repository again"
                ) from None
            aside = file.with_name(f"{file.name}.{_checksum(data)[:8]}.damaged")
            file.replace(aside)
            warnings.warn(
                f"{file} is not a whole Parquet file ({reason}): set aside as {aside.name}; its rows are "
                "computed again",
                stacklevel=2,
            )
            return None
        runs = _runs_of(file, found)
        if not found.schema.equals(self.table.schema):
            columns = set(found.column_names)
            shuffled = found.column_names != self.table.schema.names and columns == set(
                self.table.schema.names
            )
            if "version" not in columns or not columns & set(self.table.values) or shuffled:
                raise Damaged(
                    f"{file} holds other columns than {self.table.schema.names}: it belongs to another study"
                )
            return None  # an earlier version's columns: never used again
        _check_keys(f"{file}: rows", found, self.table)
        return found.replace_schema_metadata(None), runs

    @property
    def runs(self) -> dict[str, dict]:
        """The provenance of every row that can be found, by the ``run`` column."""
        return (self._runs_recorded or {}) | self._runs

    def runs_of(self, rows: pd.DataFrame) -> dict[str, dict]:
        """The provenance of these rows, by their ``run`` column."""
        wanted = set(rows["run"])
        return {name: run for name, run in self.runs.items() if name in wanted}

    def find(self, **keys) -> pd.DataFrame:
        """The rows whose keys have these values (or one of them, where a list is given); own rows before
        recorded ones.

        Raises:
            KeyError: for a name that is no key.
            TypeError: for what is neither one value nor a list of values, or of another type than the key.
        """
        wanted = {"version": self.table.version, **keys}
        for name, value in wanted.items():
            if name not in self.table.keys:
                known = f"the keys are {', '.join(self.table.keys)}"
                raise KeyError(
                    f"{name!r} is no key of {self.table.name}{near(name, self.table.keys)}; {known}"
                )
            if not (pd.api.types.is_scalar(value) or isinstance(value, _MANY)):
                raise TypeError(
                    f"{name}={shown(value)} must be a value or a list of values, not {type(value).__name__}"
                )
        parts = []
        for held in (self._recorded, self._own):
            if held is None:
                continue
            parts.append(held.filter(self._matches(wanted)))
        # of rows with the same keys the last that was written counts
        return (
            pa.concat_tables(parts)
            .to_pandas()
            .drop_duplicates(list(self.table.keys), keep="last", ignore_index=True)
        )

    def _matches(self, wanted: Mapping) -> pc.Expression:
        keep = pc.scalar(True)
        for name, value in wanted.items():
            values = list(value) if isinstance(value, _MANY) else [value]
            try:
                keep = keep & pc.field(name).isin(pa.array(values, self.table.keys[name]))
            except (pa.ArrowException, OverflowError):
                raise TypeError(f"{name}={shown(value)} must be of type {self.table.keys[name]}") from None
        return keep

    def add(self, rows: Sequence[Mapping], run: dict, seconds: float) -> None:
        """Keep rows, computed in ``run`` (see `provenance`) in ``seconds``; a row with the same keys is
        replaced.

        Whoever is killed has kept all of them or none.

        Raises:
            ValueError, TypeError, KeyError: for rows or a run that do not fit, naming the column, and the row
                or the value; nothing is written then.
            OSError: naming the file that could not be written, and why.
        """
        rows = check_collection("rows", rows, "a list of rows")
        if not rows:
            return
        _check_run(run)
        seconds = check_number("seconds", seconds, 0.0, 1e9)
        new = self._table_of(rows, run["id"])
        runs = {run["id"]: run | {"rows": len(new), "wall_seconds": round(seconds, 1)}}
        data = _packed(new, runs)
        # in the order in which they were written
        name = f"{time.time_ns():020d}-{run['id']}-{_checksum(data)}.parquet"
        write_whole(self.parts / name, data)
        self._seen.add(name)
        self._take((new, runs))

    def _table_of(self, rows: list[Mapping], run: str) -> pa.Table:
        """The rows as a table of this schema."""
        columns = self.table.schema.names
        for i, row in enumerate(rows):
            check_kind(f"rows[{i}]", row, Mapping, "a mapping of columns to values")
            unknown = [name for name in row if name not in columns]
            if unknown:
                hint, known = near(str(unknown[0]), columns), ", ".join(columns)
                raise KeyError(
                    f"rows[{i}]: {unknown[0]!r} is no column of {self.table.name}{hint}; it has {known}"
                )
            missing = [name for name in columns if name not in (*row, "version", "run")]
            if missing:
                raise KeyError(f"rows[{i}] lacks {missing[0]!r}, a column of {self.table.name}")
        frame = pd.DataFrame([{"version": self.table.version, **row, "run": run} for row in rows])
        try:
            new = pa.Table.from_pandas(
                frame, self.table.schema, preserve_index=False
            ).replace_schema_metadata(None)
        except (pa.ArrowException, OverflowError) as error:
            reason = "; ".join(" ".join(str(part).split()) for part in error.args)
            raise ValueError(f"rows do not fit the columns of {self.table.name}: {reason}") from None
        _check_keys("rows", new, self.table)
        return new

    def gather(self, folder: Path) -> int:
        """Take over the rows that other processes kept in ``folder``, with their provenance; how many there
        were.

        Rows with the same keys are replaced, so gathering twice changes nothing.

        Raises:
            ValueError: as `Store` itself.
        """
        other = Store(self.table, folder, None)
        if len(other._own):
            self._runs |= other._runs
            self._own = pa.concat_tables([self._own, other._own])
            self._write()
        return len(other.find())

    def finish(self) -> None:
        """Put what was added into one file, unless other processes are at work in this folder: then the last
        of them does."""
        claims = Claims(self.file.parent)
        name = f"the file {self.file.name}"
        if not self.parts.is_dir() or claims.others() or not claims.take(name):
            return
        try:
            self.refresh()
            self._write()
        finally:
            claims.release(name)

    def _write(self) -> None:
        """The file of all rows, then no parts: whoever is killed between the two has some rows twice, which
        are one."""
        merged = [self.parts / name for name in self._seen]
        keys = self._own.select(list(self.table.keys)).to_pandas()
        self._own = self._own.filter(pa.array(~keys.duplicated(keep="last").to_numpy(bool))).combine_chunks()
        alive = set(self._own["run"].unique().to_pylist())
        self._runs = {name: run for name, run in self._runs.items() if name in alive}
        self._own = self._own.sort_by([(name, "ascending") for name in self.table.keys])
        data = _packed(self._own, self._runs)
        beside = {
            "study": self.table.name,
            "version": self.table.version,
            # of this file, and of the one it is about to replace
            "sha256": [_checksum(data), *_sums_beside(self.file)[:1]],
            "columns": {field.name: str(field.type) for field in self.table.schema},
            "runs": list(self._runs.values()),
        }
        write_whole(self.file.with_suffix(".json"), (json.dumps(beside, indent=1) + "\n").encode())
        write_whole(self.file, data)
        self._main = _state(self.file)
        for path in (*merged, *_left_behind(self.parts), *_left_behind(self.file.parent)):
            path.unlink(missing_ok=True)
        if self.parts.is_dir() and not any(self.parts.iterdir()):
            self.parts.rmdir()


def _check_place(path: Path, right: Callable[[int], bool], kind: str) -> None:
    """Refuse what is at ``path`` if it is not of a kind; it looks once, for other processes may take it
    away."""
    with suppress(FileNotFoundError):
        if not right(path.stat().st_mode):
            raise Damaged(f"{path} must be a {kind}, or not be there, and is something else: move it away")


def _check_keys(name: str, rows: pa.Table, table: Table) -> None:
    """A row without one of its keys would never be found again."""
    for key in table.keys:
        if rows[key].null_count:
            at = rows[key].is_null().to_pylist().index(True)
            raise ValueError(
                f"{name}[{at}] has no {key} (None or NaN), a key of {table.name}: each row needs all of its "
                "keys"
            )


def _check_run(run) -> None:
    """Provenance must be something that can be written as JSON, with an id that can be part of a file's
    name."""
    check_kind("run", run, Mapping, "a dict, as catome.study.run.store.provenance makes it")
    if not isinstance(run.get("id"), str) or not re.fullmatch(r"[\w-]+", run["id"]):
        raise ValueError(f"run['id']={shown(run.get('id'))} must be a text of letters, digits, _ and -")
    for name, value in run.items():
        try:
            json.dumps({name: value}, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            allowed = (
                "text, finite numbers, True, False, None, or lists and dicts of them, under names that are "
                "text"
            )
            raise TypeError(
                f"run[{name!r}]={shown(value)} cannot be written as JSON: it must be {allowed}"
            ) from None


def _runs_of(file: Path, rows: pa.Table) -> dict[str, dict]:
    """The provenance in a file of rows."""
    try:
        runs = json.loads((rows.schema.metadata or {}).get(b"runs", b"{}"))
        good = all({"rows", "wall_seconds"} <= set(run) for run in runs.values())
    except (ValueError, AttributeError, TypeError):
        good = False
    if not good:
        raise Damaged(
            f"{file} does not say how its rows were computed: its metadata 'runs' must be a JSON object of "
            "runs"
        )
    return runs


def _left_behind(folder: Path) -> list[Path]:
    """The files that dead processes of this machine had not written to the end; of other machines nobody can
    ask."""
    found = [
        (path, re.fullmatch(r"\..*\.[0-9a-f]{8}\.(\w+)\.(\d+)\.partial", path.name))
        for path in folder.glob(".*.partial")
    ]
    return [path for path, about in found if about and about[1] == _machine() and born(int(about[2])) is None]


def _machine() -> str:
    """A short name of this machine, in which a process number means something."""
    return hashlib.sha256(here().encode()).hexdigest()[:8]


def _packed(rows: pa.Table, runs: Mapping) -> bytes:
    sink = pa.BufferOutputStream()
    about = rows.replace_schema_metadata({"runs": json.dumps(runs, indent=1)})
    pq.write_table(about, sink, compression="zstd", compression_level=9)
    return sink.getvalue().to_pybytes()


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _sums_beside(file: Path) -> list[str]:
    """The checksums that a file of rows may have, by the JSON file beside it; none if that does not say."""
    try:
        beside = json.loads(file.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return []
    sums = beside.get("sha256") if isinstance(beside, dict) else None
    return sums if isinstance(sums, list) else []


def _state(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def write_whole(file: Path, data: bytes) -> None:
    """Write a file in one step, folders included: whoever reads finds the old one or all of the new.

    Raises:
        OSError: naming the file, and why it could not be written; what was there before still is.
    """
    partial = file.with_name(f".{file.name[:40]}.{uuid.uuid4().hex[:8]}.{_machine()}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(file)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        why = error.strerror or str(error)
        raise OSError(
            error.errno, f"{file} could not be written ({why}); what was kept before is still there"
        ) from None


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


def prompts_of(setting: Setting, images: int) -> dict:
    """The keys of a row about the first ``images`` images together: how many, and their prompts with newlines
    between."""
    return {"images": images, "prompt": "\n".join(setting.prompts[:images])}


def image_size(pipe, setting: Setting) -> tuple[int, int]:
    """``(height, width)`` in pixels of what the setting generates: its own, or the model's."""
    size = denoiser(pipe).config.sample_size * pipe.vae_scale_factor
    return setting.height or size, setting.width or size


def of_these_images(rows: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    """The rows of images ``0 ... setting.images - 1`` with the prompts that the setting gives them."""
    prompts = pd.Series(setting.prompts)
    rows = rows[rows["image"] < setting.images]
    return rows[rows["prompt"] == rows["image"].map(prompts)].sort_values(
        "image", kind="stable", ignore_index=True
    )


def computed_on(runs: Mapping[str, dict]) -> str:
    """One sentence that says where, when and with what rows were computed."""
    words = []
    for device in dict.fromkeys(run["device"] for run in runs.values()):
        here = [run for run in runs.values() if run["device"] == device]
        days = sorted({run["date"][:10] for run in here})
        versions = ", ".join(
            dict.fromkeys(f"torch {run['torch']}, diffusers {run['diffusers']}" for run in here)
        )
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
