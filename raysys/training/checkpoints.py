"""Where the checkpoints of a training are kept: by Ray Train, or in a folder of this process."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Protocol

from raysys.training.workers import Workers


class Loop(Protocol):
    """A training that can be stopped after any epoch.

    Attributes:
        history: one row an epoch, with `epoch` and the figure that `watched` names, or null.
    """

    workers: Workers
    watched: ClassVar[str]
    history: list[dict[str, float | None]]

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint of the same run."""


class Checkpoints(Protocol):
    """Where the checkpoints of one training are kept."""

    def newest(self) -> AbstractContextManager[str | Path] | None:
        """The folder of the newest checkpoint, for as long as it is read."""

    def keep(self, loop: Loop, metrics: dict[str, Any]) -> None:
        """Keep a checkpoint. All workers call."""


class RayCheckpoints:
    """Of a worker of Ray Train."""

    def newest(self) -> AbstractContextManager[str | Path] | None:
        """See `Checkpoints`."""
        import ray.train

        found = ray.train.get_checkpoint()
        return None if found is None else found.as_directory()

    def keep(self, loop: Loop, metrics: dict[str, Any]) -> None:
        """See `Checkpoints`."""
        import ray.train

        with tempfile.TemporaryDirectory() as folder:
            loop.save(Path(folder))
            first = loop.workers.first
            kept = ray.train.Checkpoint.from_directory(folder) if first else None
            ray.train.report(metrics, checkpoint=kept)


class FolderCheckpoints:
    """Of a training in this process.

    Args:
        folder: for this training alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest(self) -> AbstractContextManager[str | Path] | None:
        """See `Checkpoints`."""
        kept = self._kept()
        return nullcontext(kept[-1]) if kept else None

    def keep(self, loop: Loop, metrics: dict[str, Any]) -> None:
        """See `Checkpoints`."""
        before = self._kept()
        work = self._folder / ".work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        loop.save(work)
        # One that was made again after a crash is as good as the first.
        shutil.rmtree(self._folder / f"{metrics['step']:012d}", ignore_errors=True)
        os.replace(work, self._folder / f"{metrics['step']:012d}")
        for folder in before:
            shutil.rmtree(folder, ignore_errors=True)

    def _kept(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*"))
