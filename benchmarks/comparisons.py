"""The tables of docs/compare.md and README.md, as `raysys compare` writes them.

    python -m benchmarks.comparisons CONFIG [key=value …] --save

runs the comparison (finished rows are not run again) and, with `--save`, keeps its table as
docs/results/tables/NAME.md, NAME the config's, and shows it wherever a page has its two marks.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from benchmarks.tables import save
from raysys.comparison.page import TABLE_FILE, write_comparison
from raysys.comparison.settings import CompareSettings
from raysys.comparison.work import run_rows
from raysys.observe import configure_logging
from raysys.settings import load_settings


def main() -> None:
    """Run, show, and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--save", action="store_true", help="keep the table")
    arguments = parser.parse_args()
    configure_logging()
    settings = load_settings(CompareSettings, arguments.config, arguments.overrides)
    found = write_comparison(run_rows(settings))
    if arguments.save:
        table = (settings.out / TABLE_FILE).read_text(encoding="utf-8")
        words = [word for word in sys.argv[1:] if word != "--save"]
        save(arguments.config.stem, table, f"raysys compare {shlex.join(words)}")
    figures = {name: row["metrics"]["ndcg"]["mean"] for name, row in found["rows"].items()}
    print(json.dumps({"benchmark": "comparisons", "figures": figures, "failed": found["failed"]}))


if __name__ == "__main__":
    main()
