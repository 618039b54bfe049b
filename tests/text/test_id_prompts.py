from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from toy_language_model import toy_shop

from raysys.data.dataset import Dataset
from raysys.errors import UserError
from raysys.models.elmrec import NO_LABEL
from raysys.store import read_table, write_table
from raysys.text.engine import tokenizer_of
from raysys.text.id_prompts import IdPrompts, Row, id_numbers, load_templates
from raysys.text.small_models import SmallSettings, write_small_seq2seq

NUMBERS = np.arange(1, 13), np.arange(1, 31)
SMALL = SmallSettings(width=16, layers=1, heads=2, inner=16, vocabulary=320)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp("small"))
    words = [f"user_{n}" for n in NUMBERS[0]] + [f"item_{n}" for n in NUMBERS[1]]
    write_small_seq2seq(folder, SMALL, words, seed=0)
    return tokenizer_of(str(folder), None)


@pytest.fixture(scope="module")
def prompts(tokenizer) -> IdPrompts:
    return IdPrompts(tokenizer, load_templates(None), NUMBERS)


def test_rows_are_written_with_whole_words(prompts, tokenizer) -> None:
    rows = [Row(2, np.array([10, 4]), 4), Row(0, np.array([29]), 29)]
    batch = prompts.batch("direct", rows, None, shuffled=False)
    texts = [
        tokenizer.decode(tokens[mask])
        for tokens, mask in zip(batch.tokens, batch.mask, strict=True)
    ]
    assert [text.split("</s>")[0].strip() for text in texts] == [
        "user_3 item_11 item_5",
        "user_1 item_30",
    ]
    for row, words in enumerate(([(3, 1), (23, 2), (17, 3)], [(1, 1), (42, 2)])):
        named = list(zip(batch.nodes[row].tolist(), batch.order[row].tolist(), strict=True))
        assert [pair for pair in dict.fromkeys(named) if pair != (0, 0)] == words
        short = zip(batch.word_nodes[row].tolist(), batch.word_order[row].tolist(), strict=True)
        assert [pair for pair in short if pair != (0, 0)] == words
    assert batch.users.tolist() == [2, 0]
    assert batch.items.tolist() == [4, 29]
    answers = [[token for token in row if token != NO_LABEL] for row in batch.labels.tolist()]
    assert [prompts.text(np.array(row)) for row in answers] == ["item_5", "item_30"]
    assert [[t for t in prompts.items[row] if t >= 0] for row in (4, 29)] == answers


def test_a_random_order_is_of_the_row_alone_where_nothing_is_drawn(prompts) -> None:
    rows = [Row(2, np.arange(10, 20), 4)]
    first, again = (prompts.batch("direct", rows, None, shuffled=True) for _ in range(2))
    assert first.word_order.tolist() == again.word_order.tolist()
    assert sorted(first.word_order[0].tolist()) == list(range(1, 12))
    assert first.word_order[0].tolist() != list(range(1, 12))


def test_an_explanation_shows_its_item_and_writes_its_text(prompts, tokenizer) -> None:
    text = "good\u202e strings 🎸\nfor the price"
    row = Row(1, np.empty(0, np.int64), 7, prompts.explanation(text, 200))
    batch = prompts.batch("explanation", [row], None, shuffled=False)
    assert tokenizer.decode(batch.tokens[0]).split("</s>")[0].strip() == "user_2 item_8"
    assert prompts.text(batch.labels[0].numpy()) == "good strings 🎸 for the price"
    assert len(prompts.explanation("long " * 500, 20)) == 20


def test_numbers_follow_train_alone(tmp_path) -> None:
    """Moving a user's later items about changes no number; the file's order is no hint."""
    shop = toy_shop(tmp_path)
    users, items = id_numbers(shop, "train_order", 0)
    assert sorted(items) == list(range(1, 31))
    train = shop.pairs("train")[1]
    _, first = np.unique(train, return_index=True)
    appeared = train[np.sort(first)]
    assert items[appeared].tolist() == list(range(1, len(appeared) + 1))
    path = tmp_path / "interactions.parquet"
    table = read_table(path)
    keep = [split == "train" for split in table["split"].to_pylist()]
    write_table(path, table.filter(pa.array(keep)))
    alone = Dataset.load(tmp_path)
    for ours, theirs in zip(id_numbers(alone, "train_order", 0), (users, items), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    drawn = id_numbers(shop, "random", 0)[1]
    assert sorted(drawn) == list(range(1, 31))
    assert drawn.tolist() != id_numbers(shop, "random", 1)[1].tolist()


@pytest.mark.parametrize(
    "text", ["{user} only", "{items}", "{user} {items} {price}", "{user {items}"]
)
def test_templates_that_cannot_be_filled_in_are_refused(tmp_path, text) -> None:
    path = tmp_path / "mine.toml"
    lines = [f"{task} = ['{text}']" for task in ("direct", "sequential", "explanation")]
    path.write_text("\n".join(["version = 1", *lines]))
    with pytest.raises(UserError, match=r"mine\.toml, direct: .* must hold"):
        load_templates(path)


def test_words_around_the_ids_belong_to_no_word(tmp_path, tokenizer) -> None:
    path = tmp_path / "mine.toml"
    lines = [
        f"{t} = ['What for {{user}} ? {{items}}']" for t in ("direct", "sequential", "explanation")
    ]
    path.write_text("\n".join(["version = 1", *lines]))
    mine = IdPrompts(tokenizer, load_templates(path), NUMBERS)
    batch = mine.batch("direct", [Row(0, np.array([1]), 1)], None, shuffled=False)
    assert tokenizer.decode(batch.tokens[0]).startswith(" What for user_1 ? item_2")
    assert batch.nodes[0, 0] == 0
    assert batch.word_nodes.tolist() == [[1, 14]]


class Letters:
    """A tokeniser with few letters."""

    pad_token_id, eos_token_id, unk_token_id = 0, 1, 2

    def __init__(self, known: str) -> None:
        self._known = known

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        ids = [[3 + self._known.find(c) if c in self._known else 2 for c in t] for t in texts]
        return {"input_ids": ids}


def test_a_tokeniser_that_cannot_write_ids_is_refused() -> None:
    with pytest.raises(UserError, match="cannot write 'user_1'"):
        IdPrompts(Letters("abc"), load_templates(None), NUMBERS)


def test_two_items_that_are_written_alike_are_refused() -> None:
    class Blind(Letters):
        def __call__(self, texts, add_special_tokens):
            return {"input_ids": [[5] for _ in texts]}

    with pytest.raises(UserError, match="writes two items with the same tokens"):
        IdPrompts(Blind(""), load_templates(None), NUMBERS)
