"""Tables that benchmarks measured: kept as markdown, shown where a page has their two marks."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from benchmarks.results import line

FOLDER = Path("docs/results/tables")
PAGES = (
    Path("README.md"),
    Path("docs/compare.md"),
    Path("docs/models.md"),
    Path("docs/rerank.md"),
    Path("CONTRIBUTING.md"),
)
#: Everything between these two is a kept table.
_PLACE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def shown(page: str) -> str:
    """A page with the tables that are kept, each between its marks."""

    def filled(place: re.Match[str]) -> str:
        table = (FOLDER / f"{place[2]}.md").read_text(encoding="utf-8")
        return f"{place[1]}\n{table}\n{place[3]}"

    return _PLACE.sub(filled, page)


def save(name: str, table: str, command: str) -> None:
    """Keep a table, and show it where it belongs."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.md").write_text(f"{table}\n    {command}\n", encoding="utf-8")
    for page in PAGES:
        page.write_text(shown(page.read_text(encoding="utf-8")), encoding="utf-8")


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table as text."""
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows), ""])


def this_command(module: str) -> str:
    """How the benchmark was called, without `--save`."""
    words = [word for word in sys.argv[1:] if word != "--save"]
    return f"python -m benchmarks.{module} {shlex.join(words)}".strip()
