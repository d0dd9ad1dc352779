"""Long lists of wrong items: the first are named, and none of the others looked at."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, TypeAdapter

from app.protocols.validation import first_complaints, require_right_items


class Item(BaseModel):
    name: str


class Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    parts: list[Item] = []


class Asked(BaseModel):
    turns: list[Turn | Item] = []
    prompt: list[int] | str = ""


READ = first_complaints(TypeAdapter(Asked))


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"turns": [{"name": "a"}] * 170 + [{"name": 1}] * 5}, {("turns", 170)}),
        ({"turns": [{"name": 1}] * 9000}, {("turns", 0)}),
        ({"turns": [{"parts": [{"name": "a"}] * 400 + [{"name": 1}] * 9000}]}, {("turns", 0)}),
        ({"prompt": ["a"] * 9000}, {("prompt", "list[int]"), ("prompt", "str")}),
    ],
)
def test_of_a_long_list_the_first_wrong_item_is_named(body: Any, where: set[tuple[str | int, ...]]) -> None:
    with pytest.raises(RequestValidationError) as raised:
        require_right_items(READ, body)
    found = raised.value.errors()
    assert {one["loc"][1:3] for one in found} == where
    assert len(found) < 9
    assert all(one["loc"][0] == "body" for one in found)


@pytest.mark.parametrize(
    "body",
    [
        {"turns": [{"name": "a"}, {"parts": [{"name": "b"}] * 100}] * 100, "prompt": [1] * 100_000},
        {"turns": [{"name": 1}] * 100},  # short: the route says so
        {"prompt": ["a"] * 10},
    ],
)
def test_what_is_right_or_short_is_left_to_the_route(body: Any) -> None:
    require_right_items(READ, body)
