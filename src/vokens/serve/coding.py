"""Routes of codecs: a recording to tokens, tokens to sound."""

import asyncio
import io
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Depends, File, Form, Query, Request, UploadFile
from fastapi.responses import Response
from pydantic import ValidationError

from vokens import audio
from vokens.errors import AudioError, MissingExtra, VokensError
from vokens.serve.errors import complaint, problem
from vokens.serve.schema import Format, TokensBody
from vokens.serve.served import Served
from vokens.serve.service import SOUND, Service, TheService, check_key, unless_gone
from vokens.tokens import Tokens

VOK = "application/octet-stream"
_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": TokensBody.model_json_schema()},
        VOK: {"schema": {"type": "string", "format": "binary"}},
    },
}
router = APIRouter(prefix="/v1/tokens", dependencies=[Depends(check_key)])


@router.post("/encode", response_model=TokensBody)
async def encode_audio(
    request: Request,
    service: TheService,
    file: Annotated[UploadFile, File(description="wav, flac, ogg, opus, mp3; m4a, webm where PyAV is")],
    model: Annotated[str, Form(min_length=1, max_length=200)],
    num_codebooks: Annotated[int | None, Form(ge=1, le=256)] = None,
    response_format: Annotated[Literal["json", "vok"], Form()] = "json",
) -> Response:
    """Tokens of a recording, as JSON or as a .vok file."""
    codec = service.model(model, "encodes")
    # One second more than allowed, so that a small file of hours is not decoded as a whole.
    most, rate = service.settings.max_seconds + 1, codec.encode_rate
    wave = await asyncio.to_thread(_read_audio, await file.read(), rate, most)
    seconds = len(wave) / rate
    service.check_seconds(seconds)
    run = partial(codec.encode, num_codebooks)
    tokens = await unless_gone(request, codec.batcher.submit(("encode", num_codebooks), run, wave, seconds))
    service.meter.count("in", seconds)
    if response_format == "vok":
        return Response(await asyncio.to_thread(_to_vok, tokens), media_type=VOK)
    content = await asyncio.to_thread(lambda: TokensBody.of(tokens).model_dump_json())
    return Response(content, media_type="application/json")


@router.post("/decode", response_class=Response, responses=SOUND, openapi_extra={"requestBody": _BODY})
async def decode_tokens(
    request: Request, service: TheService, response_format: Annotated[Format, Query()] = "wav"
) -> Response:
    """The sound of tokens: JSON as `encode` gave it, or the bytes of a .vok file."""
    is_vok = request.headers.get("content-type", "").partition(";")[0].strip() == VOK
    tokens = await asyncio.to_thread(_from_vok if is_vok else _from_json, await request.body())
    codec, tokens = service.codec_of(tokens)
    wave = await unless_gone(request, decode(service, codec, tokens))
    return await service.sound(wave, codec.sample_rate, response_format)


async def decode(service: Service, codec: Served, tokens: Tokens) -> np.ndarray:
    """The wave (T,) of tokens, from the queue of their codec."""
    seconds = tokens.codes.shape[2] / tokens.frame_rate
    service.check_seconds(seconds)
    return await codec.batcher.submit(("decode", *tokens.batch_kind), codec.decode, tokens, seconds)


def _read_audio(content: bytes, sample_rate: int, duration: float) -> np.ndarray:
    """The samples (T,) of an upload; errors refer to the form's field, not to local files and packages."""
    upload = io.BytesIO(content)
    upload.name = "file"
    media = ", m4a, aac and webm" if find_spec("av") else " (m4a, aac and webm are not read by this server)"
    try:
        return audio.load(upload, sample_rate, duration=duration)[0]
    except (AudioError, MissingExtra) as error:
        missing = isinstance(error, MissingExtra)
        about = "'file' cannot be read" if missing else str(error).partition(": wav")[0]
        message = f"{about}: send a whole recording as wav, flac, ogg, opus, mp3{media}"
        raise problem(400, message, "file") from error


def _from_json(content: bytes) -> Tokens:
    try:
        return TokensBody.model_validate_json(content).tokens()
    except ValidationError as error:
        raise problem(400, complaint(error)[0], "tokens") from error


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
