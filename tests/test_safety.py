"""What must never be in the package, whoever writes the next line."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raysys"
BANNED_CALLS = {
    "eval", "exec", "pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads",
    "torch.load", "joblib.load", "yaml.load", "marshal.loads", "os.system",
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_code_is_loaded_from_data(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in BANNED_CALLS, f"{path}:{node.lineno}"
            for keyword in node.keywords:
                wrong = keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False"
                assert not wrong, f"{path}:{node.lineno}"
                shell = keyword.arg == "shell" and ast.unparse(keyword.value) != "False"
                assert not shell, f"{path}:{node.lineno}"


def test_importing_the_command_line_starts_nothing_and_stays_light():
    code = (
        "import sys, raysys.cli; "
        "heavy = {'ray', 'torch', 'vllm', 'transformers'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_every_module_starts_no_ray():
    names = [
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
    ]
    code = "import importlib, sys\n"
    code += "".join(f"importlib.import_module({name!r})\n" for name in names)
    code += "ray = sys.modules.get('ray'); assert ray is None or not ray.is_initialized()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_files_stay_readable():
    long = {str(path): len(path.read_text().splitlines()) for path in FILES}
    assert {path: lines for path, lines in long.items() if lines > 500} == {}


def test_the_architecture_is_drawn_from_the_code() -> None:
    path = ROOT / "docs/draw_architecture.py"
    spec = importlib.util.spec_from_file_location("draw_architecture", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run: python docs/draw_architecture.py"
