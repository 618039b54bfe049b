"""MovieLens-100K from RecBole's atomic files: `ml-100k.inter`, `.item` and `.user`.

The files are tab-separated without quoting, and their header names carry types
(`user_id:token`). Titles come as `Usual Suspects, The` with the year apart.
"""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa

from raysys import schema
from raysys.data.sources import Source, read_text, require_file, tidy
from raysys.errors import UserError

NAME = "ml-100k"
GENRES = "genres"
RELEASE_YEAR = "release_year"
#: Column names in the files -> ours.
NAMES = {"movie_title": schema.TITLE, "class": GENRES}
ITEM_COLUMNS = (schema.ITEM_ID, schema.TITLE, GENRES, RELEASE_YEAR)

ARTICLES = ("The", "A", "An", "La", "Le", "Les", "L'", "Il", "O", "Der", "Die", "Das", "Det")
#: `Seventh Seal, The (Sjunde inseglet, Det)`: a part, a comma, its article, and no more words.
_TRAILING_ARTICLE = re.compile(rf"([^()]+), ({'|'.join(ARTICLES)})(?=\s*(?:[()]|$))")
_TRAILING_YEAR = re.compile(r" \((\d{4})\)$")


def read_movielens(folder: Path) -> tuple[Source, Source, Source]:
    """Read the interactions, items and users of the folder.

    Items get the columns item_id, title (`The Usual Suspects (1995)`), genres
    (`Crime, Thriller`) and release_year (int64), null where the file has none.

    Raises:
        UserError: a file is missing, or is not as described above.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder with {NAME}.inter, {NAME}.item and {NAME}.user.")
    interactions, items, users = (
        _read(folder / f"{NAME}.{ending}") for ending in ("inter", "item", "user")
    )
    return interactions, Source(items.path, _items(items)), users


def _read(path: Path) -> Source:
    require_file(path)
    table = read_text(path, "\t", quoted=False)
    names = [name.partition(":")[0] for name in table.column_names]
    return tidy(path, table.rename_columns([NAMES.get(name, name) for name in names]))


def _items(source: Source) -> pa.Table:
    for name in ITEM_COLUMNS:
        if name not in source.table.column_names:
            raise UserError(f"{source.path} is not MovieLens-100K: it has no column for {name}.")
    texts = (source.table[name].to_pylist() for name in ITEM_COLUMNS[1:])
    rows = [_item(title, genres, year) for title, genres, year in zip(*texts, strict=True)]
    titles, genres, years = zip(*rows, strict=True)
    return pa.table(
        {
            schema.ITEM_ID: source.table[schema.ITEM_ID],
            schema.TITLE: pa.chunked_array([titles], pa.string()),
            GENRES: pa.chunked_array([genres], pa.string()),
            RELEASE_YEAR: pa.chunked_array([years], pa.int64()),
        }
    )


def _item(title: str, genres: str, year: str) -> tuple[str, str | None, int | None]:
    # Item 267 is spelled so in the file; GroupLens calls it "unknown", without date or genre.
    if title == "unkonwn":
        return "unknown", None, None
    # Item 1412 has its year in the title and "V" in the year column.
    written = _TRAILING_YEAR.search(title)
    if written:
        title, year = title[: written.start()], written[1]
    title = _TRAILING_ARTICLE.sub(_article_first, title)
    joined = ", ".join(genres.split())
    if not year.isdecimal():
        return title, joined, None
    return f"{title} ({year})", joined, int(year)


def _article_first(match: re.Match[str]) -> str:
    rest, article = match[1], match[2]
    return f"{article}{rest}" if article.endswith("'") else f"{article} {rest}"
