"""The OpenAPI document as a page of Markdown, which the site's search reads. Standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_SCHEMA = "#/components/schemas/"
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#])")
_HEAD = """# HTTP reference

Made of the server's own OpenAPI document, which `GET /openapi.json` returns and `GET /docs` shows. All
that vLLM's request models take is here; [API](../api.md) says what the guard adds, and what it refuses.
"""


def page(document: dict[str, Any]) -> str:
    """All operations, then all schemas that they name."""
    return "\n".join([_HEAD, *_operations(document), "## Schemas\n", *_schemas(document)])


def _operations(document: dict[str, Any]) -> Iterator[str]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield f"## {method.upper()} {path} {{ #{anchor(method, path)} }}\n"
            said = operation.get("description") or operation.get("summary")
            if said:
                yield f"{_plain(said)}\n"
            if "security" in operation:
                yield "Needs a key.\n"
            yield from _parameters(operation.get("parameters", []))
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                yield f"The body is {_type(content.get('schema', {}))} (`{kind}`).\n"
            yield from _table(["status", "when", "body"], [_reply(*one) for one in operation["responses"].items()])


def _parameters(parameters: list[dict[str, Any]]) -> Iterator[str]:
    rows = [
        [f"`{one['name']}`", one["in"], _type(one.get("schema", {})), _plain(one.get("description", ""))]
        for one in parameters
    ]
    if rows:
        yield from _table(["parameter", "in", "type", "what"], rows)


def _reply(status: str, reply: dict[str, Any]) -> list[str]:
    bodies = []
    for kind, content in reply.get("content", {}).items():
        # Streams have an "itemSchema", of OpenAPI 3.2.
        schema = content.get("schema") or content.get("itemSchema", {})
        bodies.append(f"{_type(schema)} (`{kind}`)")
    return [status, _plain(reply.get("description", "")), "; ".join(bodies)]


def _schemas(document: dict[str, Any]) -> Iterator[str]:
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield f"### {name} {{ #{anchor('schema', name)} }}\n"
        if schema.get("description"):
            yield f"{_plain(schema['description'])}\n"
        properties = schema.get("properties")
        if not properties:
            yield f"{_type({**schema, 'description': ''})}\n"
            continue
        needed = set(schema.get("required", []))
        rows = []
        for field, one in properties.items():
            default = "needed" if field in needed else f"`{json.dumps(one['default'])}`" if "default" in one else ""
            rows.append([f"`{field}`", _type(one), default.replace("|", r"\|"), _plain(one.get("description", ""))])
        yield from _table(["field", "type", "default", "what"], rows)


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    for cells in [head, ["---"] * len(head), *rows]:
        yield f"| {' | '.join(cells)} |"
    yield ""


def anchor(*parts: str) -> str:
    """The anchor of an operation (method and path) or a schema."""
    return re.sub(r"[^\w-]+", "-", "-".join(parts)).strip("-")


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words, with links to those that have a heading."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_SCHEMA)
        return f"[{name}](#{anchor('schema', name)})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return (
                " or ".join(dict.fromkeys(_type(one) for one in schema[key])) if key != "allOf" else _all(schema[key])
            )
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(one)}`" for one in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _all(schemas: list[dict[str, Any]]) -> str:
    return " and ".join(dict.fromkeys(_type(one) for one in schemas))


def _plain(text: str) -> str:
    """One line of a description, of which nothing is Markdown."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
