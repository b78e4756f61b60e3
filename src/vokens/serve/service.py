"""State shared by all routes: models, voices, limits and counters, and the checks of a request against them."""

import asyncio
import hmac
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import Depends, Request
from fastapi.responses import Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from vokens import registry
from vokens.serve.errors import listed, problem
from vokens.serve.served import Served, Voice, Voices
from vokens.serve.settings import Settings
from vokens.serve.sound import MEDIA, encode
from vokens.tokens import Tokens

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_QUEUES = {  # attributes of a `Batcher`
    "waiting": "Requests that wait",
    "streams": "Replies being streamed",
    "batches": "Passes computed",
    "requests": "Requests computed in these passes",
}


class Meter:
    """Counters of one application."""

    def __init__(self, models: Mapping[str, Served]) -> None:
        self.registry = CollectorRegistry()
        kept: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("vokens_requests", "Requests answered", ["route", "status"], **kept)
        self.seconds = Histogram(
            "vokens_request_seconds", "Until the reply's last byte", ["route"], buckets=_SECONDS, **kept
        )
        self.active = Gauge("vokens_requests_in_progress", "Requests being answered", **kept)
        self.audio = Counter("vokens_audio_seconds", "Audio encoded (in) and spoken (out)", ["way"], **kept)
        for name, text in _QUEUES.items():
            gauge = Gauge(f"vokens_model_{name}", text, ["model"], **kept)
            for model, served in models.items():
                gauge.labels(model).set_function(partial(getattr, served.batcher, name))

    def count(self, way: Literal["in", "out"], seconds: float) -> None:
        self.audio.labels(way).inc(seconds)

    def middleware(self, app: Any) -> Any:

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            start, status = time.perf_counter(), 500

            async def noted(message: Any) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            self.active.inc()
            try:
                await app(scope, receive, noted)
            finally:
                self.active.dec()
                route = getattr(scope.get("route"), "path", "other")  # never the client's own text
                self.requests.labels(route, str(status)).inc()
                self.seconds.labels(route).observe(time.perf_counter() - start)

        return counted


Result = TypeVar("Result")
SOUND: dict[int | str, dict[str, Any]] = {  # OpenAPI schema of a sound file
    200: {
        "content": {name: {"schema": {"type": "string", "format": "binary"}} for name in MEDIA.values()},
        "description": "the sound",
    }
}


@dataclass(frozen=True)
class Service:
    """A server's models by name, its settings, voices and counters."""

    models: Mapping[str, Served]
    settings: Settings
    voices: Voices
    meter: Meter

    def model(self, name: str, ability: str = "") -> Served:
        """The model of a name with an ability: encodes, decodes, says, speaks."""
        if name not in self.models:
            raise problem(404, f"no model {name!r}: {listed('model', self.models)}", "model_not_found")
        if ability and not getattr(self.models[name], ability):
            able = [other for other, model in self.models.items() if getattr(model, ability)]
            raise problem(400, f"{name} cannot do this; {', '.join(able) or 'no model here'} can", "model")
        return self.models[name]

    def codec_of(self, tokens: Tokens) -> tuple[Served, Tokens]:
        """The codec of tokens, by fingerprint if given, else by name, and the tokens as its own."""
        able = (served for served in self.models.values() if served.decodes and tokens.fingerprint)
        codec = next((served for served in able if served.model.fingerprint == tokens.fingerprint), None)
        if codec is None and tokens.model not in self.models and registry.source_of(tokens.model) is None:
            why = f"no model {tokens.model!r}, a codec of your own: {listed('model', self.models)}"
            raise problem(404, f"{why}; vokens serve --models FOLDER opens it", "model_not_found")
        codec = codec or self.model(tokens.model, "decodes")
        return codec, replace(tokens, model=codec.model.name)

    def voice(self, name: str, model: Served) -> Voice | None:
        """The voice of a name, from the folder or the model; None for "" where the model needs none."""
        voice = self.voices.get(name) if name else None
        if voice is None and name in model.own_voices:
            voice = Voice(name, None)
        if voice is None and (name or model.needs_voice):
            given = f"no voice {name!r}" if name else "this model needs a voice, and none was named"
            known = listed("voice", self.voice_names(model))
            raise problem(404 if name else 400, f"{given}: {known}", "voice")
        return voice

    def voice_names(self, *models: Served) -> list[str]:
        """Names of the voices of the folder and of models, by default of all."""
        own = (name for model in models or self.models.values() for name in model.own_voices)
        return list(dict.fromkeys([*self.voices.names(), *own]))

    def check_seconds(self, seconds: float) -> None:
        """Raise 413 for audio that is too long."""
        most = self.settings.max_seconds
        if seconds > most:
            raise problem(413, f"{seconds:.1f} s of audio: at most {most:g} s are accepted", "too_long")

    async def sound(self, wave: np.ndarray, sample_rate: int, format: str) -> Response:
        self.meter.count("out", len(wave) / sample_rate)
        content = await asyncio.to_thread(encode, wave, sample_rate, format)
        return Response(content, media_type=MEDIA[format], headers={"X-Sample-Rate": str(sample_rate)})


def _service(request: Request) -> Service:
    return request.app.state.service


TheService = Annotated[Service, Depends(_service)]
_bearer = HTTPBearer(auto_error=False, description="the server's API key, where it has one")


def check_key(
    service: TheService, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Dependency that requires the server's API key, if it has one."""
    key, sent = service.settings.api_key, given.credentials if given else ""
    if key and not hmac.compare_digest(sent.encode(), key.encode()):
        raise problem(401, "send the server's API key as Authorization: Bearer KEY", "invalid_api_key")


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client disconnects."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise problem(499, "the client has gone", "client_gone")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
