from __future__ import annotations

import pytest
from pydantic import Field

from raysys.errors import UserError
from raysys.settings import Settings, load_settings


class Inner(Settings):
    epochs: int = Field(default=3, ge=1)


class Outer(Settings):
    moved = {"epochs": "train.epochs"}  # noqa: RUF012
    train: Inner = Inner()
    named: dict[str, Inner] = Field(default_factory=dict)
    name: str = "x"


def write(tmp_path, text, name="c.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_reads_toml_yaml_and_overrides(tmp_path):
    toml = load_settings(Outer, write(tmp_path, "[train]\nepochs = 5\n"))
    yaml = load_settings(Outer, write(tmp_path, "train: {epochs: 5}\n", "c.yaml"))
    assert toml == yaml
    assert toml.train.epochs == 5
    changed = load_settings(
        Outer, write(tmp_path, ""), ["train.epochs=7", "name=plain words", "named.a.epochs=2"]
    )
    assert (changed.train.epochs, changed.name, changed.named["a"].epochs) == (7, "plain words", 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nam = 'y'", ["unknown key 'nam'", "did you mean 'name'?"]),
        ("[train]\nepoch = 5", ["unknown key 'train.epoch'", "did you mean 'epochs'?"]),
        ("[named.first]\nepoc = 5", ["'named.first.epoc'", "'epochs'"]),
        ("[train]\nzzz = 5", ["valid: epochs"]),
        ("[train]\nepochs = 0", ["train.epochs", "greater than or equal to 1", "got 0"]),
        ("[train]\nepochs = 'many'", ["train.epochs", "integer"]),
        ("= 3", ["cannot be parsed"]),
        ("epochs = 7", ["'epochs' is of an older version: write train.epochs = 7 instead"]),
    ],
)
def test_mistakes_name_the_key_and_the_nearest_valid_one(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_settings(Outer, path)
    for word in [*words, str(path)]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("train", "override 'train' must look like"),
        ("=3", "override '=3' must look like"),
        ("train.=3", "override 'train.=3' must look like"),
        ("name.deeper=1", "'name.deeper': 'name' is a value, not a section"),
    ],
)
def test_a_malformed_override_is_named(tmp_path, word, why):
    with pytest.raises(UserError, match=why):
        load_settings(Outer, write(tmp_path, "name = 'y'"), [word])


def test_missing_file_and_wrong_ending(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_settings(Outer, tmp_path / "none.toml")
    with pytest.raises(UserError, match="must end in"):
        load_settings(Outer, write(tmp_path, "", "c.ini"))


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Inner().epochs = 5  # type: ignore[misc]
