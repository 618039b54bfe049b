"""Someone's CSV, TSV or parquet file, read whole.

A CSV is read as text throughout, so that `007` stays `007` and every refusal
can name its row; columns are converted one by one in `raysys.data.columns`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from raysys import schema
from raysys.data import columns
from raysys.data.columns import Column
from raysys.errors import UserError
from raysys.settings import nearest
from raysys.store import read_table

DELIMITERS = {".csv": ",", ".tsv": "\t"}
PARQUET = (".parquet", ".pq")
#: Bytes that the CSV reader looks at together: one row must fit.
BLOCK_BYTES = 16 * 2**20
#: Index columns that pandas writes without being asked.
INDEX_NAMES = ("", "__index_level_0__")


@dataclass(frozen=True)
class Source:
    """A file as read: column names without blanks around them, index columns removed."""

    path: Path
    table: pa.Table

    def column(self, name: str) -> Column:
        """The column with the file's own name `name`."""
        return Column(self.path, name, self.table[name])

    def find(self, ours: str, mapping: Mapping[str, str]) -> str | None:
        """The file's name for one of our columns, or None where it has none.

        An id column may keep our name in one file and have the mapped name in another.

        Raises:
            UserError: a mapped column is not there.
        """
        names = self.table.column_names
        theirs = mapping.get(ours, ours)
        if theirs in names:
            return theirs
        if ours in (schema.USER_ID, schema.ITEM_ID) and ours in names:
            return ours
        if ours in mapping:
            raise self.lacks(theirs, named(ours))
        return None

    def require(self, ours: str, mapping: Mapping[str, str]) -> str:
        """As `find`, and a UserError where the file has no such column."""
        found = self.find(ours, mapping)
        if found is None:
            raise self.lacks(ours, named(ours))
        return found

    def lacks(self, name: str, remedy: str) -> UserError:
        """A UserError about a column that is not there; `remedy` names the option to give."""
        names = self.table.column_names
        # An id column of the right name is never the one that is looked for.
        if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
            return UserError(
                f"{self.path} has the one column {names[0]!r}: separate its columns with commas "
                "(.csv) or tabs (.tsv)."
            )
        hint = nearest(name, [n for n in names if n not in (schema.USER_ID, schema.ITEM_ID)])
        guess = f" ({hint})" if hint.endswith("?") else ""
        return UserError(
            f"{self.path} has no column '{name}'{guess}; it has: {', '.join(names)}. "
            f"Name the column with {remedy}."
        )


def named(ours: str) -> str:
    """How the user says which column is ours."""
    return f"--map {ours}=COLUMN (in a config: data.columns.{ours})"


def read_source(path: Path) -> Source:
    """Read a `.csv`, `.tsv` or `.parquet` file whole.

    Raises:
        UserError: no such file, unknown ending, empty, truncated, not UTF-8, a row
            with too many or too few fields, or two columns of one name.
    """
    suffix = path.suffix.lower()
    if suffix not in DELIMITERS and suffix not in PARQUET:
        raise UserError(f"{path} must end in .csv, .tsv or .parquet.")
    require_file(path)
    if suffix in PARQUET:
        return tidy(path, _read_parquet(path))
    return tidy(path, read_text(path, DELIMITERS[suffix]))


def require_file(path: Path) -> None:
    """Refuse a path that is missing, a folder, or a file of no bytes."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; give one file.")
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty.")


def read_text(path: Path, delimiter: str, *, quoted: bool = True) -> pa.Table:
    """Read a delimited text file, every column as text; blank lines are passed over."""
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PAR1":
        raise UserError(f"{path} is a parquet file: give it the ending .parquet.")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path} is UTF-16 text: save it as UTF-8.")
    try:
        return _parse(path, delimiter, quoted=quoted, threads=True)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        # Only the single-threaded reader knows row numbers.
        return _parse_again(path, delimiter, quoted=quoted)


def _parse_again(path: Path, delimiter: str, *, quoted: bool) -> pa.Table:
    wrong: list[csv.InvalidRow] = []

    def note(row: csv.InvalidRow) -> str:
        wrong.append(row)
        return "error"

    try:
        return _parse(path, delimiter, quoted=quoted, threads=False, note=note)
    except UnicodeDecodeError:
        raise UserError(f"{path}: the header is not UTF-8 text; save the file as UTF-8.") from None
    except pa.ArrowInvalid as error:
        if wrong:
            row = wrong[0]
            raise UserError(
                f"{path}, row {row.number - 1}: {row.actual_columns} field(s) where the header has "
                f"{row.expected_columns}; check the quotes and the '{delimiter}' in this row."
            ) from None
        if "UTF8" in str(error):
            raise _not_utf8(path, delimiter, quoted=quoted) from None
        if "Empty CSV" in str(error):
            raise UserError(f"{path} is empty.") from None
        raise UserError(f"{path} cannot be read as text with columns: {error}") from None


def _not_utf8(path: Path, delimiter: str, *, quoted: bool) -> UserError:
    table = _parse(path, delimiter, quoted=quoted, threads=False, kind=pa.binary())
    for name in table.column_names:
        try:
            columns.as_utf8(Column(path, name, table[name]))
        except UserError as error:
            return UserError(f"{error} Save the file as UTF-8.")
    return UserError(f"{path} is not UTF-8 text; save it as UTF-8.")


def _parse(
    path: Path,
    delimiter: str,
    *,
    quoted: bool,
    threads: bool,
    note: object = None,
    kind: pa.DataType | None = None,
) -> pa.Table:
    table = csv.read_csv(
        path,
        read_options=csv.ReadOptions(use_threads=threads, block_size=BLOCK_BYTES),
        parse_options=csv.ParseOptions(
            delimiter=delimiter,
            quote_char='"' if quoted else False,
            newlines_in_values=quoted,
            invalid_row_handler=note,
        ),
        convert_options=csv.ConvertOptions(default_column_type=kind or pa.string()),
    )
    # Names are decoded only when asked for: here, where the caller catches bad bytes.
    return table.rename_columns([name.strip() for name in table.column_names])


def _read_parquet(path: Path) -> pa.Table:
    try:
        table = read_table(path)
        return pa.table([_decoded(column) for column in table.columns], names=table.column_names)
    except pa.ArrowException as error:
        raise UserError(f"{path} is not a readable parquet file: {error}") from None


def _decoded(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dictionaries unpacked and the other text types as plain strings."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = pc.cast(values, kind.value_type), kind.value_type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pc.cast(values, pa.string())
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pc.cast(values, pa.binary())
    return values


def tidy(path: Path, table: pa.Table) -> Source:
    """Strip column names, leave out index columns, refuse double names and files without rows."""
    names = [name.strip() for name in table.column_names]
    kept = [index for index, name in enumerate(names) if name not in INDEX_NAMES]
    counts = Counter(names[index] for index in kept)
    for name, count in counts.items():
        if count > 1:
            raise UserError(f"{path} has {count} columns named '{name}'; keep one.")
    if table.num_rows == 0:
        raise UserError(f"{path} has a header but no data rows.")
    return Source(path, pa.table([table[i] for i in kept], names=[names[i] for i in kept]))
