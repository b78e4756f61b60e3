"""The HTTP application: OpenAI's speech endpoint, tokens in and out, health and metrics.

A request is checked, queued for its model, and computed in a batch; a client that disconnects frees its
place. Nothing that a client sends is executed, and no path of a client is opened.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from vokens._version import __version__
from vokens.serve import about, coding, speech
from vokens.serve.errors import Cors, Limit, handle_errors
from vokens.serve.schema import Failure
from vokens.serve.served import Served, Voices
from vokens.serve.service import Meter, Service
from vokens.serve.settings import Settings

_FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "invalid input"},
    401: {"model": Failure, "description": "the API key is missing or wrong"},
    404: {"model": Failure, "description": "no such model or voice"},
    413: {"model": Failure, "description": "larger or longer than the server allows"},
    500: {"model": Failure, "description": "the server failed; the log has the reason"},
    503: {"model": Failure, "description": "the queue is full: try again after Retry-After seconds"},
}


def create_app(models: Mapping[str, Served], settings: Settings) -> Any:
    """The ASGI application for loaded models; it starts and stops their queues. Raises ConfigError for settings."""
    settings.check()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for served in models.values():
            served.batcher.start()
        yield
        for served in models.values():
            await served.batcher.close()

    app = FastAPI(
        title="vokens",
        version=__version__,
        summary="speech to tokens to speech",
        lifespan=lifespan,
        responses=_FAILURES,
        docs_url=None,  # FastAPI's page loads scripts from another server; ours is in `about`
        redoc_url=None,
    )
    meter = Meter(models)
    app.state.service = Service(models, settings, Voices(settings.voices), meter)
    for router in (about.public, about.router, coding.router, speech.router):
        app.include_router(router)
    handle_errors(app)
    app.add_middleware(Limit, most=settings.max_upload)
    app.add_middleware(meter.middleware)
    app.add_middleware(_head_as_get)
    if not settings.cors:
        return app
    exposed = ("X-Sample-Rate", "X-Ignored", "Retry-After")
    # Outermost, so that pages may read every reply, including server errors.
    return Cors(app, settings.cors, ("GET", "POST"), ("*",), expose_headers=exposed)


def _head_as_get(app: Any) -> Any:
    """Middleware: HEAD is answered wherever GET is; uvicorn sends no body."""

    async def answered(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"method": "GET"} if scope.get("method") == "HEAD" else scope, receive, send)

    return answered
