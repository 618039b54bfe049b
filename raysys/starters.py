"""The configs that come with raysys: in a checkout, or beside an installed wheel."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from raysys.errors import UserError
from raysys.settings import nearest

_SHARE = "share/raysys/configs"


def starters() -> dict[str, Path]:
    """Name → file of each config."""
    checkout = Path(__file__).parents[1] / "configs"
    if checkout.is_dir():
        return {path.stem: path for path in sorted(checkout.glob("*.toml"))}
    try:
        files = metadata.files("raysys") or []
    except metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if _SHARE in file.as_posix()]
    return {path.stem: path.resolve() for path in sorted(found) if path.suffix == ".toml"}


def command_of(name: str) -> str:
    """The command that a config is for, as its first lines say it: `run`, `train elmrec`, …"""
    text = starters()[name].read_text(encoding="utf-8")
    found = re.search(rf"`raysys ([a-z -]+) configs/{re.escape(name)}\.toml", text)
    return "run" if found is None else found[1]


def copy_starter(name: str, target: Path) -> Path:
    """Copy a config to where it can be changed.

    Args:
        name: of a config, with or without `.toml`.
        target: a file, or a folder for one of the same name.

    Raises:
        UserError: no such config, or a file that is there already.
    """
    known = starters()
    wanted = name.removesuffix(".toml")
    if wanted not in known:
        raise UserError(f"no config '{name}': {nearest(wanted, list(known))}")
    path = target / known[wanted].name if target.is_dir() else target
    text = known[wanted].read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path} is there already: move it, or name another with --out.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from None
    return path
