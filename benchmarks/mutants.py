"""How many wrong programs the tests notice: a sample of mutants of the mathematics.

A mutant is the code with one operator, comparison or number changed; it is killed where a test
fails. Those that change an annotation alone, or cannot be parsed, do not count. cosmic-ray makes
them, in an environment of its own: `python -m venv E && E/bin/pip install cosmic-ray`, then
`python -m benchmarks.mutants --cosmic-ray E/bin/cosmic-ray`. With `--folder` a stopped run goes on.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from benchmarks.tables import markdown, save, this_command

MODULES = ("raysys/models", "raysys/graph", "raysys/evaluation", "raysys/ranking")
#: After the tests that import the mutated module.
ALL = ("tests/graph", "tests/ranking", "tests/evaluation", "tests/models", "tests/golden")
_CONFIG, _SESSION = "mutants.toml", "mutants.sqlite"
_SECONDS = 600
#: Their names are random; places in the code are not.
_PLACES = "SELECT job_id FROM mutation_specs ORDER BY module_path, operator_name, occurrence"
_RESULTS = """SELECT s.module_path, s.start_pos_row, r.test_outcome, r.diff
    FROM mutation_specs s JOIN work_results r USING (job_id) ORDER BY 1, 2"""


def prepare(cosmic_ray: str, folder: Path, sample: int, seed: int) -> None:
    """A clone of the last commit with a session of `sample` mutants, drawn by seed."""
    subprocess.run(["git", "clone", "--quiet", ".", str(folder)], check=True)
    tests = f"{sys.executable} -m benchmarks.mutants --tests"
    config = {
        "module-path": list(MODULES),
        "timeout": float(_SECONDS),
        "excluded-modules": [],
        "test-command": tests,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in config.items()]
    lines += ["[cosmic-ray.distributor]", 'name = "local"', ""]
    (folder / _CONFIG).write_text("\n".join(["[cosmic-ray]", *lines]), encoding="utf-8")
    subprocess.run([cosmic_ray, "init", _CONFIG, _SESSION], cwd=folder, check=True)
    with closing(sqlite3.connect(folder / _SESSION)) as session, session:
        jobs = [row[0] for row in session.execute(_PLACES)]
        kept = set(random.Random(seed).sample(jobs, min(sample, len(jobs))))
        for table in ("mutation_specs", "work_items"):
            session.executemany(
                f"DELETE FROM {table} WHERE job_id = ?",
                [(job,) for job in jobs if job not in kept],
            )


def run_tests() -> int:
    """Of the module that is changed here: those that import it, then those of all modules."""
    found = subprocess.run(
        ["git", "diff", "--name-only", "--", "raysys"], capture_output=True, text=True, check=True
    )
    module = found.stdout.strip().removesuffix(".py").replace("/", ".")
    own = [str(path) for path in Path("tests").rglob("test_*.py") if module in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    for tests in (own, list(ALL)):
        if tests and subprocess.run([*command, "-m", "not ray and not engine", *tests]).returncode:
            return 1
    return 0


def another_program(source: str, diff: str) -> bool:
    """Whether a mutant is one: it can be parsed, and differs in more than annotations."""
    lines = diff.splitlines()
    hunk = lines[1 + next(place for place, line in enumerate(lines) if line[:2] == "@@") :]
    before, after = (
        "\n".join(line[1:] for line in hunk if line[:1] in ("", " ", sign)) for sign in "-+"
    )
    assert before in source
    try:
        mutated = _without_annotations(source.replace(before, after, 1))
    except SyntaxError:
        return False
    return mutated != _without_annotations(source)


def _without_annotations(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def main() -> None:
    """Make, test and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", action="store_true", help="test the mutant in this folder")
    parser.add_argument("--cosmic-ray", default="cosmic-ray", help="its command")
    parser.add_argument("--sample", type=int, default=80)
    parser.add_argument("--seed", type=int, default=2023)
    parser.add_argument("--save", action="store_true", help="show the table in CONTRIBUTING.md")
    parser.add_argument("--folder", type=Path, help="kept; a run that stopped goes on in it")
    arguments = parser.parse_args()
    if arguments.tests:
        raise SystemExit(run_tests())
    folder = arguments.folder or Path(tempfile.mkdtemp()) / "mutants"
    if not (folder / _SESSION).is_file():
        prepare(arguments.cosmic_ray, folder, arguments.sample, arguments.seed)
    subprocess.run(
        [arguments.cosmic_ray, "exec", _CONFIG, _SESSION],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        check=True,
    )
    with closing(sqlite3.connect(folder / _SESSION)) as session:
        results = session.execute(_RESULTS).fetchall()
    counted = [
        (path, row, outcome, diff)
        for path, row, outcome, diff in results
        if another_program((folder / path).read_text(encoding="utf-8"), diff)
    ]
    survivors = [(path, row, diff) for path, row, out, diff in counted if out == "SURVIVED"]
    figures = {
        "mutants": len(counted),
        "no_other_program": len(results) - len(counted),
        "killed": len(counted) - len(survivors),
        "killed_share": round(1 - len(survivors) / max(1, len(counted)), 3),
    }
    rows = [[f"`{path}:{row}`", *changed(diff)] for path, row, diff in survivors]
    table = markdown(["survivor", "line", "mutant"], rows)
    about = f"{figures['killed']} of {len(counted)} mutants killed; the others:\n\n"
    print(about + table, file=sys.stderr)
    if arguments.save:
        save("mutants", about + table, this_command("mutants"))
    print(json.dumps({"benchmark": "mutants", "figures": figures}))


def changed(diff: str) -> list[str]:
    """The lines that a mutant changes, before and after."""
    lines = diff.splitlines()[3:]
    return [
        " ".join(
            f"`{line[1:].strip()}`" for line in lines if line[:1] == sign and line[1:].strip()
        ).replace("|", "\\|")
        for sign in "-+"
    ]


if __name__ == "__main__":
    main()
