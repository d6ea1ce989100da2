"""Writes pages from the templates beside this file; what is put into them is escaped."""

from pathlib import Path
from typing import Any

import jinja2

_PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name('templates')),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write(path: Path, template: str, **fields: Any) -> Path:
    """Writes the page that a template makes of its fields; returns `path`."""
    path.write_text(_PAGES.get_template(template).render(**fields), encoding='utf-8')
    return path
