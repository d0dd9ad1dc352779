"""How much of a body is costly to read: the parts of its messages, and what a grammar would be made of.

Counted up to a bound and no further, so that a body made to be counted takes no time either.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

# What each character of a pattern counts for, and how many characters of other text count for one: about what
# they cost xgrammar, in values of a schema.
_OF_PATTERN, _OF_TEXT = 2, 16
_CROWD = 1 << 15  # fields of one object cost by the cube of their number, which this divides
_PATTERNS = frozenset({"pattern", "regex", "grammar", "definition", "whitespace_pattern"})
_REMARKS = frozenset({"description", "title", "$comment"})  # no part of a grammar
_DATA = frozenset({"const", "enum"})  # whose values are text, whatever they are called
_JSON = frozenset({"json", "structural_tag"})  # may be JSON, as a string


def parts(messages: Iterable[Any], most: int) -> int:
    """Objects and items of lists inside the messages, themselves not counted; above ``most``, any number above it."""
    count, waiting = 0, list(messages)
    while waiting and count <= most:
        one = waiting.pop()
        if isinstance(one, dict):
            inner = [value for value in one.values() if isinstance(value, dict | list)]
            count += sum(isinstance(value, dict) for value in inner)
            waiting += inner
        elif isinstance(one, list):
            count += len(one)
            if count <= most:
                waiting += [value for value in one if isinstance(value, dict | list)]
    return count


def grammar(value: Any, most: int, key: str = "") -> int:
    """Values of a schema or a list of choices and, as if they were some, the characters in it; above ``most``, any
    number above it. ``key``: under which name the value stands."""
    count, waiting = 0, [(key, value)]
    while waiting and count <= most:
        name, one = waiting.pop()
        count += 1
        if isinstance(one, str):
            inner = _parsed(one) if name in _JSON else None
            if inner is not None:
                waiting.append(("", inner))
            elif name not in _REMARKS:
                count += _text(one, name in _PATTERNS)
        elif isinstance(one, dict | list):
            if count + len(waiting) + len(one) > most:  # each counts for one at least
                return most + 1
            if isinstance(one, dict):
                count += len(one) ** 3 // _CROWD + sum(_text(field, name == "patternProperties") for field in one)
                waiting += [(name if name in _DATA else field, inner) for field, inner in one.items()]
            else:
                waiting += [(name if name in _DATA else "", inner) for inner in one]
    return count


def _text(text: str, pattern: bool) -> int:
    return len(text) * _OF_PATTERN if pattern else len(text) // _OF_TEXT


def _parsed(text: str) -> Any:
    """The JSON that a string is; None where it is none, which the route says."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
