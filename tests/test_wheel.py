"""The wheel has all that a run elsewhere needs: configs, prompts, pages."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from raysys.errors import UserError
from raysys.starters import copy_starter, starters

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("raysys", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(folder), str(source)], check=True)
    (found,) = folder.glob("*.whl")
    return found


def test_everything_travels_inside(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "raysys").rglob("*"):
        if path.suffix in (".py", ".html", ".toml") and "__pycache__" not in path.parts:
            assert path.relative_to(ROOT).as_posix() in inside
    configs = {Path(name).name for name in inside if "share/raysys/configs" in name}
    assert configs == {path.name for path in (ROOT / "configs").glob("*.toml")}
    assert not [name for name in inside if name.endswith((".parquet", ".safetensors"))]


def test_it_works_elsewhere(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env")
    python = tmp_path / "env/bin/python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    subprocess.run([*install, str(wheel)], check=True)
    (site,) = (tmp_path / "env/lib").glob("python*/site-packages")
    # All that raysys needs is here already; raysys itself is found in its own place first.
    (site / "needs.pth").write_text(sysconfig.get_path("purelib"))

    def out(*words: str) -> str:
        ran = subprocess.run([python, *words], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    assert str(site) in out("-c", "import raysys; print(raysys.__file__)")
    command = str(tmp_path / "env/bin/raysys")
    assert "raysys run own_data.toml" in out(command, "init", "own_data")
    assert (tmp_path / "own_data.toml").read_text() == (ROOT / "configs/own_data.toml").read_text()
    (tmp_path / "ratings.csv").write_text("user_id,item_id\nu,a\nu,b\nu,c\nv,a\n")
    (tmp_path / "items.csv").write_text("item_id,title\na,A\nb,B\nc,C\n")
    files = ["--interactions", "ratings.csv", "--items", "items.csv", "--out", "mine"]
    assert "written to" in out(command, "data", "import", *files)
    out("-c", "from raysys.text.prompts import load_prompts; load_prompts('rlmrec', 'movies', 20)")


def test_a_config_is_copied_once(tmp_path: Path) -> None:
    path = copy_starter("quickstart.toml", tmp_path)
    assert path.read_text() == (ROOT / "configs/quickstart.toml").read_text()
    path.write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        copy_starter("quickstart", tmp_path)
    assert path.read_text() == "mine"
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        copy_starter("quickstrt", tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        copy_starter("quickstart", tmp_path / "no" / "folder.toml")
    assert len(starters()) >= 5
