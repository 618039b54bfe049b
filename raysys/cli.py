"""The one table of commands.

Results go to standard output (`--json`: one JSON object), logs and progress to
standard error. Exit code 0: done; 2: a mistake the user can mend; 1: a fault of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from raysys.cli_files import add_files
from raysys.cli_serving import add_serving
from raysys.errors import UserError
from raysys.observe import configure_logging
from raysys.shown import Json, print_result
from raysys.version import VERSION

if TYPE_CHECKING:
    from raysys.settings import Settings

_Around = TypeVar("_Around", bound="Settings")
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Language models and user-item graphs recommend together, on Ray.",
)
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
app.add_typer(finetune_app, name="finetune")
app.add_typer(train_app, name="train")

Config = Annotated[Path, typer.Argument(help="A .toml or .yaml file: see configs/.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Single keys to change: train.epochs=5 …")
]
RunKeys = Annotated[
    list[str] | None,
    typer.Option("--set", help="A key of the run's config: data.k_core=5 …; repeatable."),
]
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    configure_logging()
    try:
        app(args=list(arguments) if arguments is not None else None, standalone_mode=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on.", file=sys.stderr)  # noqa: T201
        return 130
    return 0


@app.command()
def version(as_json: Json = False) -> None:
    """Print the version."""
    print_result(as_json, {"version": VERSION}, [VERSION])


def _stage_command(
    name: str, stages: tuple[str, ...] | None, text: str, parent: typer.Typer = app
) -> None:
    def command(
        config: Config,
        overrides: Overrides = None,
        model: Models = None,
        align: Align = None,
        as_json: Json = False,
    ) -> None:
        _run_stages(config, overrides, stages, model, align, as_json)

    parent.command(name=name, help=text)(command)


_stage_command("graphs", ("train", "refit"), "Train the models of CONFIG.", train_app)
_stage_command("run", None, "Run all stages of CONFIG; finished ones are skipped.")
for _name, (_stages, _text) in STAGE_COMMANDS.items():
    _stage_command(_name, _stages, _text)


@app.command()
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
        _run_stages(target, overrides, ("evaluate",), model, align, as_json)
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


def _text_command(name: str, stages: tuple[str, ...], text: str) -> None:
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
            _run_stages(config, overrides, ("data", *stages), None, None, as_json)

    app.command(name=name, help=text)(command)


for _name, (_stages, _text) in TEXT_COMMANDS.items():
    _text_command(_name, _stages, _text)


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
    from raysys.settings import load_settings
    from raysys.stages.context import RunSettings

    settings = load_settings(RunSettings, config, overrides or [])
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
            "cost": round((prompt * price_in + written * price_out) / 1e6, 4),
        }
        value[name] = row
        unknown = "give --tokens-per-second"
        shown = [unknown if cell is None else f"{cell:,}" for cell in row.values()]
        table.add_row(name, *shown)
    print_result(as_json, value, table)


def _run_stages(
    config: Path,
    overrides: list[str] | None,
    stages: tuple[str, ...] | None,
    models: list[str] | None,
    align: list[str] | None,
    as_json: bool,
) -> None:
    from raysys.pipeline import run_stages
    from raysys.settings import load_settings
    from raysys.shown import told
    from raysys.stages.context import RunSettings

    settings = load_settings(RunSettings, config, overrides or [])
    if models:
        settings = settings.with_models(models, align or ["none"])
    elif align:
        raise UserError("--align goes with --model.")
    value, lines = told(settings.out.resolve(), run_stages(settings, stages))
    print_result(as_json, value, lines)


@train_app.command("elmrec")
def train_elmrec(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Train ELMRec, and measure it on every task."""
    from raysys.pipeline import ELMREC

    _run_stages(config, overrides, ("data", *ELMREC), None, None, as_json)


