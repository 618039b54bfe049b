"""Draw docs/architecture.md from the code: `python docs/draw_architecture.py`.

The floors are import-linter's (pyproject.toml), which CI holds the code to; the arrows are the
imports that are there, less those that other arrows lead to; each module is told by the first line
of its docstring.
"""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/architecture.md"
#: Read by nearly everything: arrows to them would hide all others.
_EVERYWHERE = {"errors", "version", "observe", "schema", "settings", "store", "manifest"}


def floors() -> list[list[str]]:
    """Names below `raysys`, from the top floor down."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    return [[name.strip().removeprefix("raysys.") for name in one.split(":")] for one in layers]


def imports() -> dict[str, set[str]]:
    """Importer → what it imports, by their names below `raysys`."""
    graph = grimp.build_graph("raysys")
    found: dict[str, set[str]] = {}
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            if "." in module and "." in other:
                importer, imported = (name.split(".")[1] for name in (module, other))
                if importer != imported and imported not in _EVERYWHERE:
                    found.setdefault(importer, set()).add(imported)
    return found


def reached(start: str, arrows: dict[str, set[str]]) -> set[str]:
    """All that arrows lead to from a name."""
    found = set(arrows.get(start, ()))
    for name in list(found):
        found |= reached(name, arrows)
    return found


def said(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def page() -> str:
    """The page's text."""
    levels, found = floors(), imports()
    shown = [[name for name in level if name not in _EVERYWHERE] for level in levels]
    chart = ["flowchart TD"]
    for number, level in enumerate(level for level in shown if level):
        chart.append(f"  subgraph f{number}[ ]")
        chart += [f"    n_{name}[{name}]" for name in level]
        chart.append("  end")
    names = {name for level in shown for name in level}
    for importer in sorted(names & set(found)):
        further = set().union(*(reached(name, found) for name in found[importer]))
        chart += [f"  n_{importer} --> n_{name}" for name in sorted(found[importer] - further)]
    lines = [
        "# Architecture",
        "",
        "Written by `python docs/draw_architecture.py`, never by hand. Imports go down the floors",
        "(`lint-imports`, in CI); those on one floor do not import each other. What nearly all",
        f"read is not drawn: {', '.join(sorted(_EVERYWHERE))}.",
        "Models, graphs and ranking know nothing of Ray.",
        "",
        "```mermaid",
        *chart,
        "```",
        "",
    ]
    for level in levels:
        for name in level:
            folder, module = ROOT / "raysys" / name, ROOT / "raysys" / f"{name}.py"
            if module.is_file():
                lines += [f"**`raysys/{name}.py`** {said(module)}", ""]
                continue
            lines += [f"**`raysys/{name}/`** {said(folder / '__init__.py')}", ""]
            for path in sorted(folder.glob("*.py")):
                if path.name != "__init__.py":
                    lines.append(f"- `{path.name}` {said(path)}")
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
