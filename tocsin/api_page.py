"""`/docs`: a service's interface as one plain page, from its OpenAPI and AsyncAPI documents. Needs no other host and no script. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE: Final = """
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
code,pre{font:14px/1.5 ui-monospace,monospace}pre{overflow:auto;padding:.75rem;border:1px solid #8886;border-radius:.4rem}
table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #8884}
h2{margin-top:2.5rem}h3{margin:1.75rem 0 .25rem}p{margin:.25rem 0 .75rem}
"""


def api_page(openapi: Mapping[str, Any], asyncapi: Mapping[str, Any] | None = None) -> str:
    """HTML of both documents; `asyncapi` describes a WebSocket's messages, where the service has one."""
    info = openapi["info"]
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(info["title"])}</title>',
        f"<style>{_STYLE}</style><body><h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('description', ''))}</p>",
        '<p>For programs: <a href="openapi.json">openapi.json</a>',
        ' · <a href="asyncapi.json">asyncapi.json</a></p>' if asyncapi else "</p>",
        "<h2>HTTP</h2>",
        *_operations(openapi),
        *(("<h2>WebSocket</h2>", *_messages(asyncapi)) if asyncapi else ()),
        "</body></html>",
    ]
    return "\n".join(parts)


def _operations(document: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in sorted(document["paths"].items()):
        for method, operation in methods.items():
            yield f"<h3><code>{method.upper()} {escape(path)}</code></h3><p>{escape(operation.get('summary', ''))}</p>"
            rows = [
                (each["name"], each.get("schema", {}), each.get("description", ""), each.get("required", False)) for each in operation.get("parameters", ())
            ]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            if body is not None:
                rows += _properties(document, body)
            yield from _table(rows)


def _messages(document: Mapping[str, Any]) -> Iterator[str]:
    yield f"<p>{escape(document['info'].get('description', ''))}</p>"
    for name, message in document["components"]["messages"].items():
        yield f"<h3><code>{escape(message.get('name', name))}</code></h3><p>{escape(message.get('summary', message.get('description', '')))}</p>"
        yield from _table(_properties(document, message["payload"]))
        for example in message.get("examples", ()):
            yield f"<pre>{escape(json.dumps(example['payload'], ensure_ascii=False))}</pre>"


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a local `$ref` names."""
    while "$ref" in schema:
        found: Any = document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        schema = found
    return schema


def _properties(document: Mapping[str, Any], schema: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], str, bool]]:
    """(name, schema, description, whether it must be there) of an object's fields"""
    whole = _resolved(document, schema)
    fields = {name: _resolved(document, field) for name, field in whole.get("properties", {}).items()}
    return [(name, field, field.get("description", ""), name in whole.get("required", ())) for name, field in fields.items()]


def _table(rows: list[tuple[str, Mapping[str, Any], str, bool]]) -> Iterator[str]:
    if rows:
        yield "<table><tr><th>Field<th>Type<th>Meaning</tr>"
        for name, schema, description, required in rows:
            yield f"<tr><td><code>{escape(name)}</code>{'' if required else ' (optional)'}<td>{escape(_type(schema))}<td>{escape(description)}</tr>"
        yield "</table>"


def _type(schema: Mapping[str, Any]) -> str:
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "items" in schema:
        return f"list of {_type(schema['items']) or 'anything'}"
    choices = schema.get("anyOf", schema.get("oneOf"))
    if choices:
        return " or ".join(filter(None, map(_type, choices)))
    kind = schema.get("type", "")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)
