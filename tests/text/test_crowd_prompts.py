"""Crowd contextual prompts: every kind, from train alone, cut where it must be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from toy_language_model import toy_tokenizer

from raysys import schema
from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.store import write_table
from raysys.text.crowd_prompts import CrowdSettings, requests, text_columns
from raysys.text.graph_prompts import GraphPrompts, load_graph_templates

TITLES = ["red hat", "blue hat", "red car <|end|> x", None]


@pytest.fixture
def shop(tmp_path: Path) -> Dataset:
    """Two users, four items; the last interaction of each user is the test's."""
    items = {
        "item_id": ["a", "b", "c", "d"],
        "title": TITLES,
        "genres": ["Action|Comedy", "Comedy", "Action | Drama", None],
        "keywords": ["warm head", "warm", "fast", "fast head"],
        "asin": ["X1", "X2", "X3", "X4"],
    }
    rows = {
        "user_id": ["u", "u", "u", "v", "v"],
        "item_id": ["a", "b", "d", "c", "a"],
        "timestamp": [1, 2, 3, 1, 2],
        "split": ["train", "train", "test", "train", "valid"],
        "review": ["nice", None, "of the test", "quick", "of validation"],
    }
    write_table(tmp_path / schema.ITEMS_FILE, pa.table(items))
    write_table(tmp_path / schema.USERS_FILE, pa.table({"user_id": ["u", "v"]}))
    write_table(tmp_path / schema.INTERACTIONS_FILE, pa.table(rows))
    return Dataset.load(tmp_path)


def writer(max_tokens: int = 200) -> GraphPrompts:
    tokenizer = toy_tokenizer()
    return GraphPrompts(tokenizer, len(tokenizer), 2, load_graph_templates(None), max_tokens)


def written(shop: Dataset, **settings: object) -> list[str]:
    """The prompts as text, users and items as ⟨0⟩, ⟨1⟩ …"""
    prompts, table = writer(), requests(CrowdSettings(**settings), shop)
    tokenizer = toy_tokenizer()
    found = []
    for row in table.to_pylist():
        told = [row[name] for name in ("family", "user", "items", "name", "text")]
        tokens = prompts.prompt(*told, 64)
        found.append(
            "".join(
                f"⟨{token - prompts.words}⟩"
                if token >= prompts.words
                else tokenizer.decode([token])
                for token in tokens
            )
        )
    return found


def test_attributes(shop: Dataset) -> None:
    found = written(shop, families=["attribute"], item_columns=["title"])
    assert found[:2] == ["The title of⟨2⟩ is: red hat", "The title of⟨3⟩ is: blue hat"]
    assert len(found) == 3  # the item without a title has no prompt


def test_marks_of_the_model_are_words_in_a_text(shop: Dataset) -> None:
    found = written(shop, families=["attribute"], item_columns=["title"])[2]
    assert "red car" in found
    prompts, end = writer(), toy_tokenizer().eos_token_id
    assert end not in prompts.text(TITLES[2] or "")


def test_reviews_and_events_are_of_train(shop: Dataset) -> None:
    assert written(shop, families=["review"]) == [
        "⟨0⟩ wrote the following review for⟨2⟩: nice",
        "⟨1⟩ wrote the following review for⟨4⟩: quick",
    ]
    assert written(shop, families=["event"]) == [
        "⟨0⟩ has interacted with⟨2⟩⟨3⟩",
        "⟨1⟩ has interacted with⟨4⟩",
    ]


def test_shared_attributes(shop: Dataset) -> None:
    found = written(shop, families=["shared"], shared_columns=["genres"])
    values = {text.split(": ")[1]: text for text in found}
    assert values.keys() == {"Action", "Comedy"}
    assert set(values["Action"].split(" share")[0]) >= {"2", "4"}
    words = {text.split(": ")[1] for text in written(shop, families=["shared"])}
    assert words == {"Action", "Comedy", "warm", "head", "fast"}


def test_shared_lists_are_short_and_few(shop: Dataset) -> None:
    table = requests(
        CrowdSettings(families=["shared"], shared_columns=["asin"], shared_items=2), shop
    )
    assert not len(table)
    table = requests(CrowdSettings(families=["shared"], shared_items=2, shared_lists=1), shop)
    assert max(map(len, table["items"].to_pylist())) == 2


def test_long_events_are_several_prompts(shop: Dataset) -> None:
    table = requests(CrowdSettings(families=["event"], event_items=1), shop)
    assert table["items"].to_pylist() == [[0], [1], [2]]


def test_ids_are_no_texts(shop: Dataset) -> None:
    assert text_columns(shop.items) == ["title", "genres", "keywords"]


def test_an_unknown_column_is_named(shop: Dataset) -> None:
    with pytest.raises(UserError, match=r"item_columns: there is no column 'titel'.*title"):
        requests(CrowdSettings(item_columns=["titel"]), shop)


def test_a_long_history_is_cut_and_the_trigger_kept() -> None:
    prompts = writer(80)
    tokens = prompts.history(1, np.arange(1000)) + prompts.trigger
    assert len(tokens) == 80
    assert tokens[-len(prompts.trigger) :] == prompts.trigger
    assert tokens[0] == prompts.words + 1
    # The latest items stay.
    last_item = tokens[-len(prompts.trigger) - 1]
    assert last_item == prompts.words + prompts.users + 999


def test_long_prompts_fit_the_context() -> None:
    prompts = writer(80)
    assert len(prompts.prompt("event", 0, list(range(500)), "", "", 64)) == 80
    assert len(prompts.prompt("attribute", -1, [3], "title", "a" * 10_000, 30)) <= 80
    shared = prompts.prompt("shared", -1, list(range(500)), "genres", "Drama", 64)
    assert len(shared) == 80
    assert toy_tokenizer().decode(shared[-5:]) == "Drama"


def test_no_room_for_an_item() -> None:
    with pytest.raises(UserError, match="no room for a single item"):
        writer(16)


@pytest.mark.parametrize("name", ["attribute", "event", "trigger"])
def test_a_template_without_its_places(name: str, tmp_path: Path) -> None:
    templates = load_graph_templates(None).model_dump()
    templates[name] = "{user} {wrong}"
    path = tmp_path / "own.toml"
    path.write_text("\n".join(f"{key} = {value!r}" for key, value in templates.items()))
    with pytest.raises(UserError, match=rf"own.toml, {name}: .* each once"):
        load_graph_templates(path)
