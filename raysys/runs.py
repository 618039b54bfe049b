"""Run directories: one folder and one manifest a stage, published whole or not at all.

A stage writes into `RUN/.STAGE.work`, which is renamed to `RUN/STAGE` when it
has finished, with `manifest.json` inside. Its *fingerprint* is a hash of its name,
its settings and the output hashes of the stages it reads: the same fingerprint
means the same work, so a finished stage is skipped and an interrupted one goes
on from the files in its work folder.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from raysys.errors import UserError
from raysys.manifest import MANIFEST, Manifest, OutputFile, StageReport, read_manifest, versions
from raysys.mirror import Mirror
from raysys.observe import get_logger
from raysys.store import fingerprint, replace_file, sha256_file, write_json

_MARK = ".fingerprint"
logger = get_logger(__name__)


class RunDirectory:
    """One run: `ROOT/STAGE/` for each finished stage, `ROOT/.STAGE.work/` for the open one.

    Args:
        root: the run's folder.
        reuse: other runs, and folders of runs: a stage that has finished in one of them is
            taken from there where it is the same work.
        mirror: keeps finished stages too, and what it holds is not done again.
    """

    def __init__(
        self, root: Path | str, reuse: Sequence[Path] = (), mirror: Mirror | None = None
    ) -> None:
        self.root = Path(root).resolve()
        self.reuse = tuple(folder.resolve() for folder in reuse)
        self.mirror = mirror

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
        if manifest is None and self.mirror is not None:
            manifest = self.mirror.manifest(stage)
            if manifest is not None:
                pull(self.mirror, manifest, self.path(stage))
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
        return run_stage(self.path(stage), stage, config, hashes, body, self.reuse, self.mirror)


def run_stage(
    target: Path,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    body: Callable[[Path], StageReport],
    reuse: Sequence[Path] = (),
    mirror: Mirror | None = None,
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
        mirror: see `RunDirectory`.

    Returns:
        The manifest, and whether the work was skipped.

    Raises:
        UserError: `target` holds files that are not a stage's output.
    """
    mark = fingerprint({"stage": stage, "config": dict(config), "inputs": dict(inputs)})
    done = read_manifest(target)
    if done is not None and done.fingerprint == mark:
        logger.info("%s: finished before, skipped", stage)
        if mirror is not None:
            mirror.push(target, done)
        return done, True
    if done is None and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not the output of a stage: choose another folder.")
    if mirror is not None:
        kept = mirror.manifest(target.name)
        if kept is not None and kept.fingerprint == mark:
            pull(mirror, kept, target)
            return kept, True
    if not reuse:
        manifest = _fill(target, stage, config, inputs, mark, body)
        if mirror is not None:
            mirror.push(target, manifest)
        return manifest, False
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


def pull(mirror: Mirror, manifest: Manifest, target: Path) -> None:
    """Publish a finished stage of a mirror as `target`.

    Raises:
        UserError: it cannot be read, or is not what its manifest says.
    """
    logger.info("%s: finished before, copied from %s", target.name, mirror.uri)
    work = target.with_name(f".{target.name}.pulled")
    shutil.rmtree(work, ignore_errors=True)
    try:
        mirror.pull(manifest, target.name, work)
        _publish(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def pull_run(uri: str, root: Path) -> list[str]:
    """Copy the stages of a mirror that a run has not; returns the names of all it holds.

    Raises:
        UserError: no such mirror, none in it, or another process is working in the run.
    """
    mirror = Mirror(uri)
    stages = mirror.stages()
    if not stages:
        raise UserError(f"{uri} holds no finished stage.")
    with RunDirectory(root).lock():
        for stage in stages:
            manifest, target = mirror.manifest(stage), root.resolve() / stage
            here = read_manifest(target)
            if manifest is not None and (here is None or here.fingerprint != manifest.fingerprint):
                pull(mirror, manifest, target)
    return stages


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
