"""Published models: checked copies of runs, which of them is served, and the way back.

    FOLDER/current.json        the version that is served, and the one before it
    FOLDER/versions/VERSION/   the stages of a run that an endpoint reads

Replicas look at `current.json` and swap the model in their memory, so that no request fails.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from raysys.errors import UserError
from raysys.manifest import MANIFEST, read_manifest
from raysys.runs import RunDirectory
from raysys.serving.card import CARD_FILE, CARD_PAGE, card_of, card_text
from raysys.serving.shelf import Shelf
from raysys.stages.recommend import MODEL_FILE
from raysys.store import fingerprint, read_json, sha256_file, write_json

POINTER, VERSIONS = "current.json", "versions"


class Pointer(BaseModel):
    """`current.json`."""

    model_config = ConfigDict(extra="forbid")

    version: str
    previous: str | None = None


def served_run(folder: Path) -> tuple[str, Path]:
    """The version that is served from a folder, and its run: a run serves itself.

    Raises:
        UserError: no folder, a broken pointer, or one to a version that is not there.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give a finished run, or one of published models.")
    if not (folder / POINTER).is_file():
        return "", folder
    version = _pointer(folder).version
    run = folder / VERSIONS / version
    if not version or Path(version).name != version or not run.is_dir():
        raise UserError(f"{folder / POINTER} names version '{version}', which is not there.")
    return version, run


def publish(run: Path, folder: Path, floors: Mapping[str, float] | None = None) -> Pointer:
    """Check a run and serve it from `folder` from now on.

    Args:
        run: a run directory with a model and lists.
        folder: of published models; it is created.
        floors: metric → least value that the model must have in `evaluate`, such as recall@20.

    Raises:
        UserError: a file is not what its manifest says, a link, a broken model, a smoke request
            without an answer, or a metric below its floor. What is served stays as it is.
    """
    marks = verified(run)
    _reach_floors(run, floors or {})
    _smoke(Shelf(run))
    version = fingerprint(marks)[:16]
    target = folder / VERSIONS / version
    if not target.is_dir():
        work = target.with_name(f".{version}.{os.getpid()}.work")
        shutil.rmtree(work, ignore_errors=True)
        try:
            for stage in marks:
                shutil.copytree(run / stage, work / stage)
            # What was copied is what was checked.
            if {stage: _checked(work / stage) for stage in marks} != marks:
                raise UserError(f"{run} changed while it was published: try again.")
            card = card_of(run)
            write_json(work / CARD_FILE, card)
            (work / CARD_PAGE).write_text(card_text(card), encoding="utf-8")
            os.replace(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    before = _pointer(folder) if (folder / POINTER).is_file() else None
    if before is not None and before.version == version:
        return before
    return _point(folder, Pointer(version=version, previous=before.version if before else None))


def verified(run: Path) -> dict[str, str]:
    """The hashes of the stages that an endpoint reads, once their files are what they should be.

    Raises:
        UserError: a file is not what its manifest says, or is no plain file.
    """
    return {stage: _checked(run / stage) for stage in _stages(run)}


def inspect(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The run that a folder holds or serves, and its card; all its files are compared first.

    Args:
        folder: a run, a folder of published models, or one of its versions.

    Raises:
        UserError: a file is not what its manifest says, or there is nothing to look at.
    """
    _, run = served_run(folder)
    if not run.is_dir():
        raise UserError(f"{run} is no folder.")
    for path in sorted(run.iterdir()):
        if path.is_dir() and (path / MANIFEST).is_file():
            _checked(path)
    return run, card_of(run)


def rollback(folder: Path) -> Pointer:
    """Serve the version before the current one again.

    Raises:
        UserError: there is none.
    """
    now = _pointer(folder)
    if now.previous is None or not (folder / VERSIONS / now.previous).is_dir():
        raise UserError(f"{folder} has no version before '{now.version}' to go back to.")
    return _point(folder, Pointer(version=now.previous, previous=now.version))


def _pointer(folder: Path) -> Pointer:
    try:
        return Pointer.model_validate(read_json(folder / POINTER))
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(f"{folder / POINTER}: {problem['loc']}: {problem['msg']}") from None


def _point(folder: Path, pointer: Pointer) -> Pointer:
    write_json(folder / POINTER, pointer.model_dump())
    return pointer


def _stages(run: Path) -> tuple[str, ...]:
    directory = RunDirectory(run)
    directory.require("recommend", "raysys run CONFIG")
    about = read_json(directory.path("recommend") / MODEL_FILE)
    trained = {"train", str(about.get("stage", "train"))}
    for stage in ("data", *trained):
        directory.require(stage, "raysys run CONFIG")
    # What reranking reads, where the run has it.
    further = [stage for stage in ("user_profiles", "rerank") if (run / stage).is_dir()]
    return ("data", *sorted(trained), "recommend", *further)


def _checked(folder: Path) -> str:
    """The hash of a stage's files, once they are what the manifest says."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} is not a finished stage.")
    there = set()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is no plain file: publish a run of files.")
        if path.is_file() and path.relative_to(folder).as_posix() != MANIFEST:
            there.add(path.relative_to(folder).as_posix())
    if there != set(manifest.outputs):
        name = sorted(there ^ set(manifest.outputs))[0]
        raise UserError(f"{folder / name} is missing, or not of this stage.")
    for name, output in manifest.outputs.items():
        if sha256_file(folder / name) != output.sha256:
            raise UserError(f"{folder / name} is not the file that the stage wrote.")
    return manifest.output_hash()


def _reach_floors(run: Path, floors: Mapping[str, float]) -> None:
    if not floors:
        return
    RunDirectory(run).require("evaluate", "raysys evaluate CONFIG")
    model = str(read_json(run / "recommend" / MODEL_FILE)["model"])
    found: dict[str, Any] = read_json(run / "evaluate" / "metrics.json")["models"].get(model, {})
    for name, least in floors.items():
        if name not in found:
            raise UserError(f"{run} did not measure {name}; it has {', '.join(sorted(found))}.")
        if not found[name] >= least:
            raise UserError(f"{model} has {name} {found[name]:.4f}, below the floor {least:g}.")


def _smoke(shelf: Shelf) -> None:
    """A known user, someone new, and a similar item get a list."""
    users, items = shelf.dataset.user_ids, shelf.dataset.item_ids
    asked: dict[str, Callable[[], Any]] = {
        f"user {users[0]}": lambda: shelf.recommend(users[0], [], 5, None),
        f"a history of {items[0]}": lambda: shelf.recommend(None, [items[0]], 5, None),
        f"items like {items[0]}": lambda: shelf.similar(items[0], 5),
    }
    for name, ask in asked.items():
        try:
            ask()
        except ValueError as error:
            raise UserError(f"the model has no list for {name}: {error}") from None
