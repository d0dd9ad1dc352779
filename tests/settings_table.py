"""The tables of docs/settings.md, of the fields of ``Settings``; ``python -m tests.settings_table`` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from app.settings import Ceilings, GuardDefaults, RequestLimits, Settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
BEGIN, END = "<!-- made by `python -m tests.settings_table` from app/settings.py -->", "<!-- end of what is made -->"
PARTS: dict[str, type[BaseModel] | None] = {
    "What the guard does where a request does not say": GuardDefaults,
    "How loose a request may be": Ceilings,
    "What one request may ask for": RequestLimits,
    "The server": None,  # whatever the others do not have
}
_SIGNS = {Ge: "at least", Gt: "above", Le: "at most", Lt: "below", MinLen: "not empty"}
_HEAD = "| flag | variable | key | values | default | meaning |\n| --- | --- | --- | --- | --- | --- |\n"


def made() -> str:
    """A heading and a table for each part."""
    return "".join(f"### {heading}\n\n{_HEAD}{''.join(_rows(part))}\n" for heading, part in PARTS.items())


def filled(page: str) -> str:
    """The page with its tables made anew."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{made()}{END}{rest.split(END)[1]}"


def _rows(part: type[BaseModel] | None) -> Iterator[str]:
    elsewhere = {name for one in PARTS.values() if one is not None for name in one.model_fields}
    names = part.model_fields if part is not None else [one for one in Settings.model_fields if one not in elsewhere]
    for name in names:
        field = Settings.model_fields[name]
        flag = "`hguard serve MODEL`" if name == "model" else f"`--{name.replace('_', '-')}`"
        cells = (
            flag,
            f"`HGUARD_{name.upper()}`",
            f"`{name}`",
            _values(field),
            _default(field),
            field.description or "",
        )
        yield f"| {' | '.join(cells)} |\n"


def _values(field: FieldInfo) -> str:
    kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
    listed = [f"`{one.value}`" for kind in kinds if issubclass(kind, StrEnum) for one in kind]
    if listed:
        return ", ".join(listed)
    bounds = list(_bounds(field.metadata))
    if bool in kinds:
        return "`true`, `false`"
    number = "a whole number" if int in kinds else "a number" if float in kinds else "text"
    return f"{number}, {' and '.join(bounds)}" if bounds else number


def _bounds(metadata: list[Any]) -> Iterator[str]:
    for one in metadata:
        said = _SIGNS[type(one)]
        limit = next((getattr(one, name) for name in ("ge", "gt", "le", "lt") if hasattr(one, name)), None)
        yield said if limit is None else f"{said} {limit}"


def _default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "" if value is None or value == () else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
