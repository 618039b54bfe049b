"""The base of every config: typed, frozen, strict, and helpful about typing slips.

Configs are TOML or YAML files; `key=value` words on the command line override
single keys (`train.epochs=5`). Nothing here starts Ray or reads data.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from raysys.errors import UserError

SettingsT = TypeVar("SettingsT", bound="Settings")


class Settings(BaseModel):
    """Base class: immutable, unknown keys refused, each field described by its docstring."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    #: Keys of an older version → where they are now, from the top of the config.
    moved: ClassVar[Mapping[str, str]] = {}


def nearest(word: str, valid: Sequence[str]) -> str:
    """Say which valid word is meant, or list them all: `did you mean 'seed'?`."""
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return "valid: " + ", ".join(sorted(valid))


def load_settings(
    cls: type[SettingsT], path: Path | str, overrides: Sequence[str] = ()
) -> SettingsT:
    """Read a config file, apply `key=value` overrides and validate.

    Args:
        cls: the settings class of the whole file.
        path: a `.toml`, `.yaml` or `.yml` file.
        overrides: words like `train.epochs=5`; values are read as TOML, and as
            plain text where they are not valid TOML.

    Raises:
        UserError: no such file, not parseable, unknown key (with the nearest
            valid one), or a value that is out of range.
    """
    values = read_values(Path(path))
    override_values(values, overrides)
    return parse_settings(cls, values, source=str(path))


def override_values(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set single keys of a nested dict, in place; see `load_settings`.

    Raises:
        UserError: a word that is not of the form key=value.
    """
    for word in overrides:
        _override(values, word)


def parse_settings(cls: type[SettingsT], values: dict[str, Any], *, source: str) -> SettingsT:
    """Validate a nested dict as `cls`; problems become one UserError naming `source`."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        lines = [_explain(cls, dict(problem)) for problem in error.errors()]
        raise UserError(f"{source}: " + "; ".join(lines)) from None


def parse_nested(cls: type[SettingsT], values: dict[str, Any], *, source: str) -> SettingsT:
    """As `parse_settings`, for a validator: a ValueError, so that whoever reads a file names it."""
    try:
        return parse_settings(cls, values, source=source)
    except UserError as error:
        raise ValueError(str(error)) from None


def read_values(path: Path) -> dict[str, Any]:
    """The keys and values of a config file, as they stand there.

    Raises:
        UserError: no such file, not parseable, or no keys at its top level.
    """
    if not path.is_file():
        raise UserError(f"config file {path} does not exist.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".toml":
            values: Any = tomllib.loads(text)
        elif path.suffix in {".yaml", ".yml"}:
            values = yaml.safe_load(text) or {}
        else:
            raise UserError(f"config file {path} must end in .toml, .yaml or .yml.")
    except (tomllib.TOMLDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} cannot be parsed: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"config file {path} must hold keys and values at its top level.")
    return values


def _override(values: dict[str, Any], word: str) -> None:
    key, equals, text = word.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise UserError(f"override '{word}' must look like key=value or section.key=value.")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text
    set_key(values, key.strip(), value)


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set one key of a nested dict, such as `train.epochs`, in place.

    Raises:
        UserError: a part before the last is a value.
    """
    *sections, last = key.split(".")
    node = values
    for part in sections:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UserError(f"'{key}': '{part}' is a value, not a section.")
    node[last] = value


def _explain(cls: type[BaseModel], problem: dict[str, Any]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        owner = _model_at(cls, location[:-1])
        if owner is not None and issubclass(owner, Settings) and location[-1] in owner.moved:
            new, value = owner.moved[location[-1]], json.dumps(problem["input"], default=str)
            return f"key '{key}' is of an older version: write {new} = {value} instead"
        hint = nearest(location[-1], list(owner.model_fields)) if owner else ""
        return f"unknown key '{key}': {hint}"
    if problem["type"] == "missing":
        return f"key '{key}' is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"key '{key}': {message} (got {problem['input']!r})" if key else message


def _model_at(cls: type[BaseModel], location: Sequence[str]) -> type[BaseModel] | None:
    candidates = [cls]
    for part in location:
        found = [model.model_fields[part] for model in candidates if part in model.model_fields]
        if found:
            candidates = [model for field in found for model in _models_in(field.annotation)]
        else:  # a list index, a dict key, or the tag of a union inside the same field
            tagged = [model for model in candidates if _has_tag(model, part)]
            candidates = tagged or candidates
    return candidates[0] if candidates else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in {Union, UnionType, list, tuple, dict, Annotated}:
        return [model for argument in get_args(annotation) for model in _models_in(argument)]
    return []


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    return any(tag in get_args(field.annotation) for field in model.model_fields.values())
