"""Routes that say what the server is: health, metrics, models, voices, and a page of all routes."""

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response

from vokens._version import __version__
from vokens.serve.docs_page import page
from vokens.serve.schema import Health, ModelCard, ModelList, VoiceCard, VoiceList, VoiceNames
from vokens.serve.served import Served
from vokens.serve.service import TheService, check_key

public = APIRouter()
router = APIRouter(prefix="/v1", dependencies=[Depends(check_key)])


@public.get("/health")
async def health(service: TheService) -> Health:
    """Whether the server answers, and what it serves."""
    return Health(version=__version__, models=list(service.models))


@public.get("/metrics", response_class=Response)
async def metrics(service: TheService) -> Response:
    """Counters and gauges for Prometheus."""
    return Response(service.meter.page(), media_type=service.meter.media_type)


@public.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """This server's requests, on a page that asks no other server for anything."""
    return HTMLResponse(page(request.app.openapi()))


@router.get("/models")
async def list_models(service: TheService) -> ModelList:
    """The models that are loaded, and what each can do."""
    return ModelList(data=[_card(served) for served in service.models.values()])


@router.get("/models/{name:path}")
async def retrieve_model(name: str, service: TheService) -> ModelCard:
    """One of the models."""
    return _card(service.model(name))


@router.get("/voices")
async def list_voices(service: TheService) -> VoiceNames:
    """The names of the voices that a speech request may ask for."""
    return VoiceNames(data=service.voice_names())


@router.get("/audio/voices")
async def list_audio_voices(service: TheService) -> VoiceList:
    """The same voices in the shape that Open WebUI asks for."""
    return VoiceList(voices=[VoiceCard(id=name, name=name) for name in service.voice_names()])


def _card(served: Served) -> ModelCard:
    abilities = {
        "encode": served.encodes,
        "decode": served.decodes,
        "say": served.says,
        "speak": served.speaks,
    }
    return ModelCard(
        id=served.name,
        system=served.system,
        licence=served.licence,
        sample_rate=served.sample_rate,
        frame_rate=served.frame_rate,
        codebook_sizes=list(getattr(served.model, "codebook_sizes", ())),
        can=[name for name, able in abilities.items() if able],
    )
