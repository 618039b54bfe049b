"""Pages for people: one head, one style and one kind of table for all but the report."""

from __future__ import annotations

import base64
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from raysys.store import replace_file

#: What every page extends; it knows `table(head, rows)` and `picture(png, meaning)`.
_BASE = "page_base.html"


def write_page(path: Path, package: str, template: str, **values: Any) -> None:
    """Fill a template and write it, whole or not at all.

    Args:
        path: the page.
        package, template: where the template is; it extends `page_base.html`.
        values: what it names; text is escaped, PNG bytes are for `picture`.
    """
    sources = {
        _BASE: files("raysys").joinpath(_BASE).read_text(encoding="utf-8"),
        template: files(package).joinpath(template).read_text(encoding="utf-8"),
    }
    environment = Environment(
        autoescape=True, loader=DictLoader(sources), undefined=StrictUndefined
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    page = environment.get_template(template).render(**values)
    replace_file(path, lambda new: new.write_text(page, encoding="utf-8"))
