"""Commands around an endpoint: serve, key, publish, rollback, inspect, loadtest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raysys.errors import UserError
from raysys.shown import Json, print_result

#: Where `raysys --help` shows them.
_PANEL = "Serve"


def add_serving(app: typer.Typer) -> None:
    """Add the commands to the table."""
    for command in (serve, key, publish, rollback, inspect, loadtest):
        app.command(rich_help_panel=_PANEL)(command)


def serve(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="A finished run, or a folder of published models.")
    ],
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port; else the profile's, 8000.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Lines of `raysys key NAME`, or one key; none: RAYSYS_API_KEY."),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(help="A Serve config such as serve/throughput.yaml.")
    ] = None,
    haproxy: Annotated[
        bool, typer.Option("--haproxy", help="HAProxy in front: many more requests a second.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting: doors.burst=20 …; repeatable.")
    ] = None,
) -> None:
    """Answer recommendation requests until stopped (ctrl-c or SIGTERM)."""
    from raysys.serving.command import serve_until_stopped

    overrides = [*(settings or []), *([f"doors.key_file={api_key_file}"] if api_key_file else [])]
    serve_until_stopped(folder, profile, port, overrides, haproxy=haproxy, say=typer.echo)


def key(
    name: Annotated[str, typer.Argument(help="Whose key: one word.")],
    out: Annotated[Path | None, typer.Option(help="A key file to add the line to.")] = None,
    as_json: Json = False,
) -> None:
    """Make an API key; only its hash goes into a key file."""
    from raysys.serving.doors import add_key

    made, line = add_key(name, out)
    value = {"name": name, "key": made, "line": line}
    lines = [f"key (shown once): {made}"]
    lines += [f"added to {out}" if out else f"line for --api-key-file: {line}"]
    print_result(as_json, value, lines)


def publish(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    to: Annotated[Path, typer.Option(help="Folder of published models: `raysys serve` reads it.")],
    floor: Annotated[
        list[str] | None, typer.Option(help="recall@20=0.1: refuse a worse model; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a run and serve it from now on, without a failed request."""
    from raysys.serving.published import publish as publish_run

    floors = {}
    for word in floor or []:
        metric, _, least = word.partition("=")
        try:
            floors[metric] = float(least)
        except ValueError:
            raise UserError(f"--floor '{word}' must look like recall@20=0.1.") from None
    pointer = publish_run(run_folder.resolve(), to.resolve(), floors)
    print_result(as_json, pointer.model_dump(), [f"version {pointer.version} is served from {to}"])


def rollback(
    folder: Annotated[Path, typer.Argument(help="Folder of published models.")],
    as_json: Json = False,
) -> None:
    """Serve the version before the current one again."""
    from raysys.serving.published import rollback as go_back

    pointer = go_back(folder.resolve())
    print_result(
        as_json, pointer.model_dump(), [f"version {pointer.version} is served from {folder}"]
    )


def inspect(
    artifact: Annotated[
        Path, typer.Argument(metavar="ARTIFACT", help="A run, or a folder of published models.")
    ],
    as_json: Json = False,
) -> None:
    """Check every file against its hash, and print the model's card."""
    from raysys.serving.card import card_text
    from raysys.serving.published import inspect as look_at

    run, card = look_at(artifact.resolve())
    print_result(as_json, {"run": str(run), **card}, card_text(card).splitlines())


def loadtest(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The run that is served.")],
    url: Annotated[str, typer.Option(help="Of the endpoint.")] = "http://127.0.0.1:8000",
    key_variable: Annotated[
        str, typer.Option(help="Environment variable with the key.")
    ] = "RAYSYS_API_KEY",
    connections: Annotated[int, typer.Option(help="Open at once.")] = 16,
    seconds: Annotated[float, typer.Option(help="How long.")] = 10.0,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second; none: as fast as answers come.")
    ] = None,
    k: Annotated[int, typer.Option(min=1, max=100, help="Length of the lists.")] = 10,
    plot: Annotated[Path | None, typer.Option(help="A PNG file to draw.")] = None,
    elsewhere: Annotated[
        bool, typer.Option("--elsewhere", help="Allow another machine than this one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put load on an endpoint: requests a second, latencies, refusals and errors."""
    import os

    from raysys.data.dataset import Dataset
    from raysys.serving.loadtest import draw_load, put_load
    from raysys.serving.published import served_run

    _, run = served_run(run_folder)
    users = Dataset.load(run / "data").user_ids[:1000]
    load = put_load(
        f"{url.rstrip('/')}/v1/recommend",
        os.environ.get(key_variable, ""),
        [{"user_id": user, "k": k} for user in users],
        connections=connections,
        seconds=seconds,
        rate=rate,
        elsewhere=elsewhere,
    )
    if plot is not None:
        draw_load(load, plot)
    figures = load.figures()
    print_result(as_json, figures, [f"{name}: {value:g}" for name, value in figures.items()])
