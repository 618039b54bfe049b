"""What a run costs at a size: hours, machines and money, from the measured figures.

Reads docs/results/scale.json, where each figure stands beside the command that measured it, and
writes the tables of docs/scale.md between its marks. What was not measured is an argument.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path

from benchmarks.results import line

MEASURED, PAGE = Path("docs/results/scale.json"), Path("docs/scale.md")
SIZES = {
    "10⁴ users, 10³ items": (1e4, 1e3),
    "10⁵, 10⁴": (1e5, 1e4),
    "10⁶, 10⁵": (1e6, 1e5),
    "10⁷, 10⁶": (1e7, 1e6),
}
_MEASURED_EDGES = 2e7
_VECTOR_BYTES, _WIDTH_BYTES = 384 * 4, 32 * 4


def costs(
    users: float, items: float, per_user: float, speed: float, measured: dict[str, float]
) -> dict[str, float]:
    """Hours and gigabytes of each stage, on one machine of 2 cores.

    Args:
        per_user: interactions.
        speed: of the engine, as a multiple of the measured one.
    """
    edges = users * per_user
    tokens = items * measured["tokens_item"] + users * measured["tokens_user"]
    epoch = measured["epoch_edge_us"] * 1e-6 * _MEASURED_EDGES
    epoch *= (edges / _MEASURED_EDGES) ** measured["epoch_exponent"]
    nodes = users + items
    return {
        "edges": edges,
        "tokens": tokens,
        "engine_hours": tokens / (measured["tokens_second"] * speed) / 3600,
        "embedding_hours": nodes / measured["texts_second"] / 3600,
        "training_hours": 100 * epoch / 3600,
        "training_gb": measured["epoch_gb"] * edges / _MEASURED_EDGES,
        "vectors_gb": nodes * _VECTOR_BYTES / 1e9,
        "served_gb": nodes * _WIDTH_BYTES / 1e9,
    }


def tables(arguments: argparse.Namespace) -> tuple[str, dict[str, dict[str, float]]]:
    """The tables as markdown, and their figures."""
    rows = json.loads(MEASURED.read_text(encoding="utf-8"))
    measured = {name: float(row["value"]) for name, row in rows.items()}
    found = {
        size: costs(users, items, arguments.per_user, arguments.speed, measured)
        for size, (users, items) in SIZES.items()
    }
    head = ["", *found]
    shown = [line(head), line(["---"] * len(head))]
    for label, key, digits in (
        ("interactions", "edges", 0),
        ("tokens of profiles, millions", "tokens", 6),
        ("engine hours, as measured (135M, 2 cores)", "engine_hours", 0),
        ("embedding hours, one worker", "embedding_hours", 0),
        ("hours of 100 epochs of 30 steps", "training_hours", 0),
        ("GB while training", "training_gb", 0),
        ("GB of profile vectors (384 wide, mapped from disk)", "vectors_gb", 0),
        ("GB of a replica's embeddings (32 wide)", "served_gb", 0),
    ):
        cells = [_short(one[key] / 10**digits) for one in found.values()]
        shown.append(line([label, *cells]))
    engines = [max(1, math.ceil(one["engine_hours"] / arguments.hours)) for one in found.values()]
    price = [one["engine_hours"] * arguments.price for one in found.values()]
    shown.append(
        line([f"engines for profiles within {arguments.hours:g} h", *map(_short, engines)])
    )
    shown.append(line([f"their cost at ${arguments.price:g} an hour", *map(_short, price)]))
    replicas = math.ceil(arguments.requests / measured["requests_second"])
    shown.append(
        line(
            [
                f"endpoints for {arguments.requests:,} requests/s, if items cost no more",
                *[str(replicas)] * len(found),
            ]
        )
    )
    inputs = [line(["figure", "value", "measured by"]), line(["---"] * 3)]
    inputs += [
        line([row["what"], f"{row['value']:g}", f"`{row['command']}`"]) for row in rows.values()
    ]
    return "\n".join([*shown, "", *inputs]), found


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def main() -> None:
    """Write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-user", type=float, default=50, help="interactions of a user")
    parser.add_argument("--speed", type=float, default=1.0, help="of an engine, times the measured")
    parser.add_argument("--hours", type=float, default=24, help="for all profiles")
    parser.add_argument("--price", type=float, default=0.1, help="of an engine's machine, an hour")
    parser.add_argument("--requests", type=int, default=10_000, help="a second")
    parser.add_argument("--save", action="store_true", help=f"write the tables of {PAGE}")
    arguments = parser.parse_args()
    text, figures = tables(arguments)
    if arguments.save:
        page = PAGE.read_text(encoding="utf-8")
        marks = re.compile(r"(<!-- tables -->\n).*(<!-- end -->)", re.S)
        PAGE.write_text(marks.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page), "utf-8")
    print(text)
    print(json.dumps({"benchmark": "scale", "figures": figures}))


if __name__ == "__main__":
    main()
