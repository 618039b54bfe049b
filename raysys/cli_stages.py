"""Commands that run the stages of a config: run, train, finetune, profile, evaluate and others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from raysys.errors import UserError
from raysys.shown import Config, Json, Overrides, print_result

if TYPE_CHECKING:
    from raysys.stages.context import RunSettings

#: Where `raysys --help` shows them.
_PANEL = "Run stages of a config"
finetune_app = typer.Typer(no_args_is_help=True, help="Fine-tune a language model.")


class _OrGraphs(TyperGroup):
    """`raysys train CONFIG` is `raysys train graphs CONFIG`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name in where none is given."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["graphs", *args]
        return super().parse_args(ctx, args)


train_app = typer.Typer(
    cls=_OrGraphs,
    no_args_is_help=True,
    help="Train models. `raysys train CONFIG` is short for `raysys train graphs CONFIG`.",
)

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model", help="Backbone with RLMRec's settings, not the config's models; repeatable."
    ),
]
Align = Annotated[
    list[str] | None, typer.Option("--align", help="none, con or gen for --model; repeatable.")
]

#: Command → the stages it runs and what it says of itself.
STAGE_COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "embed": (("embeddings",), "Turn the profiles into vectors, or take your own."),
    "recommend": (("recommend",), "Write top-k lists for all users."),
    "report": (("report",), "Write report.json and report.html."),
    "rerank": (("rerank",), "Let the LLM rerank lists; finished models are taken as they are."),
    "explain": (("rerank", "explain"), "Let the LLM explain the reranked lists."),
}
#: The same for the stages that ask a language model, and so can cost money: see `--dry-run`.
TEXT_COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "profile": (("item_profiles", "user_profiles"), "Let the LLM describe items, then users."),
    "summarize": (("summaries",), "Let the LLM summarise users' histories."),
}


def add_stages(app: typer.Typer) -> None:
    """Add the commands to the table."""
    _stage_command(app, "run", None, "Run all stages of CONFIG; finished ones are skipped.")
    for name, (stages, text) in TEXT_COMMANDS.items():
        _text_command(app, name, stages, text)
    for name, (stages, text) in STAGE_COMMANDS.items():
        _stage_command(app, name, stages, text)
    app.command(rich_help_panel=_PANEL)(evaluate)
    app.add_typer(train_app, name="train", rich_help_panel=_PANEL)
    app.add_typer(finetune_app, name="finetune", rich_help_panel=_PANEL)
    app.command(rich_help_panel=_PANEL)(merge)


def _stage_command(app: typer.Typer, name: str, stages: tuple[str, ...] | None, text: str) -> None:
    def command(
        config: Config,
        overrides: Overrides = None,
        model: Models = None,
        align: Align = None,
        as_json: Json = False,
    ) -> None:
        _run(_settings(config, overrides, model, align), stages, as_json)

    app.command(name, help=text, rich_help_panel=_PANEL)(command)


@train_app.command("graphs")
def train_graphs(
    config: Config,
    overrides: Overrides = None,
    model: Models = None,
    align: Align = None,
    as_json: Json = False,
) -> None:
    """Train the models of CONFIG; first the data is read, and texts where a model reads them."""
    from raysys.pipeline import stages_to

    settings = _settings(config, overrides, model, align)
    stages = stages_to(settings, "refit" if settings.train.refit else "train")
    _run(settings, stages, as_json)


def evaluate(
    target: Annotated[
        Path,
        typer.Argument(metavar="CONFIG|LISTS", help="A config, or a file of lists to measure."),
    ],
    overrides: Overrides = None,
    model: Models = None,
    align: Align = None,
    dataset: Annotated[
        Path | None, typer.Option(help="For LISTS: folder with interactions.parquet.")
    ] = None,
    fold: Annotated[
        str | None, typer.Option(help="Its boolean test column; else `split` says test.")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="all-rank; condensed: unrated items are deleted first.")
    ] = "all-rank",
    relevance: Annotated[
        float | None, typer.Option(help="Ratings from here on are relevant; else likes.")
    ] = None,
    k: Annotated[int, typer.Option(min=1, max=1000, help="Cut-off for LISTS.")] = 10,
    as_json: Json = False,
) -> None:
    """Measure the models of CONFIG, or the LISTS of any recommender, on the test split.

    LISTS is a .parquet or .csv file with user_id, item_id and rank.
    """
    if target.suffix.lower() not in (".parquet", ".csv", ".tsv"):
        if dataset or fold or relevance is not None:
            raise UserError("--dataset, --fold and --relevance go with a file of lists.")
        _run(_settings(target, overrides, model, align), ("evaluate",), as_json)
        return
    from raysys.evaluation.lists import PROTOCOLS, held_out, measure_lists
    from raysys.settings import nearest

    if dataset is None:
        raise UserError("--dataset: name the folder whose interactions.parquet has the test rows.")
    if protocol not in PROTOCOLS:
        raise UserError(f"no protocol '{protocol}': {nearest(protocol, PROTOCOLS)}")
    found = measure_lists(target, held_out(dataset, fold, relevance), k, protocol)
    value = {
        **found.metrics,
        "users": found.users,
        "without_list": found.without_list,
        "unknown_rows": found.unknown,
    }
    lines = [f"{name}@{k}: {number:.4f}" for name, number in found.metrics.items()]
    lines += [f"users: {found.users}, of whom without a list: {found.without_list}"]
    lines += [f"rows of unknown users or items: {found.unknown}"] if found.unknown else []
    print_result(as_json, value, lines)


