"""The card of a model: what it was made of, how good it was, and the hashes that identify it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raysys.asset_sources import ASSETS
from raysys.errors import UserError
from raysys.manifest import Manifest, read_manifest
from raysys.stages.recommend import MODEL_FILE
from raysys.store import read_json

CARD_FILE, CARD_PAGE = "card.json", "MODEL_CARD.md"
_UNSAID = "not stated"


def card_of(run: Path) -> dict[str, Any]:
    """The card of a finished run, or of a published version of one, as JSON values.

    Raises:
        UserError: no stage has finished there, or the card is of other stages.
    """
    found = {path.name: read_manifest(path) for path in sorted(run.iterdir()) if path.is_dir()}
    stages = {name: one for name, one in found.items() if one is not None}
    if not stages:
        raise UserError(f"{run} holds no finished stage.")
    if (run / CARD_FILE).is_file():
        # Figures were measured by a stage that is not published with the model.
        card: dict[str, Any] = read_json(run / CARD_FILE)
        _of_these(card, stages, run / CARD_FILE)
        return card
    return {
        "model": _model(run, stages),
        "data": _data(stages),
        "figures": _figures(run),
        "language_models": _language_models(stages),
        "stages": {
            name: {
                "hash": one.output_hash(),
                "finished_at": one.finished_at,
                "counts": one.counts,
            }
            for name, one in stages.items()
        },
        "versions": next(iter(stages.values())).versions,
    }


def _of_these(card: Any, stages: dict[str, Manifest], path: Path) -> None:
    """Refuse a card that was written for other files: its figures would be another model's."""
    told = card.get("stages") if isinstance(card, dict) else None
    for name, one in stages.items():
        entry = told.get(name) if isinstance(told, dict) else None
        if not isinstance(entry, dict) or entry.get("hash") != one.output_hash():
            raise UserError(f"{path} is the card of another model: '{name}' has another hash.")


def _model(run: Path, stages: dict[str, Manifest]) -> dict[str, Any]:
    path = run / "recommend" / MODEL_FILE
    if not path.is_file():
        return {}
    about = read_json(path)
    stage = str(about.get("stage", "train"))
    config = stages[stage].config if stage in stages else {}
    settings = config.get("models", {}).get(about["model"], {})
    return {"name": about["model"], "stage": stage, "settings": settings}


def _data(stages: dict[str, Manifest]) -> dict[str, Any]:
    if "data" not in stages:
        return {}
    one = stages["data"]
    source = one.config.get("source", _UNSAID)
    license_of = ASSETS[source].license if source in ASSETS else ""
    return {
        "source": source,
        "license": one.config.get("license") or license_of or _UNSAID,
        "split": one.config.get("split", {}),
        "counts": one.counts,
        "dropped": one.dropped,
        "files": one.inputs,
    }


def _figures(run: Path) -> dict[str, float]:
    """Of the model, on test, where it was measured."""
    measured, chosen = run / "evaluate" / "metrics.json", run / "recommend" / MODEL_FILE
    if not (measured.is_file() and chosen.is_file()):
        return {}
    figures: dict[str, float] = read_json(measured)["models"].get(read_json(chosen)["model"], {})
    return figures


def _language_models(stages: dict[str, Manifest]) -> dict[str, str]:
    """Those that wrote texts, and their licences."""
    names = {one.config.get("engine", {}).get("model") for one in stages.values()}
    return {
        name: ASSETS[name].license if name in ASSETS else _UNSAID
        for name in sorted(name for name in names if isinstance(name, str))
    }


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    model, data = card["model"], card["data"]
    lines = [f"# {model.get('name', 'A raysys run')}", ""]
    if model:
        lines += [f"A `{model['settings'].get('backbone', '?')}` model of raysys.", ""]
    if data:
        split = ", ".join(f"{key} {value}" for key, value in data["split"].items() if value)
        counts = ", ".join(f"{count:,} {name}" for name, count in data["counts"].items())
        lines += ["## Data", "", f"{data['source']}: {counts}.", f"Split: {split}."]
        lines += [f"Licence of the data: {data['license']}.", ""]
    lines += ["## Figures on test", ""]
    figures = [f"| {name} | {value:.4f} |" for name, value in card["figures"].items()]
    lines += ["| metric | |", "|---|---|", *figures, ""] if figures else ["Not measured.", ""]
    if card["language_models"]:
        lines += ["## Language models that wrote texts", ""]
        lines += [f"- {name}: {one}" for name, one in card["language_models"].items()] + [""]
    lines += ["## What it is", "", "| stage | SHA-256 of its files | finished |", "|---|---|---|"]
    lines += [
        f"| {name} | `{one['hash']}` | {one['finished_at']} |"
        for name, one in card["stages"].items()
    ]
    made = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    return "\n".join([*lines, "", f"Made with {made}.", ""])
