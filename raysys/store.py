"""Read and write files: JSON, parquet and safetensors, each by temporary file and rename.

Tensors are safetensors, everything else is JSON or parquet; nothing is ever pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, NonNegativeInt, TypeAdapter, ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from raysys.errors import UserError

#: Types that `map_arrays` knows, by their names in a safetensors file.
_DTYPES = {"F32": "<f4", "F16": "<f2", "U8": "u1", "BOOL": "?", "I32": "<i4", "I64": "<i8"}


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON-serialisable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes; a missing one is a UserError naming it."""
    if not path.is_file():
        raise UserError(f"{path} does not exist or is not a file.")
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
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
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