def _text_command(app: typer.Typer, name: str, stages: tuple[str, ...], text: str) -> None:
    def command(
        config: Config,
        overrides: Overrides = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Say what it would cost, and ask nothing.")
        ] = False,
        price_in: Annotated[
            float, typer.Option(min=0, help="Price of 1M prompt tokens, for --dry-run.")
        ] = 0.0,
        price_out: Annotated[
            float, typer.Option(min=0, help="Price of 1M written tokens, for --dry-run.")
        ] = 0.0,
        tokens_per_second: Annotated[
            float | None,
            typer.Option(min=0.001, help="Written by the engine; else as last measured."),
        ] = None,
        as_json: Json = False,
    ) -> None:
        if dry_run:
            _dry_run(config, overrides, stages, price_in, price_out, tokens_per_second, as_json)
        else:
            _run(_settings(config, overrides), ("data", *stages), as_json)

    app.command(name, help=text, rich_help_panel=_PANEL)(command)


def _dry_run(
    config: Path,
    overrides: list[str] | None,
    stages: tuple[str, ...],
    price_in: float,
    price_out: float,
    tokens_per_second: float | None,
    as_json: bool,
) -> None:
    from raysys.pipeline import foretell_stages

    settings = _settings(config, overrides)
    priced = bool(price_in or price_out)
    value: dict[str, Any] = {}
    table = Table("stage", "rows", "calls", "cached", "prompt tokens", "written", "minutes", "cost")
    for name, report in foretell_stages(settings, stages).items():
        figures = report.figures
        prompt, written = figures["prompt_tokens"], figures["generated_tokens"]
        seconds = figures["seconds"]
        if tokens_per_second is not None:
            seconds = written / tokens_per_second
        known = seconds > 0 or written == 0
        row = {
            "rows": report.counts["in"],
            "calls": int(figures["calls"]),
            "cached_calls": int(figures["cached_calls"]),
            "prompt_tokens": int(prompt),
            "generated_tokens_at_most": int(written),
            "minutes": round(seconds / 60, 1) if known else None,
            "cost": round((prompt * price_in + written * price_out) / 1e6, 4) if priced else None,
        }
        value[name] = row
        lacks = {"minutes": "give --tokens-per-second", "cost": "give --price-in, --price-out"}
        shown = [lacks[key] if cell is None else f"{cell:,}" for key, cell in row.items()]
        table.add_row(name, *shown)
    print_result(as_json, value, table)


def _settings(
    config: Path,
    overrides: list[str] | None,
    models: list[str] | None = None,
    align: list[str] | None = None,
) -> RunSettings:
    from raysys.settings import load_settings
    from raysys.stages.context import RunSettings

    settings = load_settings(RunSettings, config, overrides or [])
    if models:
        return settings.with_models(models, align or ["none"])
    if align:
        raise UserError("--align goes with --model.")
    return settings


def _run(settings: RunSettings, stages: Sequence[str] | None, as_json: bool) -> None:
    from raysys.pipeline import run_stages
    from raysys.shown import told

    value, lines = told(settings.out.resolve(), run_stages(settings, stages))
    print_result(as_json, value, lines)


@train_app.command("elmrec")
def train_elmrec(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Train ELMRec, and measure it on every task."""
    from raysys.pipeline import ELMREC

    _run(_settings(config, overrides), ("data", *ELMREC), as_json)


@train_app.command("graph-lm")
def train_graph_lm(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Train the graph-attentive language model, measure it, and write lists for all users."""
    from raysys.stages.graph_lm import stages_of

    settings = _settings(config, overrides)
    _run(settings, ("data", *stages_of(settings.graph_lm)), as_json)


@finetune_app.command("yes-no")
def finetune_yes_no(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Fine-tune LLM-TRSR's yes/no recommender, and measure it on sampled candidates."""
    from raysys.pipeline import YES_NO

    settings = _settings(config, overrides)
    before = ("data", "summaries") if settings.yes_no.summaries else ("data",)
    _run(settings, (*before, *YES_NO), as_json)


def merge(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A fine-tuned run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    base: Annotated[
        str | None, typer.Option(help="The base model, if it is no longer where it was.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write base model and adapters as one plain model, which vLLM loads."""
    from raysys.stages.yes_no import merge_run

    merge_run(run_folder, out.resolve(), base)
    print_result(as_json, {"model": str(out.resolve())}, [f"written to {out.resolve()}"])
