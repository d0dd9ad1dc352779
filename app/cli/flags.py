"""Flags made of pydantic's fields: a field declares an option's name, bounds, default and help once."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Collection
from enum import StrEnum
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from guard.errors import GuardError

Config = TypeVar("Config", bound=BaseModel)


def add_flags(
    parser: argparse.ArgumentParser,
    declared: type[BaseModel],
    only: Collection[str] | None = None,
    positional: str | None = None,
    text: str | None = None,
) -> None:
    """A flag for each field (of those in ``only``); ``text`` stands in for the fields' own help.

    What is not given does not appear among the parsed options, so that the field's default holds.
    """
    groups: dict[str | None, Any] = {}
    order = [*declared.__mro__]
    for name, field in sorted(declared.model_fields.items(), key=lambda one: order.index(_owner(declared, one[0]))):
        if only is not None and name not in only:
            continue
        title = _owner(declared, name).model_config.get("title")
        if title not in groups:
            groups[title] = parser.add_argument_group(title) if title else parser
        group = groups[title]
        told: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text or _help(field)}
        if name == positional:
            group.add_argument(name, nargs="?", **told)
            continue
        if bool in (field.annotation, *get_args(field.annotation)):
            told["action"] = argparse.BooleanOptionalAction
        elif get_origin(field.annotation) is Literal:
            told["choices"] = get_args(field.annotation)
        elif values := _values(field.annotation):
            told["metavar"] = f"{{{','.join(values)}}}"
        group.add_argument(f"--{name.replace('_', '-')}", **told)


def _owner(declared: type[BaseModel], name: str) -> type[BaseModel]:
    """The class that declares the field; options of one with a title stand together."""
    owners = [kind for kind in declared.__mro__ if name in inspect.get_annotations(kind)]
    return owners[-1]


def _help(field: FieldInfo) -> str:
    """With the default, unless there is none or the text names what stands in for it."""
    said, default = field.description or "", field.default
    nothing = default in (None, PydanticUndefined) or (isinstance(default, Collection) and not default)
    return said if nothing else f"{said} (default: {default})"


def _values(annotation: Any) -> list[str]:
    """What an enumeration's flag takes, also where it may be left out; nothing for other kinds."""
    kinds = (annotation, *get_args(annotation))
    return [one.value for kind in kinds if isinstance(kind, type) and issubclass(kind, StrEnum) for one in kind]


def read_flags(options: argparse.Namespace, declared: type[Config]) -> Config:
    """What was parsed, checked. Raises GuardError naming each flag that is wrong."""
    given = {name: value for name, value in vars(options).items() if name in declared.model_fields}
    try:
        return declared(**given)
    except ValidationError as error:
        first = {one["loc"][0]: one for one in reversed(error.errors(include_url=False))}  # of each flag
        raise GuardError("; ".join(map(_complaint, reversed(first.values())))) from None


def _complaint(error: Any) -> str:
    name = str(error["loc"][0]).replace("_", "-")
    return f"--{name} {error['input']}: {error['msg'].removeprefix('Value error, ')}"