@train_app.command("graph-lm")
def train_graph_lm(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Train the graph-attentive language model, measure it, and write lists for all users."""
    from raysys.settings import load_settings
    from raysys.stages.context import RunSettings
    from raysys.stages.graph_lm import stages_of

    stages = stages_of(load_settings(RunSettings, config, overrides or []).graph_lm)
    _run_stages(config, overrides, ("data", *stages), None, None, as_json)


@finetune_app.command("yes-no")
def finetune_yes_no(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Fine-tune LLM-TRSR's yes/no recommender, and measure it on sampled candidates."""
    from raysys.pipeline import YES_NO
    from raysys.settings import load_settings
    from raysys.stages.context import RunSettings

    settings = load_settings(RunSettings, config, overrides or [])
    before = ("data", "summaries") if settings.yes_no.summaries else ("data",)
    _run_stages(config, overrides, (*before, *YES_NO), None, None, as_json)


def _around_a_run(
    model: type[_Around], config: Path, overrides: list[str] | None, run_keys: list[str] | None
) -> _Around:
    """Settings of something that changes a run's config, with `--set` after its own changes.

    That config is looked for beside the file too, where `raysys init` has written both.
    """
    from raysys.settings import load_settings

    settings: Any = load_settings(model, config, overrides or [])
    run, beside = settings.run, config.parent / settings.run.name
    if not run.is_file() and not beside.is_file():
        raise UserError(
            f"{config}: run = '{run}' does not exist, nor does {beside}; say which with run=PATH, "
            f"or write one to start from: raysys init {run.stem}"
        )
    changes = {
        "run": run if run.is_file() else beside,
        "overrides": (*settings.overrides, *(run_keys or [])),
    }
    found: _Around = settings.model_copy(update=changes)
    return found


@app.command()
def tune(
    config: Annotated[Path, typer.Argument(help="A sweep's .toml or .yaml file: see tune/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Single keys to change: trials=20 …")
    ] = None,
    run_keys: RunKeys = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a sweep; refused where there is none.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Try settings of a run on Ray Tune; finished trials and stages are not done again."""
    from raysys.tuning.outcome import BEST_FILE, PAGE_FILE, shown, write_outcome
    from raysys.tuning.settings import TuneSettings
    from raysys.tuning.sweep import run_sweep

    settings = _around_a_run(TuneSettings, config, overrides, run_keys)
    sweep = run_sweep(settings, resume=resume)
    results = write_outcome(sweep)
    keys, out = list(settings.space), settings.out.resolve()
    files = f"{out / PAGE_FILE}\nbest config: {out / BEST_FILE}"
    table = Table(*keys, settings.figure, "seconds", "", caption=files)
    for trial in sweep.trials:
        table.add_row(*map(escape, shown(trial, keys)))
    print_result(as_json, {"sweep": str(out), **results}, table)


@app.command()
def compare(
    config: Annotated[Path, typer.Argument(help="A comparison's .toml or .yaml file.")],
    overrides: Overrides = None,
    run_keys: RunKeys = None,
    as_json: Json = False,
) -> None:
    """Methods side by side on one split, with what each costs; finished rows are not run again."""
    from raysys.comparison.page import PAGE_FILE, shown, write_comparison
    from raysys.comparison.settings import CompareSettings
    from raysys.comparison.work import run_rows

    settings = _around_a_run(CompareSettings, config, overrides, run_keys)
    found, out = write_comparison(run_rows(settings)), settings.out.resolve()
    head, *rows = shown(found)
    table = Table(*head, caption=f"{found['users']} users, @{found['k']}\n{out / PAGE_FILE}")
    for row in rows:
        table.add_row(*map(escape, row))
    for name, problem in found["failed"].items():
        table.add_row(escape(name), escape(f"failed: {problem}"))
    print_result(as_json, {"comparison": str(out), **found}, table)


@app.command()
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


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has, what is missing, and the command that mends it."""
    from raysys.doctor import as_json as describe
    from raysys.doctor import examine

    checks = examine()
    table = Table("", "check", "found", "what to do")
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[red]no[/]"
        table.add_row(mark, check.name, escape(check.found), "" if check.ok else check.mend)
    print_result(as_json, describe(checks), table)
    if not all(check.ok for check in checks):
        raise typer.Exit(2)


add_files(app)
add_serving(app)
