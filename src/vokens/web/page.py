"""The page: one tab for codecs, one for token files, and tabs for voices and texts where a model for them is there.

Streams of speech are ordinary sound addresses of this server, which browsers play while they arrive: `Streams` hands
them out.
"""

import base64
import html
import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse

from vokens import audio
from vokens.errors import AudioError, VokensError
from vokens.models.codec import Codec
from vokens.models.s3gen import S3GenModel
from vokens.models.speaking import Speaker
from vokens.serve.sound import Writer
from vokens.web.listen import Heard, Listener

KEPT = 16  # takes of speech; a minute is 3 MB
REFERENCE = 10.0  # s of a voice's recording that S3Gen uses, as Chatterbox does
FONTS = ["system-ui", "sans-serif"]  # of the machine: the page works without a network
STYLE = """
.numbers {display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .4rem 1.2rem;}
.numbers div {display: flex; justify-content: space-between; gap: .6rem; border-bottom: 1px solid #8884;}
.numbers span:first-child {opacity: .7;}
.numbers span:last-child {font-variant-numeric: tabular-nums; text-align: right;}
.picture img {width: 100%; border-radius: .4rem;}
.player audio {width: 100%;}
"""


def create_app(models: dict[str, Any], max_seconds: float = 60.0) -> FastAPI:
    """The page over loaded models, as an application for uvicorn."""
    streams = Streams()
    app = FastAPI(title="vokens", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/stream/{ticket}")
    def stream(ticket: str) -> StreamingResponse:
        return StreamingResponse(iter(streams.take(ticket)), media_type="audio/wav")

    page = create_page(models, streams, max_seconds)
    theme = gr.themes.Soft(font=FONTS, font_mono=["ui-monospace", "monospace"])
    return gr.mount_gradio_app(app, page, path="/", theme=theme, css=STYLE, show_error=True)


class Take:
    """The bytes of one speech as a wav file, computed once and heard any number of times: players ask twice."""

    def __init__(self, pieces: Iterator[np.ndarray], rate: int) -> None:
        self._pieces, self._writer = pieces, Writer("wav", rate)
        self._bytes: list[bytes] = []
        self._done, self._lock = False, threading.Lock()

    def __iter__(self) -> Iterator[bytes]:
        for place in count():
            with self._lock:
                if place == len(self._bytes) and not self._done:
                    piece = next(self._pieces, None)
                    self._done = piece is None
                    self._bytes.append(self._writer.end() if piece is None else self._writer.write(piece))
            if place == len(self._bytes):
                return
            yield self._bytes[place]


class Streams:
    """Speech that is being computed, or was lately: each has an address."""

    def __init__(self) -> None:
        self._takes: OrderedDict[str, Take] = OrderedDict()

    def add(self, pieces: Iterator[np.ndarray], rate: int) -> str:
        """The address of a stream, which goes on when it is fetched."""
        ticket = secrets.token_urlsafe(16)
        self._takes[ticket] = Take(pieces, rate)
        while len(self._takes) > KEPT:
            self._takes.popitem(last=False)
        return f"/stream/{ticket}"

    def take(self, ticket: str) -> Take:
        """The bytes of a wav file, as they are computed."""
        if ticket not in self._takes:
            raise HTTPException(404, "this speech is forgotten: press the button again")
        return self._takes[ticket]


def create_page(models: dict[str, Any], streams: Streams, max_seconds: float) -> gr.Blocks:
    """The tabs that these models make possible."""
    codecs = {n: m for n, m in models.items() if isinstance(m, Codec) and m.decodes}
    converters = {n: m for n, m in models.items() if isinstance(m, S3GenModel) and m.tokenizer is not None}
    speakers = {n: m for n, m in models.items() if isinstance(m, Speaker)}
    listener = Listener(codecs, max_seconds)
    with gr.Blocks(title="vokens", analytics_enabled=False) as page:
        gr.Markdown("# vokens\nSpeech to tokens to speech: hear and see what is kept.")
        if codecs:
            with gr.Tab("Codecs"):
                _codec_tab(listener)
            with gr.Tab("Token files"):
                _token_tab(listener)
        if converters:
            with gr.Tab("Convert a voice"):
                _convert_tab(converters, streams, listener)
        if speakers:
            with gr.Tab("Say a text"):
                _say_tab(speakers, streams)
    return page


def _codec_tab(listener: Listener) -> None:
    names, most = list(listener.codecs), max(codec.num_codebooks for codec in listener.codecs.values())
    with gr.Row():
        recording = gr.Audio(
            label=f"Speech, up to {listener.max_seconds:g} s", type="filepath", elem_id="recording"
        )
        with gr.Column():
            chosen = gr.CheckboxGroup(names, value=names[:1], label="Codecs", elem_id="codecs")
            books = gr.Slider(
                1, most, value=most, step=1, label="Codebooks: the first of them", elem_id="codebooks"
            )
            go = gr.Button("Encode and decode", variant="primary", elem_id="go")

    @gr.render(inputs=[recording, chosen, books], triggers=[go.click, books.release, chosen.change])
    def results(path: str | None, names: list[str], count: int) -> None:
        if not path and not names:
            return
        with friendly():
            wave, rate = listener.load(path)
            if not names:
                raise AudioError("choose at least one codec")
            title = Path(path or "").name
            for name in names:
                gr.Markdown(f"## {name}")
                _show(listener.hear(name, wave, rate, count, title), name)


def _token_tab(listener: Listener) -> None:
    file = gr.File(label="Tokens: .vok, .json, .npz or .pt", type="filepath", elem_id="tokens")

    @gr.render(inputs=[file], triggers=[file.upload])
    def results(path: str | None) -> None:
        with friendly():
            heard = listener.open(path)
            gr.Markdown(f"## {heard.tokens.model}")
            _show(heard, heard.tokens.model)


def _show(heard: Heard, name: str) -> None:
    """Player, numbers, picture and the tokens to take home."""
    with gr.Row():
        gr.Audio(heard.sound, label="resynthesis", interactive=False, elem_classes="resynthesis")
        gr.HTML(numbers(heard.numbers))
    picture = base64.b64encode(heard.picture).decode()
    gr.HTML(
        f'<div class="picture"><img alt="mel spectrograms and tokens" src="data:image/png;base64,{picture}"></div>'
    )
    place = Path(tempfile.mkdtemp(prefix="vokens-")) / f"{name.replace('/', '-')}.vok"
    heard.tokens.save(place)
    gr.DownloadButton("Tokens (.vok)", value=str(place), elem_classes="tokens-down")


def _convert_tab(models: dict[str, S3GenModel], streams: Streams, listener: Listener) -> None:
    with gr.Row():
        source = gr.Audio(label="What is said", type="filepath", elem_id="source")
        voice = gr.Audio(label="The voice, 3 to 10 s", type="filepath", elem_id="target")
    name = gr.Dropdown(list(models), value=next(iter(models)), label="Model")
    go, player = gr.Button("Convert", variant="primary", elem_id="convert"), gr.HTML(elem_classes="player")

    def convert(path: str | None, of: str | None, name: str) -> str:
        with friendly():
            model = models[name]
            wave, rate = listener.load(path)
            if not of:
                raise AudioError("record or upload the voice, too")
            owner = model.voice(*audio.load(Path(of), duration=REFERENCE))
            tokens = model.heard(wave, rate)
            return play(streams.add(begun(model.stream(tokens, owner)), model.sample_rate))

    go.click(convert, [source, voice, name], player)


def _say_tab(models: dict[str, Speaker], streams: Streams) -> None:
    import torch

    with gr.Row():
        text = gr.Textbox(label="Text", lines=4, elem_id="text")
        with gr.Column():
            voice = gr.Audio(label="The voice (where the model takes one)", type="filepath", elem_id="voice")
            said = gr.Textbox(label="What the recording says, if you know it")
    with gr.Row():
        name = gr.Dropdown(list(models), value=next(iter(models)), label="Model")
        seed = gr.Number(0, label="Seed: another is another take", precision=0, minimum=0)
        paced = any(model.paced for model in models.values())
        speed = gr.Slider(0.5, 2.0, 1.0, step=0.1, label="Speed, of models that can", visible=paced)
    go, player = gr.Button("Say it", variant="primary", elem_id="say"), gr.HTML(elem_classes="player")

    def say(text: str, path: str | None, said: str, name: str, seed: float, speed: float) -> str:
        with friendly():
            model, generator = models[name], torch.Generator().manual_seed(int(seed))
            heard = model.voice(Path(path), said) if path else None
            pieces = begun(model.say_stream(text, heard, generator=generator, speed=speed))
            return play(streams.add(pieces, model.sample_rate))

    go.click(say, [text, voice, said, name, seed, speed], player)


def begun(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same pieces, the first of which is there: what cannot be said is refused before anything plays."""
    return chain([piece for piece in [next(pieces, None)] if piece is not None], pieces)


def play(address: str) -> str:
    """A player that begins at once."""
    return f'<audio controls autoplay src="{html.escape(address)}"></audio>'


def numbers(pairs: list[tuple[str, str]]) -> str:
    cells = "".join(
        f"<div><span>{html.escape(name)}</span><span>{html.escape(value)}</span></div>"
        for name, value in pairs
    )
    return f'<div class="numbers">{cells}</div>'


@contextmanager
def friendly() -> Iterator[None]:
    """Errors of ours as a note on the page."""
    try:
        yield
    except VokensError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error
