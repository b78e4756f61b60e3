"""Routes about the server: health, metrics, models, voices, and a page of all routes."""

from html import escape
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from vokens._version import __version__
from vokens.serve.schema import Health, ModelCard, ModelList, VoiceCard, VoiceList, VoiceNames
from vokens.serve.served import Served
from vokens.serve.service import TheService, check_key

public = APIRouter()
router = APIRouter(prefix="/v1", dependencies=[Depends(check_key)])


@public.get("/health")
async def health(service: TheService) -> Health:
    """Health of the server, and its models."""
    return Health(version=__version__, models=list(service.models))


@public.get("/metrics", response_class=Response)
async def metrics(service: TheService) -> Response:
    """Counters and gauges for Prometheus."""
    return Response(generate_latest(service.meter.registry), media_type=CONTENT_TYPE_LATEST)


@public.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """All requests of this server, on a self-contained page."""
    return HTMLResponse(page(request.app.openapi()))


@router.get("/models")
async def list_models(service: TheService) -> ModelList:
    """The loaded models and their abilities."""
    return ModelList(data=[_card(served) for served in service.models.values()])


@router.get("/models/{name:path}")
async def retrieve_model(name: str, service: TheService) -> ModelCard:
    """One of the models."""
    return _card(service.model(name))


@router.get("/voices")
async def list_voices(service: TheService) -> VoiceNames:
    """The names of the voices for speech requests."""
    return VoiceNames(data=service.voice_names())


@router.get("/audio/voices")
async def list_audio_voices(service: TheService) -> VoiceList:
    """The same voices in Open WebUI's format."""
    return VoiceList(voices=[VoiceCard(id=name, name=name) for name in service.voice_names()])


def _card(served: Served) -> ModelCard:
    return ModelCard(
        id=served.name,
        system=served.model.system,
        licence=served.licence,
        sample_rate=served.sample_rate,
        frame_rate=served.frame_rate,
        codebook_sizes=list(getattr(served.codec, "codebook_sizes", ())),
        can=[ability for ability in ("encode", "decode", "say", "speak") if getattr(served, f"{ability}s")],
    )


_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<link rel="icon" href="data:,"><title>vokens serve</title><style>
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
summary { cursor: pointer; padding: .3rem 0 }
table { border-collapse: collapse; margin: .5rem 0 1rem; width: 100% }
td { border-top: 1px solid #8886; padding: .25rem .6rem .25rem 0; vertical-align: top }
</style><h1>vokens serve</h1><p>Every request that this server answers; for programs:
<a href="openapi.json">openapi.json</a>. Errors
are JSON in the shape of OpenAI's: <code>{"error": {"message", "type", "code", "param"}}</code>.</p>"""


def page(schema: dict[str, Any]) -> str:
    return _HEAD + "".join(
        _request(schema, f"<b>{method.upper()}</b> {escape(path)}", route)
        for path, methods in schema["paths"].items()
        for method, route in methods.items()
    )


def _request(schema: dict[str, Any], title: str, route: dict[str, Any]) -> str:
    fields = [(one["name"], one["schema"], one.get("required")) for one in route.get("parameters", ())]
    kinds = route.get("requestBody", {}).get("content", {})
    for content in kinds.values():
        body = content["schema"]
        if "$ref" in body:
            body = schema["components"]["schemas"][_kind(body)]
        needed = body.get("required", ())
        fields += [(name, field, name in needed) for name, field in body.get("properties", {}).items()]
    replies = [
        (status, one["description"], ", ".join(one.get("content", ())))
        for status, one in route["responses"].items()
    ]
    first, _, more = route.get("description", "").partition("\n\n")
    return (
        f"<details><summary><code>{title}</code> {escape(first)}</summary><p>{escape(more)}</p>"
        + (f"<p>Takes {escape(' or '.join(kinds))}:</p>" if kinds else "")
        + _table(
            (name, _kind(field), _need(field, needed), field.get("description", ""))
            for name, field, needed in fields
        )
        + f"<p>Answers:</p>{_table(replies)}</details>"
    )


def _table(rows: Any) -> str:
    return f"<table>{''.join('<tr><td>' + '<td>'.join(map(escape, row)) for row in rows)}</table>"


def _need(field: dict[str, Any], needed: bool | None) -> str:
    return "needed" if needed else f"default {field['default']}" if field.get("default") else ""


def _kind(field: dict[str, Any]) -> str:
    """The type of a field as text."""
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if options := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(_kind(option) for option in options if option.get("type") != "null")
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    return field.get("$ref", field.get("format", field.get("type", "any"))).rpartition("/")[2]
