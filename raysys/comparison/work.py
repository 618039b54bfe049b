"""Run the rows of a comparison: several at a time on Ray, finished stages never again."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from raysys.cluster import GIB, TASK_CPUS, Resources, at_a_time, connect, several
from raysys.comparison.rows import ROWS, SHARED, Row, rows_of, shared_stages
from raysys.comparison.settings import CompareSettings
from raysys.errors import UserError
from raysys.manifest import Manifest
from raysys.observe import get_logger, progress
from raysys.pipeline import StageOutcome, run_stages
from raysys.runs import RunDirectory
from raysys.settings import override_values, parse_settings, read_values
from raysys.stages.context import RunSettings, Share
from raysys.store import read_json, write_json

COST_FILE = "cost.json"
#: The run of what all rows share.
BASE = "base"
logger = get_logger(__name__)


class Cost(BaseModel):
    """What a row took, without what all rows share.

    Attributes:
        fingerprints: of its stages, by name: a cost is that of the work that is there.
        seconds: of its stages.
        peak_gib: the most memory its process held; none: a language model's processes took it.
        prompt_tokens, generated_tokens: that the language model read and wrote.
    """

    model_config = ConfigDict(extra="forbid")

    fingerprints: dict[str, str]
    seconds: float
    peak_gib: float | None
    prompt_tokens: int
    generated_tokens: int


@dataclass(frozen=True)
class Done:
    """What became of a row: its cost, or why it has none."""

    row: Row
    cost: Cost | None
    problem: str | None = None


@dataclass(frozen=True)
class Finished:
    """A comparison whose rows have run.

    Attributes:
        shared: manifests of the stages that were done once for all.
        base: the run that holds them.
    """

    settings: CompareSettings
    rows: list[Done]
    shared: dict[str, Manifest]
    base: Path


def run_rows(settings: CompareSettings) -> Finished:
    """Run all rows that have not finished yet.

    Raises:
        UserError: the config refuses something, or no row came to an end.
    """
    out = settings.out.resolve()
    config = read_values(settings.run)
    override_values(config, settings.overrides)
    rows = rows_of(settings, config)
    run = parse_settings(RunSettings, config, source=str(settings.run))
    taken = (run.out, out / ROWS)
    beside = row_cpus(settings) - settings.cpus
    room = several(settings.cluster, settings.cpus, settings.gpus, beside, settings.concurrent)
    (out / ROWS).mkdir(parents=True, exist_ok=True)
    with RunDirectory(out).lock(), connect(room) as have:
        changed = {"out": out / ROWS / BASE, "cluster": settings.cluster, "mirror": None}
        once = run.model_copy(update=changed)
        shared = run_stages(once, shared_stages(rows), Share(have, taken))
        done = _alongside([row for row in rows if not row.engine], settings, have, taken)
        for row in rows:
            if row.engine:
                # An engine takes all there is: these come one after the other.
                done[row.name] = _outcome(row, _work(row, Share(have, taken)))
    ordered = [done[row.name] for row in rows]
    if all(one.cost is None for one in ordered):
        raise UserError(f"no row came to an end: {ordered[0].problem}")
    manifests = {name: one.manifest for name, one in shared.items()}
    return Finished(settings, ordered, manifests, out / ROWS / BASE)


def row_cpus(settings: CompareSettings) -> float:
    """CPUs of a row's process, and of what its stages start."""
    return 2 * settings.cpus + TASK_CPUS


def _alongside(
    rows: list[Row], settings: CompareSettings, have: Resources, taken: tuple[Path, ...]
) -> dict[str, Done]:
    import ray

    if not rows:
        return {}
    each = Resources(settings.cpus + TASK_CPUS, settings.gpus, have.memory_gib)
    together = at_a_time(have, row_cpus(settings), settings.gpus, settings.concurrent, "row")
    logger.info("compare: %d rows, %d at a time", len(rows), min(together, len(rows)))
    # A process of its own for each row, so that its memory is its own.
    work = ray.remote(num_cpus=settings.cpus, num_gpus=settings.gpus, max_calls=1)(_alone)
    waiting, found = list(rows), {}
    open_rows: dict[Any, Row] = {}
    with progress("rows", len(rows)) as tracker:
        while waiting or open_rows:
            while waiting and len(open_rows) < together:
                row = waiting.pop(0)
                open_rows[work.remote(row, each, taken, settings.cpus)] = row
            ended, _ = ray.wait(list(open_rows), num_returns=1)
            row = open_rows.pop(ended[0])
            try:
                found[row.name] = _outcome(row, ray.get(ended[0]))
            except ray.exceptions.RayError as error:
                problem = str(error).strip().splitlines()[-1]
                found[row.name] = Done(row, None, problem)
                logger.warning("%s: %s", row.name, problem)
            tracker.update(len(found), row.name)
    return found


def _alone(row: Row, each: Resources, taken: tuple[Path, ...], cpus: float) -> dict[str, Any]:
    import torch

    torch.set_num_threads(max(1, int(cpus)))
    # Models are trained in this process: workers of Ray Train take longer to start than many train.
    found = _work(row, Share(each, taken, watch=lambda *_: None))
    return found | {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB}


def _work(row: Row, share: Share) -> dict[str, Any]:
    """A mistake comes back as words, so that Ray does not try it again."""
    try:
        return {"outcomes": run_stages(row.run, row.stages, share)}
    except UserError as mistake:
        return {"mistake": str(mistake)}


def _outcome(row: Row, found: dict[str, Any]) -> Done:
    if "mistake" in found:
        logger.warning("%s: %s", row.name, found["mistake"])
        return Done(row, None, found["mistake"])
    outcomes: dict[str, StageOutcome] = found["outcomes"]
    own = {name: one.manifest for name, one in outcomes.items() if name not in SHARED}
    marks = {name: manifest.fingerprint for name, manifest in own.items()}
    path = row.run.out / COST_FILE
    if path.is_file():
        kept = Cost.model_validate(read_json(path))
        if kept.fingerprints == marks:
            return Done(row, kept)
    cost = Cost(
        fingerprints=marks,
        seconds=round(sum(manifest.seconds for manifest in own.values()), 3),
        peak_gib=found.get("peak_gib"),
        prompt_tokens=tokens(own, "prompt_tokens"),
        generated_tokens=tokens(own, "generated_tokens"),
    )
    write_json(path, cost.model_dump())
    return Done(row, cost)


def tokens(stages: dict[str, Manifest], kind: str) -> int:
    """The tokens of a kind that a language model reads or writes for these stages.

    Replies that were there already count too: what a row costs does not depend on what ran before.
    """
    kinds = (kind, f"cached_{kind}")
    return int(sum(one.figures.get(name, 0) for one in stages.values() for name in kinds))
