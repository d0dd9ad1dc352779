"""How much of a body is costly to read: its values, the parts of its messages, and what a grammar would be made of.

Counted up to a bound and no further, so that a body made to be counted takes no time either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from guard.engine.validation import NAMED_BY_CALLER

# What each character of a pattern counts for, and how many characters of other text count for one: about what
# they cost xgrammar, in values of a schema.
_OF_PATTERN, _OF_TEXT = 2, 16
_CROWD = 1 << 15  # fields of one object cost by the cube of their number, which this divides
_PATTERNS = frozenset({"pattern", "regex", "grammar", "definition", "whitespace_pattern"})
_REMARKS = frozenset({"description", "title", "$comment"})  # no part of a grammar
_DATA = frozenset({"const", "enum"})  # whose values are text, whatever they are called
_JSON = frozenset({"json", "structural_tag"})  # may be JSON, as a string
TOKENS = frozenset({"prompt", "tokens", "stop_token_ids", "allowed_token_ids", "prompt_token_ids"})
_COUNTED = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")  # a repetition, in any dialect
_RULES = frozenset({"grammar", "definition"})
_NAMED = "a schema"
_WITHOUT_END = 16  # what a repetition of what may be nothing counts for that has no last one


def values(value: Any, most: int, deepest: int, key: str = "", exempt: bool = True) -> tuple[int, int]:
    """(fields and items of lists, levels) of what stands under ``key``.

    Above ``most`` or ``deepest``, any number above it. ``exempt``: a list of tokens' ids counts for one, read at once.
    """
    count, levels = 0, 0
    waiting: list[tuple[str, Any, int]] = [(key, value, 1)]
    while waiting:
        name, one, level = waiting.pop()
        levels = max(levels, level)
        if levels > deepest or count > most:
            break
        if isinstance(one, dict):
            count += len(one)
            if count <= most:
                waiting += [(key, inner, level + 1) for key, inner in one.items() if isinstance(inner, dict | list)]
        elif isinstance(one, list) and not (exempt and name in TOKENS and set(map(type, one)) == {int}):
            count += len(one)
            if count <= most:
                waiting += [(name, inner, level + 1) for inner in one if isinstance(inner, dict | list)]
    return count, levels


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
                count += _text(one, name in _PATTERNS, name in _RULES)
        elif isinstance(one, dict | list):
            if count + len(waiting) + len(one) > most:  # each counts for one at least
                return most + 1
            if isinstance(one, dict):
                count += len(one) ** 3 // _CROWD + sum(_text(field, name == "patternProperties") for field in one)
                inside = name if name in _DATA else _NAMED if name in NAMED_BY_CALLER else None
                waiting += [(field if inside is None else inside, inner) for field, inner in one.items()]
            else:
                waiting += [(name if name in _DATA else "", inner) for inner in one]
    return count


def _text(text: str, pattern: bool, rules: bool = False) -> int:
    return (len(text) + _repeated(text, rules)) * _OF_PATTERN if pattern else len(text) // _OF_TEXT


def _repeated(pattern: str, rules: bool) -> int:
    """Characters that counted repetitions of what may be nothing stand for: a matcher is in all of them at once.

    ``rules``: of a grammar, one may repeat another.
    """
    if "{" not in pattern and "*" not in pattern and "+" not in pattern:
        return 0
    try:
        if not rules:
            return _nothings(_parser.parse(pattern))[1]
    except (re.error, RecursionError, OverflowError):  # of another dialect, or of none, which its reader says
        pass
    product = 1
    for least, last in _COUNTED.findall(pattern):
        product *= max(int(least[:9] or 1), int(last[:9] or 1), 1)
        if product > 1 << 40:
            break
    return product - 1


def _nothings(parsed: Any) -> tuple[int, int]:
    """(items, what repetitions of what may be nothing add to them)."""
    items, added = 0, 0
    for operation, argument in parsed:
        items += 1
        inner = [part for part in _parts(argument) if isinstance(part, _parser.SubPattern)]
        found = [_nothings(part) for part in inner]
        size = sum(one[0] + one[1] for one in found)
        items += sum(one[0] for one in found)
        added += sum(one[1] for one in found)
        if operation in (_constants.MAX_REPEAT, _constants.MIN_REPEAT) and inner[0].getwidth()[0] == 0:
            last = argument[1]
            added += size * (_WITHOUT_END if last == _constants.MAXREPEAT else last)
    return items, added


def _parts(argument: Any) -> list[Any]:
    """What an operation's argument holds, at any depth of its own tuples and lists."""
    if isinstance(argument, _parser.SubPattern) or not isinstance(argument, tuple | list):
        return [argument]
    return [part for one in argument for part in _parts(one)]


def _parsed(text: str) -> Any:
    """The JSON that a string is; None where it is none, which the route says."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
