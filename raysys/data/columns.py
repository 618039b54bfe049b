"""One column of someone's file, checked and converted to the type that raysys uses.

Every refusal is one UserError with file, data row (counting from 1, the header
left out), column and the value found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from raysys.errors import UserError

#: Texts that other programs write where a value is missing; no id may be one of these.
MISSING_WORDS = ("", "nan", "nat", "null", "none", "<na>", "n/a")
#: Fixed, not "now", so that the same file gives the same result on any day.
YEAR_2100_S = 4_102_444_800
#: Above this, a float no longer holds every whole number.
MAX_EXACT_FLOAT = 2**53
SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class Column:
    """A column as read, with its file and its name there."""

    path: Path
    name: str
    values: pa.ChunkedArray

    def error(self, row: int, problem: str) -> UserError:
        """A UserError about the data row with index `row` (from 0)."""
        return UserError(f"{self.path}, row {row + 1}, column '{self.name}': {problem}")

    def refuse(self, bad: pa.ChunkedArray, problem: str) -> None:
        """Raise for the first row where `bad` is true; `problem` follows the value."""
        row = pc.index(bad, True).as_py()
        if row >= 0:
            raise self.error(row, f"{shown(self.values[row].as_py())} {problem}")

    def refuse_missing(self) -> None:
        """Raise for the first null, NaN or blank text."""
        missing = pc.is_null(self.values, nan_is_null=True)
        if pa.types.is_string(self.values.type):
            missing = pc.or_kleene(missing, pc.equal(pc.utf8_trim_whitespace(self.values), ""))
        row = pc.index(missing, True).as_py()
        if row >= 0:
            raise self.error(row, "the value is missing.")

    def wrong_type(self, wanted: str) -> UserError:
        """A UserError about the type of the whole column."""
        return UserError(
            f"{self.path}, column '{self.name}': has type {self.values.type}, not {wanted}."
        )

    def replaced(self, values: pa.ChunkedArray) -> Column:
        """The same column with other values."""
        return Column(self.path, self.name, values)


def shown(value: object) -> str:
    """A value as an error message shows it: quoted, escaped and cut to length."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


def ids(column: Column) -> pa.ChunkedArray:
    """Ids as text without blanks around them: text as it stands, whole numbers in decimals.

    Raises:
        UserError: a missing id, a fraction, a control character, or a type that holds no ids.
    """
    kind = column.values.type
    column.refuse_missing()
    if pa.types.is_integer(kind):
        return pc.cast(column.values, pa.string())
    if pa.types.is_floating(kind):
        # pandas turns a column of whole numbers with a gap into floats.
        return pc.cast(_whole(column, MAX_EXACT_FLOAT), pa.string())
    if pa.types.is_binary(kind):
        column = column.replaced(as_utf8(column))
        column.refuse_missing()
    elif pa.types.is_decimal(kind) and kind.scale == 0:
        return pc.cast(column.values, pa.string())
    elif not pa.types.is_string(kind):
        raise column.wrong_type("text or whole numbers; ids must be one of these")
    text = pc.utf8_trim_whitespace(column.values)
    seen = text.unique()
    words = pc.is_in(pc.utf8_lower(seen), value_set=pa.array(MISSING_WORDS))
    odd = pc.match_substring_regex(seen, r"[\x00-\x1f\x7f]")
    # Distinct ids are few beside the rows: look at the rows only when one is bad.
    if pc.any(words).as_py():
        bad = pc.is_in(text, value_set=seen.filter(words))
        column.refuse(bad, "stands for a missing value and cannot be an id.")
    if pc.any(odd).as_py():
        bad = pc.is_in(text, value_set=seen.filter(odd))
        column.refuse(bad, "holds a line break or control character and cannot be an id.")
    return text


def numbers(column: Column) -> pa.ChunkedArray:
    """Finite float64 numbers; text is parsed.

    Raises:
        UserError: a missing value, NaN, infinity or text that is not a number.
    """
    column.refuse_missing()
    kind = column.values.type
    if not (_is_number(kind) or pa.types.is_string(kind)):
        raise column.wrong_type("numbers")
    values = _cast(_trimmed(column), pa.float64(), "is not a number.")
    column.refuse(pc.invert(pc.is_finite(values)), "is not a finite number.")
    return values


def integers(
    column: Column, problem: str = "is not a whole number of at most 64 bits."
) -> pa.ChunkedArray:
    """Whole numbers of at least 0 as int64; text is parsed; `problem` words the refusal.

    Raises:
        UserError: a missing or negative value, a fraction, or one beyond 64 bits.
    """
    column.refuse_missing()
    kind = column.values.type
    if pa.types.is_floating(kind):
        values = _whole(column, MAX_EXACT_FLOAT)
    elif _is_number(kind) or pa.types.is_string(kind):
        values = _cast(_trimmed(column), pa.int64(), problem)
    else:
        raise column.wrong_type("whole numbers")
    column.refuse(pc.less(values, 0), "is negative.")
    return values


def seconds(column: Column) -> pa.ChunkedArray:
    """Times as int64 seconds since 1970 (UTC), from whole numbers, dates or ISO 8601 text.

    Raises:
        UserError: what `integers` refuses, a text that is neither, or a time after 2099.
    """
    column.refuse_missing()
    kind = column.values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        values = _as_seconds(column.values)
    elif pa.types.is_string(kind) and "-" in column.values[0].as_py().strip()[1:]:
        values = _as_seconds(_parsed_times(_trimmed(column)))
    else:
        values = integers(
            column, "is neither whole seconds since 1970 nor a time like 2024-01-31 12:00:00."
        )
    column.refuse(pc.less(values, 0), "is before 1970.")
    late = pc.greater_equal(values, YEAR_2100_S)
    column.refuse(late, "is after the year 2099; times are seconds since 1970, not milliseconds.")
    return values


