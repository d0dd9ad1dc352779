"""Pages and reports as Jinja templates, which stand beside the code that measures what they say."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, select_autoescape


def template(path: Path) -> Template:
    """The template in this file. One that ends in ``.html.j2`` escapes what it is given, others are plain text.

    A value that is missing is an error: a page never shows an empty place instead of a figure.
    """
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=select_autoescape(("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(path.name)
