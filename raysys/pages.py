"""Pages for people: one head, one style and one kind of table."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from raysys.store import replace_file

#: What every page extends; it knows `table(head, rows)` and `picture(png, meaning)`.
_BASE = "page_base.html"


def page(
    package: str,
    template: str,
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **values: Any,
) -> str:
    """A filled template.

    Args:
        package, template: where the template is; it extends `page_base.html`.
        filters: that it uses beside jinja2's.
        values: what it names; text is escaped, PNG bytes are for `picture`.
    """
    sources = {
        _BASE: files("raysys").joinpath(_BASE).read_text(encoding="utf-8"),
        template: files(package).joinpath(template).read_text(encoding="utf-8"),
    }
    environment = Environment(
        autoescape=True,
        loader=DictLoader(sources),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters.update(filters or {})
    return environment.get_template(template).render(**values)


def write_page(path: Path, package: str, template: str, **values: Any) -> None:
    """Write a filled template, whole or not at all; see `page`."""
    text = page(package, template, **values)
    replace_file(path, lambda new: new.write_text(text, encoding="utf-8"))