def booleans(column: Column) -> pa.ChunkedArray:
    """True and false, from booleans, 0 and 1, or the words true and false in any case.

    Raises:
        UserError: a missing or another value.
    """
    column.refuse_missing()
    if pa.types.is_boolean(column.values.type):
        return column.values
    if not (pa.types.is_integer(column.values.type) or pa.types.is_string(column.values.type)):
        raise column.wrong_type("true and false")
    text = pc.utf8_lower(pc.utf8_trim_whitespace(pc.cast(column.values, pa.string())))
    known = pc.is_in(text, value_set=pa.array(["true", "false", "1", "0"]))
    column.refuse(pc.invert(known), "is neither true nor false.")
    return pc.is_in(text, value_set=pa.array(["true", "1"]))


def words(column: Column, known: Mapping[str, str]) -> pa.ChunkedArray:
    """Each text replaced by its value in `known`, blanks and case aside.

    Raises:
        UserError: a missing value, or a text that is not a key of `known`.
    """
    if not pa.types.is_string(column.values.type):
        raise column.wrong_type("text")
    column.refuse_missing()
    text = pc.utf8_lower(pc.utf8_trim_whitespace(column.values))
    places = pc.index_in(text, value_set=pa.array(list(known)))
    column.refuse(pc.is_null(places), f"is none of {', '.join(known)}.")
    return pc.take(pa.array(list(known.values())), places)


def is_boolean(values: pa.ChunkedArray) -> bool:
    """Whether a column holds booleans, or nothing but the words true and false."""
    if pa.types.is_boolean(values.type):
        return True
    if not pa.types.is_string(values.type):
        return False
    # The first value settles it for most columns without a look at the others.
    if str(values[0].as_py()).strip().lower() not in {"true", "false"}:
        return False
    words = set(pc.utf8_lower(pc.utf8_trim_whitespace(values.unique())).to_pylist())
    return words <= {"true", "false"}


def as_utf8(column: Column) -> pa.ChunkedArray:
    """Bytes as text; a UserError names the first row that is not UTF-8."""
    return _cast(column, pa.string(), "is not UTF-8 text.")


def plain(column: Column) -> pa.ChunkedArray:
    """A further column as plain text, numbers or booleans; blank text and NaN become null.

    Lists are joined with `, `; dates and decimals are written as text.

    Raises:
        UserError: a type that has no plain form (structs, maps, bytes that are not text).
    """
    values, kind = column.values, column.values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.chunked_array([_joined(column)], type=pa.string())
    if pa.types.is_floating(kind):
        return pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return values
    if pa.types.is_nested(kind):
        raise column.wrong_type("text, numbers or lists of text; leave this column out")
    text = _cast(column, pa.string(), "has no plain text form; leave this column out.")
    return pc.if_else(
        pc.equal(pc.utf8_trim_whitespace(text), ""), pa.scalar(None, pa.string()), text
    )


def _joined(column: Column) -> pa.Array:
    if pa.types.is_nested(column.values.type.value_type):
        raise column.wrong_type("text, numbers or lists of text; leave this column out")
    rows = column.values.to_pylist()
    texts = [
        ", ".join(str(part) for part in row if part is not None) if row else "" for row in rows
    ]
    return pa.array([text or None for text in texts], type=pa.string())


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _trimmed(column: Column) -> Column:
    if not pa.types.is_string(column.values.type):
        return column
    return column.replaced(pc.utf8_trim_whitespace(column.values))


def _whole(column: Column, limit: int) -> pa.ChunkedArray:
    """Floats that are whole numbers as int64."""
    values = pc.cast(column.values, pa.float64())
    fits = pc.and_(pc.equal(pc.floor(values), values), pc.less_equal(pc.abs(values), limit))
    column.refuse(pc.invert(fits), "is not a whole number.")
    return pc.cast(values, pa.int64())


def _parsed_times(column: Column) -> pa.ChunkedArray:
    """ISO 8601 text as timestamps; the first row says whether the texts carry a zone."""
    first = column.values.slice(0, 1)
    kind = pa.timestamp("us")
    if not _casts(first, kind):
        kind = pa.timestamp("us", "UTC")
    return _cast(column, kind, "is not a time like 2024-01-31 12:00:00 (as in row 1).")


def _as_seconds(values: pa.ChunkedArray) -> pa.ChunkedArray:
    # Arrow's checked cast refuses fractions of a second; dropping them keeps the order.
    return pc.cast(pc.cast(values, pa.timestamp("s"), safe=False), pa.int64())


def _cast(column: Column, kind: pa.DataType, problem: str) -> pa.ChunkedArray:
    try:
        return pc.cast(column.values, kind)
    except pa.ArrowNotImplementedError:
        raise column.wrong_type("text or numbers; leave this column out") from None
    except pa.ArrowException:
        row = _first_failing(column.values, kind)
        value = shown(column.values[row].as_py())
        raise column.error(row, f"{value} {problem}") from None


def _casts(values: pa.ChunkedArray, kind: pa.DataType) -> bool:
    try:
        pc.cast(values, kind)
    except pa.ArrowException:
        return False
    return True


def _first_failing(values: pa.ChunkedArray, kind: pa.DataType) -> int:
    """Index of the first value that cannot be cast, by halving; there must be one."""
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        if _casts(values.slice(low, middle - low), kind):
            low = middle
        else:
            high = middle
    return low
