"""Finished stages of a run, kept in an object store too: `s3://`, `gs://`, `file://`.

An object store renames nothing, so what is valid is said last: the files of a stage are written to
`URI/STAGE/FINGERPRINT/`, then `URI/STAGE/manifest.json` names that fingerprint in one write, then
the files of an earlier one are deleted. Whoever reads meanwhile sees a whole stage or none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs
from pydantic import ValidationError

from raysys.errors import UserError
from raysys.manifest import MANIFEST, Manifest
from raysys.store import sha256_file

SCHEMES = ("s3", "gs", "file")
#: Bytes of a file that are copied at a time.
_CHUNK = 8 << 20


def checked_uri(uri: str) -> str:
    """The address, without a slash at its end of the path.

    Raises:
        ValueError: another scheme, no place, or a key inside the address.
    """
    parts = urlsplit(uri)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"'{uri}' must start with {', '.join(f'{s}://' for s in SCHEMES)}")
    if "@" in parts.netloc:
        raise ValueError("no keys inside the address: give them in the environment")
    if not (parts.netloc or parts.path.strip("/")):
        raise ValueError(f"'{uri}' names no place")
    return uri


class Mirror:
    """An object store's folder that holds finished stages of one run.

    Args:
        uri: see `checked_uri`. Further options of the store follow a question mark, such as
            `?region=eu-west-1` or `?endpoint_override=127.0.0.1:9000&scheme=http`. Keys are found
            as the store's own tools find them, in the environment or the machine's role.

    Raises:
        UserError: the address cannot be used. So do all methods, where the store does not answer.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        with self._told():
            found, path = fs.FileSystem.from_uri(checked_uri(uri))
            self._store: fs.FileSystem = found
            self._root: str = path.rstrip("/")

    def stages(self) -> list[str]:
        """Names of the stages that are there."""
        with self._told():
            selector = fs.FileSelector(self._root, allow_not_found=True)
            names = [one.base_name for one in self._store.get_file_info(selector)]
        return sorted(name for name in names if self.manifest(name) is not None)

    def manifest(self, stage: str) -> Manifest | None:
        """What is said of a stage that is there."""
        path = f"{self._root}/{stage}/{MANIFEST}"
        with self._told():
            if self._store.get_file_info(path).type != fs.FileType.File:
                return None
            with self._store.open_input_file(path) as file:
                text = file.read()
        try:
            return Manifest.model_validate_json(text)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise UserError(f"{self.uri}: {stage}/{MANIFEST} is no manifest: {problem}") from None

    def push(self, folder: Path, manifest: Manifest) -> None:
        """Keep a published stage, unless the same is there."""
        stage, mark = folder.name, manifest.fingerprint
        known = self.manifest(stage)
        if known is not None and known.outputs == manifest.outputs and known.fingerprint == mark:
            return
        place = f"{self._root}/{stage}"
        with self._told():
            self._store.create_dir(f"{place}/{mark}", recursive=True)
            fs.copy_files(
                str(folder),
                f"{place}/{mark}",
                source_filesystem=fs.LocalFileSystem(),
                destination_filesystem=self._store,
                chunk_size=_CHUNK,
            )
            self._point(place, (folder / MANIFEST).read_bytes())
            for other in self._store.get_file_info(fs.FileSelector(place)):
                if other.type == fs.FileType.Directory and other.base_name != mark:
                    self._store.delete_dir(other.path)

    def pull(self, manifest: Manifest, stage: str, folder: Path) -> None:
        """Copy a stage's files into a folder, and compare them with their hashes.

        Raises:
            UserError: a file is missing or is not what the manifest says.
        """
        folder.mkdir(parents=True)
        with self._told():
            fs.copy_files(
                f"{self._root}/{stage}/{manifest.fingerprint}",
                str(folder),
                source_filesystem=self._store,
                destination_filesystem=fs.LocalFileSystem(),
                chunk_size=_CHUNK,
            )
        for name, file in manifest.outputs.items():
            path = folder / name
            if not path.is_file() or sha256_file(path) != file.sha256:
                raise UserError(
                    f"{self.uri}: {stage}/{name} is not what its manifest says. If another "
                    f"machine is writing this stage now, try again; else delete {stage}/ there."
                )

    def _point(self, place: str, text: bytes) -> None:
        """Write the manifest that makes a stage valid, in one step."""
        path = f"{place}/{MANIFEST}"
        if isinstance(self._store, fs.LocalFileSystem):
            with self._store.open_output_stream(f"{path}.tmp") as file:
                file.write(text)
            self._store.move(f"{path}.tmp", path)
            return
        # An object appears when its stream is closed, whole.
        with self._store.open_output_stream(path) as file:
            file.write(text)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{self.uri}: {error}") from None
