"""The commands of README and docs: all are ones that raysys knows, and README's are run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from raysys.cli import app
from raysys.store import read_json

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: What stands for a value of the reader's.
_FREE = re.compile(r"\[[^\]]*…?\]|…")


def commands(page: Path) -> list[list[str]]:
    """The words of each `raysys …` line in the page's code blocks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page.read_text(), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [_FREE.sub("", line.partition(" # ")[0]) for line in lines]
    return [shlex.split(line)[1:] for line in found if line.lstrip().startswith("raysys ")]


def test_commands_are_found() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 20
    assert commands(ROOT / "README.md")[0][:2] == ["data", "import"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_raysys_knows_every_command_of_a_page(page: Path) -> None:
    for words in commands(page):
        rest, command = list(words), typer.main.get_command(app)
        # Groups are opened until the command itself has taken its words, or refused them.
        context = command.make_context("raysys", rest)
        while hasattr(context.command, "commands"):
            rest = [*context._protected_args, *context.args]
            name, command, rest = context.command.resolve_command(context, rest)
            context = command.make_context(name, rest, parent=context)


@pytest.mark.engine
def test_an_own_data_set_goes_through_as_readme_says(tmp_path: Path) -> None:
    """With the real language model, and a catalogue of ten books."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    draw = np.random.default_rng(0)
    rows = [f"r{user},b{item},5" for user in range(12) for item in draw.choice(10, 7, False)]
    (tmp_path / "ratings.csv").write_text("reviewer,item_id,rating\n" + "\n".join(rows))
    books = "\n".join(f"b{item},The book of {item} winters" for item in range(10))
    (tmp_path / "items.csv").write_text(f"item_id,title\n{books}\n")
    quick = ["train.epochs=2", "profiles.item_words=5", "profiles.user_words=5"]
    quick += ["--model", "lightgcn", "--align", "con"]
    imported, ran = commands(ROOT / "README.md")[:2]
    for words in (imported, [*ran, *quick]):
        done = subprocess.run(
            [sys.executable, "-c", "import raysys.cli, sys; sys.exit(raysys.cli.main())", *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "data" / "mine" / "manifest.json").is_file()
    report = read_json(tmp_path / "runs" / "mine" / "report.json")
    assert set(report["models"]) == {"popularity", "lightgcn_con"}
    assert "My books" in (tmp_path / "runs" / "mine" / "report.html").read_text()
