"""Models made to harm whoever serves them: each is refused, nothing of it runs, nothing is served.

Whoever writes a model writes its manifest too, so most of these carry hashes that are right.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from toy_run import ITEMS, write_run

from raysys.errors import UserError
from raysys.manifest import MANIFEST
from raysys.serving.holder import Holder
from raysys.serving.published import VERSIONS, publish
from raysys.serving.settings import ServeSettings
from raysys.store import read_json, sha256_file, write_arrays, write_json, write_table

EMBEDDINGS = "train/m/embeddings.safetensors"
USERS = np.array([[1, 0], [0, 1], [9, 9]], np.float32)
Harm = Callable[[Path], None]


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (open, (self.trace, "w"))


def pickled(run: Path) -> bytes:
    return pickle.dumps(Payload(str(run.parent / "trace")))


def instead(name: str, content: Callable[[Path], bytes]) -> Harm:
    """Other bytes in a file's place."""
    return lambda run: (run / name).write_bytes(content(run)) and None


def raw(header: object, data: bytes = b"\0" * 8) -> Callable[[Path], bytes]:
    """A safetensors file with a header of one's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda _: struct.pack("<Q", len(text)) + text + data


def vectors(users: np.ndarray, items: np.ndarray) -> Harm:
    return lambda run: write_arrays(run / EMBEDDINGS, {"users": users, "items": items})


def says(name: str, **values: object) -> Harm:
    """Other values in a JSON file."""
    return lambda run: write_json(run / name, {**read_json(run / name), **values})


def torch_file(run: Path) -> None:
    with zipfile.ZipFile(run / EMBEDDINGS, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(run))


def linked(name: str) -> Harm:
    def harm(run: Path) -> None:
        outside = run.parent / "outside"
        (run / name).rename(outside)
        (run / name).symlink_to(outside)

    return harm


def items_table(table: dict[str, list[object]]) -> Harm:
    return lambda run: write_table(run / "data/items.parquet", pa.table(table))


def fifo(run: Path) -> None:
    (run / EMBEDDINGS).unlink()
    os.mkfifo(run / EMBEDDINGS)


F32 = {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]}
FOUR = ["a", "b", "c", "d"]
HARMS: dict[str, Harm] = {
    "pickle for embeddings": instead(EMBEDDINGS, pickled),
    "torch zip for embeddings": torch_file,
    "pickle for model.json": instead("train/m/model.json", pickled),
    "pickle for the table": instead("data/items.parquet", pickled),
    "pickle for the pointer": instead("recommend/model.json", pickled),
    "name leads out": says("recommend/model.json", model="../../outside"),
    "name is absolute": says("recommend/model.json", model="/etc"),
    "stage leads out": says("recommend/model.json", stage="../.."),
    "name is no text": says("recommend/model.json", model=["m"]),
    "huge header": instead(EMBEDDINGS, lambda _: struct.pack("<Q", 1 << 62) + b"{}"),
    "header beyond the file": instead(EMBEDDINGS, lambda _: struct.pack("<Q", 500) + b"{}"),
    "header is no JSON": instead(EMBEDDINGS, raw(b"{not json")),
    "deep header": instead(EMBEDDINGS, raw(b"[" * 100_000)),
    "offsets beyond the file": instead(
        EMBEDDINGS, raw({"users": {**F32, "data_offsets": [0, 1 << 40]}, "items": F32})
    ),
    "offsets overlap": instead(EMBEDDINGS, raw({"users": F32, "items": F32})),
    "negative shape": instead(EMBEDDINGS, raw({"users": {**F32, "shape": [-2, -1]}})),
    "overflowing shape": instead(EMBEDDINGS, raw({"users": {**F32, "shape": [1 << 62, 8]}})),
    "other type": instead(EMBEDDINGS, raw({"users": {**F32, "dtype": "F8_E5M2"}})),
    "truncated": instead(EMBEDDINGS, lambda run: (run / EMBEDDINGS).read_bytes()[:-4]),
    "empty": instead(EMBEDDINGS, lambda _: b""),
    "too few users": vectors(USERS[:2], ITEMS),
    "too few items": vectors(USERS, ITEMS[:2]),
    "widths differ": vectors(USERS, np.hstack([ITEMS, ITEMS])),
    "not a number": vectors(USERS, np.full_like(ITEMS, np.nan)),
    "infinite": vectors(np.full_like(USERS, np.inf), ITEMS),
    "an unknown kind of model": says("train/m/model.json", model={"backbone": "os.system"}),
    "a further key": says("train/m/model.json", code="import os"),
    "deep JSON": instead("train/m/model.json", lambda _: b"[" * 100_000),
    "items twice": items_table({"item_id": ["a", "a", "c", "d"], "title": FOUR}),
    "an item less": items_table({"item_id": FOUR[:3], "title": FOUR[:3]}),
    "ids are numbers": items_table({"item_id": [1, 2, 3, 4], "title": FOUR}),
    "a truncated table": instead(
        "data/items.parquet", lambda run: (run / "data/items.parquet").read_bytes()[:-9]
    ),
    "a linked file": linked(EMBEDDINGS),
    "a linked folder": linked("train/m"),
    "a pipe": fifo,
}


def sealed(run: Path) -> None:
    """Hashes that fit what is there, as an attacker would write them."""
    for stage in ("data", "train", "recommend"):
        manifest = read_json(run / stage / MANIFEST)
        manifest["outputs"] = {
            path.relative_to(run / stage).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": sha256_file(path),
            }
            for path in sorted((run / stage).rglob("*"))
            if path.is_file() and path.name != MANIFEST
        }
        write_json(run / stage / MANIFEST, manifest)


def test_there_are_enough() -> None:
    assert len(HARMS) >= 20


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", HARMS)
def test_it_is_refused(name: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    models = tmp_path / "models"
    HARMS[name](run)
    sealed(run)
    with pytest.raises(UserError):
        publish(run, models)
    assert not (models / "current.json").exists()
    assert not list(models.glob("versions/*"))
    # Put where it is served without having been published, it does not take the model's place.
    good = write_run(tmp_path / "good")
    served = publish(good, models).version
    holder = Holder(ServeSettings(run=models))
    run.rename(models / VERSIONS / "harm")
    write_json(models / "current.json", {"version": "harm", "previous": served})
    assert not holder.look()
    assert holder.served.version == served
    assert not (tmp_path / "trace").exists(), "something was unpickled"
