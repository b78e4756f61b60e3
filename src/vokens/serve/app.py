"""The HTTP application: OpenAI's speech endpoint, tokens in and out, health and metrics.

A request is checked, waits in the queue of its model, and is computed with its neighbours; a client that hangs up
frees its place. Nothing that a client sends is executed, and no path of a client is opened.
"""

import asyncio
import hmac
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import Depends, FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException

from vokens import audio, registry
from vokens._version import __version__
from vokens.errors import VokensError
from vokens.serve.batcher import Busy
from vokens.serve.meter import Meter
from vokens.serve.schema import (
    Failure,
    Format,
    Health,
    ModelCard,
    ModelList,
    Speech,
    TokensBody,
    VoiceList,
)
from vokens.serve.served import Served, Voice, find_voices
from vokens.serve.settings import Settings
from vokens.serve.sound import MEDIA, Writer, blocks, encode
from vokens.tokens import Tokens

Result = TypeVar("Result")
VOK = "application/octet-stream"
_FAILURES: dict[int | str, dict[str, Any]] = {
    400: {"model": Failure, "description": "what was sent cannot be used"},
    401: {"model": Failure, "description": "the API key is missing or wrong"},
    404: {"model": Failure, "description": "no such model or voice"},
    413: {"model": Failure, "description": "larger or longer than the server allows"},
    503: {"model": Failure, "description": "the queue is full: try again after Retry-After seconds"},
}
_SOUND: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {name: {"schema": {"type": "string", "format": "binary"}} for name in MEDIA.values()},
        "description": "the sound, in chunks",
    }
}


