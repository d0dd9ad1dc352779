"""Long lists of wrong items: the first are named, and none of the others looked at."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, TypeAdapter

from app.protocols.validation import require_right_items


class Item(BaseModel):
    name: str


class Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    parts: list[Item] = []


class Asked(BaseModel):
    turns: list[Turn | Item] = []
    prompt: list[int] | str = ""


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"turns": [{"name": "a"}] * 170 + [{"name": 1}] * 5}, {170, 171, 172, 173, 174}),
        ({"turns": [{"name": 1}] * 9000}, set(range(32))),
        ({"turns": [{"parts": [{"name": "a"}] * 40 + [{"name": 1}] * 9000}]}, set(range(40, 64))),
        ({"turns": [{"name": "a"}] * 150 + [{"parts": [{"name": "a"}] * 40 + [{"name": 1}]}]}, {40}),
    ],
)
def test_of_a_long_list_the_first_wrong_items_are_named(body: Any, where: set[int]) -> None:
    with pytest.raises(RequestValidationError) as raised:
        require_right_items(TypeAdapter(Asked), body)
    found = [one["loc"] for one in raised.value.errors()]
    assert {next(part for part in reversed(loc) if isinstance(part, int)) for loc in found} == where
    assert all(loc[0] == "body" for loc in found)


@pytest.mark.parametrize(
    "body",
    [
        {"turns": [{"name": "a"}, {"parts": [{"name": "b"}] * 100}] * 100, "prompt": [1] * 100_000},
        {"turns": [{"name": 1}] * 100},  # short: the route says so
        {"prompt": ["a"] * 10},
        ["no object"],
    ],
)
def test_what_is_right_or_short_is_left_to_the_route(body: Any) -> None:
    require_right_items(TypeAdapter(Asked), body)
