"""The page /docs: every request of an OpenAPI schema, in one HTML file that loads nothing."""

from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
summary { cursor: pointer; padding: .3rem 0 } code { font-size: .95em }
table { border-collapse: collapse; margin: .5rem 0 1rem; width: 100% }
td { border-top: 1px solid #8886; padding: .25rem .6rem .25rem 0; vertical-align: top }
"""


def page(schema: dict[str, Any]) -> str:
    """The HTML of a schema as FastAPI makes it."""
    requests = "".join(
        _request(schema, path, method, found)
        for path, methods in schema["paths"].items()
        for method, found in methods.items()
    )
    title = escape(f"{schema['info']['title']} {schema['info']['version']}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><style>{_STYLE}</style>'
        f"<h1>{title}</h1><p>{escape(schema['info'].get('summary', ''))}. Every request that this server answers; "
        f'for programs: <a href="openapi.json">openapi.json</a>. Errors are JSON in the shape of OpenAI\'s: '
        f'<code>{{"error": {{"message": …, "type": …, "code": …, "param": …}}}}</code>.</p>{requests}</html>'
    )


def _request(schema: dict[str, Any], path: str, method: str, found: dict[str, Any]) -> str:
    rows = [
        _row(one["name"], one["schema"], one.get("required", False)) for one in found.get("parameters", ())
    ]
    kinds = found.get("requestBody", {}).get("content", {})
    for body in kinds.values():
        body = _resolved(schema, body["schema"])
        needed = body.get("required", ())
        rows += [_row(name, one, name in needed) for name, one in body.get("properties", {}).items()]
    takes = f"<p>Takes {escape(' or '.join(kinds))}.</p>" if kinds else ""
    fields = f"<table>{''.join(rows)}</table>" if rows else ""
    replies = "".join(
        f"<tr><td>{status}<td>{escape(reply['description'])}<td>{escape(', '.join(reply.get('content', ())))}"
        for status, reply in found["responses"].items()
    )
    text = escape(found.get("description", ""))
    return (
        f"<details><summary><code><b>{method.upper()}</b> {escape(path)}</code> {text.partition('.')[0]}</summary>"
        f"<p>{text}</p>{takes}{fields}<table>{replies}</table></details>"
    )


def _row(name: str, field: dict[str, Any], needed: bool) -> str:
    default = (
        "needed" if needed else f"default {escape(repr(field['default']))}" if field.get("default") else ""
    )
    return (
        f"<tr><td><code>{escape(name)}</code><td>{escape(_kind(field))}<td>{default}"
        f"<td>{escape(field.get('description', ''))}"
    )


def _kind(field: dict[str, Any]) -> str:
    """The values of a field, in words."""
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2]
    options = field.get("anyOf") or field.get("oneOf")
    if options:
        return " or ".join(_kind(option) for option in options if option.get("type") != "null")
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    low, high = (
        field.get("minimum", field.get("exclusiveMinimum")),
        field.get("maximum", field.get("exclusiveMaximum")),
    )
    limits = f" {low} to {high}" if low is not None and high is not None else ""
    return field.get("format", field.get("type", "any")) + limits


def _resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    name = part.get("$ref", "").rpartition("/")[2]
    return schema["components"]["schemas"][name] if name else part