def create_app(models: Mapping[str, Served], settings: Settings) -> FastAPI:
    """The application over loaded models; it starts and stops their queues."""
    voices, meter = find_voices(settings.voices), Meter(models)

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
    )
    _handle_errors(app)
    app.add_middleware(Limit, most=settings.max_upload)
    app.add_middleware(meter.middleware)
    key = Depends(_key_check(settings.api_key))

    def served(name: str, ability: str) -> Served:
        if name not in models:
            raise problem(404, f"no model {name!r}: there are {', '.join(models)}", "model_not_found")
        if not getattr(models[name], ability):
            able = [other for other, model in models.items() if getattr(model, ability)]
            raise problem(400, f"{name} cannot do this; {', '.join(able) or 'no model here'} can", "model")
        return models[name]

    def voice_of(given: str | dict[str, Any]) -> Voice | None:
        name = given.get("id", "") if isinstance(given, dict) else given
        if not name:
            return None
        if name not in voices:
            raise problem(404, f"no voice {name!r}: there are {', '.join(voices) or 'none'}", "voice")
        return voices[name]

    def check_seconds(seconds: float) -> None:
        if seconds > settings.max_seconds:
            raise problem(
                413, f"{seconds:.1f} s of audio: at most {settings.max_seconds:g} s are accepted", "too_long"
            )

    @app.get("/health")
    async def health() -> Health:
        """Whether the server answers, and what it serves."""
        return Health(version=__version__, models=list(models))

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters and gauges for Prometheus."""
        return Response(meter.page(), media_type=meter.media_type)

    @app.get("/v1/models", dependencies=[key])
    async def list_models() -> ModelList:
        """The models that are loaded, and what each can do."""
        return ModelList(data=[_card(served) for served in models.values()])

    @app.get("/v1/voices", dependencies=[key])
    async def list_voices() -> VoiceList:
        """The voices that a speech request may name."""
        return VoiceList(data=list(voices))

    @app.post("/v1/tokens/encode", dependencies=[key], response_model=TokensBody)
    async def encode_audio(
        request: Request,
        file: Annotated[UploadFile, File(description="wav, flac, ogg, opus, mp3; m4a, webm where PyAV is")],
        model: Annotated[str, Form(min_length=1, max_length=200)],
        num_codebooks: Annotated[int | None, Form(ge=1, le=256)] = None,
        response_format: Annotated[Literal["json", "vok"], Form()] = "json",
    ) -> Any:
        """Tokens of a recording, as JSON or as a .vok file."""
        codec = served(model, "encodes")
        content = await file.read()
        # One second more than allowed: a small file that holds hours is never decoded whole.
        load = partial(audio.load, content, codec.sample_rate, duration=settings.max_seconds + 1)
        wave, rate = await asyncio.to_thread(load)
        seconds = len(wave) / rate
        check_seconds(seconds)
        work = codec.batcher.submit(
            ("encode", num_codebooks), partial(codec.encode, num_codebooks), wave, seconds
        )
        tokens = await unless_gone(request, work)
        meter.heard(seconds)
        if response_format == "vok":
            return Response(await asyncio.to_thread(_to_vok, tokens), media_type=VOK)
        return TokensBody.of(tokens)

    @app.post(
        "/v1/tokens/decode",
        dependencies=[key],
        response_class=Response,
        responses=_SOUND,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": TokensBody.model_json_schema()},
                    VOK: {"schema": {"type": "string", "format": "binary"}},
                },
            }
        },
    )
    async def decode_tokens(
        request: Request, response_format: Annotated[Format, Query()] = "wav"
    ) -> Response:
        """The sound of tokens: JSON as `encode` gave it, or the bytes of a .vok file."""
        tokens = await _read_tokens(request)
        if tokens.model not in models and registry.source_of(tokens.model) is None:
            why = f"no model {tokens.model!r}, a codec of your own: there are {', '.join(models)}"
            raise problem(404, f"{why}; vokens serve --models FOLDER opens it", "model_not_found")
        codec = served(tokens.model, "decodes")
        wave = await decode(request, codec, tokens)
        return _sound(wave, codec.sample_rate, response_format)

    async def decode(request: Request, codec: Served, tokens: Tokens) -> np.ndarray:
        seconds = tokens.codes.shape[2] / tokens.frame_rate
        check_seconds(seconds)
        kind = ("decode", *_facts(tokens))
        return await unless_gone(request, codec.batcher.submit(kind, codec.decode, tokens, seconds))

    @app.post("/v1/audio/speech", dependencies=[key], response_class=Response, responses=_SOUND)
    async def speech(request: Request, body: Speech) -> Response:
        """Speech of a text, or of tokens, in a voice where the model takes one."""
        voice = voice_of(body.voice)
        if isinstance(body.input, TokensBody):
            if body.speed != 1:
                raise problem(400, "speed: tokens have their own", "speed")
            return await speech_of_tokens(request, body, body.input.tokens(), voice)
        model = served(body.model, "says")
        if len(body.input) > settings.max_text:
            raise problem(
                413,
                f"{len(body.input)} characters: at most {settings.max_text} are accepted",
                "too_long",
            )
        if not body.input.strip():
            raise problem(400, "the input has nothing to say: give at least one word", "input")
        if body.stream:
            return await streamed(
                model, partial(model.say_stream, voice, body.seed, body.speed, body.input), body
            )
        kind = ("say", body.voice and str(body.voice), body.seed, body.speed)
        say = partial(model.say, voice, body.seed, body.speed)
        wave = await unless_gone(request, model.batcher.submit(kind, say, body.input, len(body.input) / 10))
        return _sound(wave, model.sample_rate, body.response_format)

    async def speech_of_tokens(
        request: Request, body: Speech, tokens: Tokens, voice: Voice | None
    ) -> Response:
        if body.model in models and models[body.model].speaks:
            model = models[body.model]
            if voice is None:
                raise problem(
                    400, f"{model.name} speaks in a voice: name one of {', '.join(voices)}", "voice"
                )
            seconds = tokens.codes.shape[2] / tokens.frame_rate
            check_seconds(seconds)
            if body.stream:
                return await streamed(model, partial(model.stream, tokens, voice, body.seed), body)
            item = tokens, voice, body.seed
            work = model.batcher.submit(("speak", *_facts(tokens)), model.speak, item, seconds)
            return _sound(await unless_gone(request, work), model.sample_rate, body.response_format)
        model = served(body.model, "decodes")
        return _sound(await decode(request, model, tokens), model.sample_rate, body.response_format)

    async def streamed(model: Served, begin: Callable[[], Iterator[np.ndarray]], body: Speech) -> Response:
        """The reply of a stream; its first piece is made before the reply starts, so that errors are replies."""
        batcher = model.batcher
        if batcher.load.streams >= settings.max_streams:
            raise Busy
        batcher.load.streams += 1
        try:
            pieces = await batcher.on_thread(begin)
            first = await batcher.next_of(pieces)
        except BaseException:
            batcher.load.streams -= 1
            raise
        writer = Writer(body.response_format, model.sample_rate)

        async def body_of() -> AsyncIterator[bytes]:
            try:
                piece = first
                while piece is not None:
                    meter.spoke(len(piece) / model.sample_rate)
                    if found := await asyncio.to_thread(writer.write, piece):
                        yield found
                    piece = await batcher.next_of(pieces)
                yield writer.end()
            finally:
                batcher.load.streams -= 1
                close = getattr(pieces, "close", None)
                if close is not None:
                    asyncio.get_running_loop().run_in_executor(batcher.thread, close)

        return StreamingResponse(body_of(), media_type=MEDIA[body.response_format], headers=_rate(model))

    def _sound(wave: np.ndarray, sample_rate: int, format: Format) -> Response:
        meter.spoke(len(wave) / sample_rate)
        content = encode(wave, sample_rate, format)
        headers = {"X-Sample-Rate": str(sample_rate)}
        return StreamingResponse(blocks(content), media_type=MEDIA[format], headers=headers)

    return app


# Parts ---------------------------------------------------------------------------------------------------


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled as soon as the client hangs up."""
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


