"""OpenAI's speech request: a text, or tokens, to sound, whole or streamed."""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse

from vokens.models.speaking import ENDED
from vokens.serve.batcher import Busy
from vokens.serve.coding import decode
from vokens.serve.errors import body_of, problem
from vokens.serve.schema import Speech
from vokens.serve.served import Served
from vokens.serve.service import SOUND, Service, TheService, check_key, unless_gone
from vokens.serve.sound import MEDIA, Writer
from vokens.tokens import Tokens

router = APIRouter(prefix="/v1/audio", dependencies=[Depends(check_key)])
_TOKEN_RATE = 25.0  # Hz, default rate of speech tokens: S3's


@dataclass(frozen=True)
class Plan:
    """Plan of a request.

    Attributes:
        whole: the wave (T,), from the queue of `model`. pieces: the same as a stream, on its thread.
        size: of the input in characters or frames. silent: True if an empty wave is a valid result.
    """

    model: Served
    whole: Callable[[], Coroutine[Any, Any, np.ndarray]]
    pieces: Callable[[], Iterator[np.ndarray]]
    size: int
    silent: bool = False


@router.post("/speech", response_class=Response, responses=SOUND)
async def speech(request: Request, body: Speech, service: TheService) -> Response:
    """Speech of a text, or of tokens, in a voice where the model takes one.

    `stream_format` "sse" sends the events speech.audio.delta and speech.audio.done, as OpenAI defines them; "audio",
    or `stream`, the bytes of the file. Other fields, OpenAI's `instructions` too, are ignored and listed in the
    header X-Ignored.
    """
    if isinstance(body.input, str):
        plan = _of_text(service, body, body.input)
    else:
        plan = _of_tokens(service, body, await asyncio.to_thread(body.input.tokens))
    if body.stream or body.stream_format is not None:
        reply = await Stream(service, plan, body).begin()
    else:
        wave = await unless_gone(request, plan.whole())
        if not (len(wave) or plan.silent):
            raise problem(400, ENDED, "no_sound")
        reply = await service.sound(wave, plan.model.sample_rate, body.response_format)
    if body.ignored:
        reply.headers["X-Ignored"] = ", ".join(body.ignored)
    return reply


def _of_text(service: Service, body: Speech, text: str) -> Plan:
    model, most = service.model(body.model, "says"), service.settings.max_text
    if len(text) > most:
        raise problem(413, f"{len(text)} characters: at most {most} are accepted", "too_long")
    if not text.strip():
        raise problem(400, "the input has no words: give at least one", "input")
    voice = service.voice(body.voice_name, model)
    facts = voice, body.seed, body.speed
    say = partial(model.say, *facts)
    return Plan(
        model,
        lambda: model.batcher.submit(("say", *facts), say, text, len(text) / 10),
        partial(model.say_stream, *facts, text),
        len(text),
    )


def _of_tokens(service: Service, body: Speech, tokens: Tokens) -> Plan:
    if body.speed != 1:
        raise problem(400, "speed does not apply to tokens: leave it out", "speed")
    size, seconds = tokens.codes.shape[2], tokens.codes.shape[2] / tokens.frame_rate
    service.check_seconds(seconds)
    model = service.model(body.model)
    if not model.speaks:  # a codec, which takes no voice
        service.model(body.model, "decodes")
        codec, tokens = service.codec_of(tokens)
        whole = partial(decode, service, codec, tokens)
        return Plan(codec, whole, lambda: iter(codec.decode([tokens])), size, silent=True)
    if not size:
        raise problem(400, "the tokens have no frames: there is nothing to speak", "input")
    voice = service.voice(body.voice_name, model)
    assert voice is not None  # an S3Gen needs one
    item, kind = (tokens, voice, body.seed), ("speak", *tokens.batch_kind)
    return Plan(
        model,
        lambda: model.batcher.submit(kind, model.speak, item, seconds),
        partial(model.stream, *item),
        size,
    )


class Stream:
    """Streamed reply, computed by a model's thread between the batches of its queue."""

    def __init__(self, service: Service, plan: Plan, body: Speech) -> None:
        self.service, self.plan, self.body = service, plan, body
        self.batcher, self.rate = plan.model.batcher, plan.model.sample_rate
        self.writer = Writer(body.response_format, self.rate)
        self.samples = 0
        self.pieces: Iterator[np.ndarray] = iter(())

    async def begin(self) -> Response:
        """The reply; its first piece is computed here, so that errors get their own status. Raises Busy."""
        if self.batcher.streams >= self.service.settings.max_streams:
            raise Busy
        self.batcher.streams += 1
        try:
            self.pieces = await self.batcher.on_thread(self.plan.pieces)
            first = await self._next()
            if first is None and not self.plan.silent:
                raise problem(400, ENDED, "no_sound")
        except BaseException:
            self.close()
            raise
        sound, kind = self._sound(first), MEDIA[self.body.response_format]
        headers = {"X-Sample-Rate": str(self.rate)}
        if self.body.stream_format == "sse":
            sound, kind = self._events(sound), "text/event-stream"
            headers["Cache-Control"] = "no-cache"
        return _Closing(self.close, sound, media_type=kind, headers=headers)

    def close(self) -> None:
        """Free the stream's place and stop its computation."""
        self.batcher.streams -= 1
        if close := getattr(self.pieces, "close", None):
            asyncio.get_running_loop().run_in_executor(self.batcher.thread, close)

    async def _next(self) -> np.ndarray | None:
        """The next non-empty piece, None at the end."""
        return await self.batcher.on_thread(lambda: next(filter(len, self.pieces), None))

    async def _sound(self, piece: np.ndarray | None) -> AsyncIterator[bytes]:
        while piece is not None:
            self.samples += len(piece)
            self.service.meter.count("out", len(piece) / self.rate)
            if content := await asyncio.to_thread(self.writer.write, piece):
                yield content
            piece = await self._next()
        if content := self.writer.end():
            yield content

    async def _events(self, sound: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same as OpenAI's events; a failure while streaming is an event, too."""
        try:
            async for content in sound:
                yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(content).decode()})
        except Exception:
            logging.getLogger("uvicorn.error").exception("a stream failed")
            yield _event(body_of(500, "the server failed while it spoke", "server_error"))
            return
        spoken = round(self.samples / self.rate * (self.plan.model.frame_rate or _TOKEN_RATE))
        usage = {
            "input_tokens": self.plan.size,
            "output_tokens": spoken,
            "total_tokens": self.plan.size + spoken,
        }
        yield _event({"type": "speech.audio.done", "usage": usage})


class _Closing(StreamingResponse):
    """A reply that always calls `close` at its end: a body that is never iterated runs no `finally`."""

    def __init__(self, close: Callable[[], None], *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._close = close

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


def _event(content: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()