async def _read_tokens(request: Request) -> Tokens:
    body = await request.body()
    if request.headers.get("content-type", "").partition(";")[0].strip() == VOK:
        return await asyncio.to_thread(_from_vok, body)
    try:
        return TokensBody.model_validate_json(body).tokens()
    except ValueError as error:
        raise problem(400, _first_line(error), "tokens") from error


def _to_vok(tokens: Tokens) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        tokens.save(Path(folder) / "tokens.vok")
        return (Path(folder) / "tokens.vok").read_bytes()


def _from_vok(content: bytes) -> Tokens:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.vok"
        path.write_bytes(content)
        try:
            tokens = Tokens.load(path)
        except VokensError as error:
            raise problem(400, str(error).replace(str(path), "the body"), "tokens") from error
    if len(tokens) != 1:
        raise problem(400, f"{len(tokens)} items were given: one per request is accepted", "tokens")
    return tokens


def _facts(tokens: Tokens) -> tuple[Any, ...]:
    """What items of one batch share."""
    vector = None if tokens.global_vector is None else tokens.global_vector.shape[1]
    names = ("model", "fingerprint", "sample_rate", "frame_rate", "codebook_sizes", "first_codebook")
    return (*(getattr(tokens, name) for name in names), vector)


def _card(served: Served) -> ModelCard:
    model = served.model
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
        codebook_sizes=list(getattr(model, "codebook_sizes", ())),
        can=[name for name, able in abilities.items() if able],
    )


def _rate(served: Served) -> dict[str, str]:
    return {"X-Sample-Rate": str(served.sample_rate)}


def _key_check(api_key: str) -> Callable[..., None]:
    """A dependency that lets requests with the key pass; all, if there is none."""
    bearer = HTTPBearer(auto_error=False, description="the server's API key, where it has one")

    def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        sent = given.credentials if given else ""
        if api_key and not hmac.compare_digest(sent.encode(), api_key.encode()):
            raise problem(401, "send the server's API key as Authorization: Bearer KEY", "invalid_api_key")

    return check


# Errors and limits ---------------------------------------------------------------------------------------


def problem(status: int, message: str, code: str) -> HTTPException:
    """An error in OpenAI's shape."""
    return HTTPException(status, {"message": message, "code": code})


def _failure(
    status: int, message: str, code: str | None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "code": code, "param": None}
    return JSONResponse({"error": error}, status, headers)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        detail: Any = error.detail if isinstance(error.detail, dict) else {"message": str(error.detail)}
        return _failure(error.status_code, detail["message"], detail.get("code"), error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return _failure(400, f"{place}: {first['msg']}" if place else first["msg"], "invalid")

    @app.exception_handler(VokensError)
    async def unusable(request: Request, error: VokensError) -> Response:
        return _failure(400, " ".join(str(error).split()), "invalid")

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        return _failure(503, "all places are taken: try again in a second", "busy", {"Retry-After": "1"})


def _first_line(error: Exception) -> str:
    """pydantic's first complaint, in a line."""
    found = getattr(error, "errors", None)
    if found is None:
        return str(error)
    first = found()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")


class Limit:
    """Middleware: a body of more than `most` bytes is refused while it is read."""

    def __init__(self, app: Any, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.most:
            await _failure(413, self._message(), "too_large")(scope, receive, send)
            return
        read = 0

        async def counted() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:
                raise problem(413, self._message(), "too_large")
            return message

        await self.app(scope, counted, send)

    def _message(self) -> str:
        return f"the body is too large: at most {self.most} bytes are accepted"
