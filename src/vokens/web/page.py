"""The page: tabs for codecs and token files, and for voices and texts where a model supports them.

Sounds, pictures and tokens are plain URLs of this server (`Addresses`): browsers play streams as they arrive, and
choose the picture that fits their width.
"""

import html
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from vokens import audio
from vokens.errors import AudioError, ConfigError, VokensError
from vokens.models.codec import Codec
from vokens.models.learnable.decoder import FlowDecoder
from vokens.models.s3gen import S3GenModel
from vokens.models.s3gen.voice import REFERENCE_SECONDS
from vokens.models.speaking import Speaker, begun, generator_of
from vokens.web.addresses import Addresses
from vokens.web.listen import Listener, Result

SAMPLES = Path(str(files("vokens") / "samples"))
FONTS = ["system-ui", "sans-serif"]  # of the machine: the page works without a network
STYLE = """
.result {display: flex; flex-wrap: wrap; gap: .8rem 2rem; align-items: flex-start;}
.result h2, .result picture {flex: 1 0 100%;}
.result .sound {flex: 1 1 16rem;}
.result .numbers {flex: 3 1 16rem; display: grid; gap: .4rem 1.2rem; margin: 0;
  grid-template-columns: repeat(auto-fit, minmax(min(14rem, 100%), 1fr));}
.numbers div {display: flex; justify-content: space-between; gap: .6rem; border-bottom: 1px solid #8884;}
.numbers dd {font-variant-numeric: tabular-nums; text-align: right; margin: 0;}
.result img {width: 100%; border-radius: .4rem;}
.sound a {margin-right: 1rem;}
.sound audio, .player audio {width: 100%;}
#time, #duration {color: var(--body-text-color-subdued) !important;}
.dark [role=tab].selected {color: var(--primary-300) !important;}
footer .divider {display: none !important;}
.playback {display: none !important;}
"""
# Gradio's upload button has an aria-label unlike its text, which confuses speech control and screen readers.
SCRIPT = """
() => new MutationObserver(() => {
  document.querySelectorAll(".upload-container[aria-label]").forEach(one => one.removeAttribute("aria-label"));
}).observe(document.body, {childList: true, subtree: true})
"""


def create_app(models: dict[str, Any], max_seconds: float = 60.0) -> FastAPI:
    """The page for loaded models, as an application for uvicorn. Raises ConfigError for models that no tab supports."""
    addresses = Addresses()
    app = FastAPI(title="vokens", docs_url=None, redoc_url=None, openapi_url=None)
    addresses.routes(app)
    page = create_page(models, addresses, max_seconds)
    return gr.mount_gradio_app(
        app, page, path="/", theme=_theme(), css=STYLE, js=SCRIPT, show_error=True, footer_links=["gradio"],
        allowed_paths=[str(SAMPLES)],
    )  # fmt: skip


def _theme() -> gr.themes.Base:
    """Gradio's Soft, with the contrast of 4.5 to 1 that WCAG requires of text."""
    return gr.themes.Soft(font=FONTS, font_mono=["ui-monospace", "monospace"]).set(
        background_fill_primary="*neutral_50",  # Soft's own, which set() resets
        input_border_color="*neutral_300",
        color_accent="*primary_600",
        block_label_text_color="*primary_700",
        block_title_text_color="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        checkbox_label_background_fill_selected="*primary_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        link_text_color_dark="*primary_300",
        link_text_color_hover_dark="*primary_200",
        link_text_color_visited_dark="*primary_300",
        link_text_color_active_dark="*primary_300",
    )


def create_page(models: dict[str, Any], addresses: Addresses, max_seconds: float) -> gr.Blocks:
    codecs = {n: m for n, m in models.items() if isinstance(m, Codec) and m.decodes}
    able = {n: m.decoder if isinstance(m, Speaker) else m for n, m in models.items()}
    converters = {
        n: m for n, m in able.items() if isinstance(m, S3GenModel | FlowDecoder) and m.tokenizer is not None
    }
    speakers = {n: m for n, m in models.items() if isinstance(m, Speaker)}
    if useless := models.keys() - {*codecs, *converters, *speakers}:
        raise no_use(useless)
    listener = Listener(codecs, max_seconds)
    with gr.Blocks(title="vokens", analytics_enabled=False) as page:
        gr.Markdown("# vokens\nSpeech to tokens to speech: hear and see what is kept.")
        if codecs:
            with gr.Tab("Codecs"):
                _codec_tab(listener, addresses)
            with gr.Tab("Token files"):
                _token_tab(listener, addresses)
        if converters:
            with gr.Tab("Convert a voice"):
                _convert_tab(converters, addresses, listener)
        if speakers:
            with gr.Tab("Say a text"):
                _say_tab(speakers, addresses)
    return page


def no_use(names: Iterable[str]) -> ConfigError:
    """The error for models that no tab takes."""
    return ConfigError(
        f"the page cannot use {', '.join(sorted(names))}: it takes codecs that decode, S3Gen with its tokenizer, "
        "and models that speak; leave the others out of --models"
    )


def _codec_tab(listener: Listener, addresses: Addresses) -> None:
    names, most = list(listener.codecs), max(codec.num_codebooks for codec in listener.codecs.values())
    with gr.Row():
        recording = _recording(f"Recording, up to {listener.max_seconds:g} s", "recording")
        with gr.Column():
            chosen = gr.CheckboxGroup(names, value=names[:1], label="Codecs", elem_id="codecs")
            books = gr.Slider(1, most, most, step=1, label="Number of codebooks", elem_id="codebooks")
            count = gr.Number(most, visible="hidden", precision=0)
            go = gr.Button("Encode and decode", variant="primary", elem_id="go")
    # While the user types, the number box may be empty or out of range: keep the last count, or clamp.
    nearest = f"(now, before) => now == null ? before : Math.min(Math.max(Math.round(now), 1), {most})"
    books.change(None, [books, count], count, js=nearest)
    shown = gr.HTML(elem_id="results")

    def results(path: str | None, names: list[str], count: int) -> str:
        with friendly(path):
            wave, rate = listener.load(path)
            if not names:
                raise AudioError("no codec is chosen: choose at least one")
            file, page = Path(path or ""), ""
            for name in names:
                result = listener.roundtrip(name, wave, rate, count, file.name)
                stem = f"{file.stem}.{name.replace('/', '-')}" if len(names) > 1 else file.stem
                page += _show(result, addresses, stem)
            return page

    def again(path: str | None, names: list[str], count: int) -> str:
        return results(path, names, count) if path and names else ""

    inputs = [recording, chosen, count]
    go.click(results, inputs, shown, concurrency_id="codecs")
    # always_last: while one result is computed, only the latest position of the slider is queued
    latest: dict[str, Any] = {"trigger_mode": "always_last", "concurrency_id": "codecs"}
    gr.on([count.change, chosen.change], again, inputs, shown, **latest)


def _token_tab(listener: Listener, addresses: Addresses) -> None:
    file = gr.File(label="Tokens: .vok, .json, .npz or .pt", type="filepath", elem_id="tokens")
    shown = gr.HTML()

    def results(path: str | None) -> str:
        with friendly(path):
            return _show(listener.open(path), addresses, Path(path or "").stem)

    file.upload(results, file, shown)


def _recording(label: str, name: str) -> gr.Audio:
    """An input for a recording, with samples to choose from."""
    with gr.Column():
        recording = gr.Audio(label=label, type="filepath", elem_id=name, buttons=["download"])
        with gr.Row():
            for language in ("English", "Mandarin"):
                path = str(SAMPLES / f"{language.lower()}.flac")
                sample = gr.Button(f"{language} sample", size="sm", min_width=120)
                sample.click(partial(str, path), None, recording, show_progress="hidden")
    return recording


def _show(result: Result, addresses: Addresses, stem: str) -> str:
    """HTML of a result: player, figures, picture, downloads."""
    wave, tokens, wide, narrow = addresses.add_files(result.files(stem))
    model = html.escape(result.tokens.model)
    cells = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>"
        for name, value in result.numbers.items()
    )
    return f"""<section class="result"><h2>{model}</h2>
<div class="sound"><audio controls aria-label="Resynthesis by {model}" src="{wave}"></audio>
<a download class="tokens-down" href="{tokens}">Tokens (.vok)</a><a download href="{wave}">Sound (.wav)</a></div>
<dl class="numbers">{cells}</dl>
<picture><source media="(max-width: 640px)" srcset="{narrow}">
<img alt="Waveforms, mel spectrograms and tokens of {html.escape(result.title)}" src="{wide}"></picture></section>"""


def _convert_tab(
    models: dict[str, S3GenModel | FlowDecoder], addresses: Addresses, listener: Listener
) -> None:
    with gr.Row():
        source = _recording("What is said", "source")
        voice = _recording("The voice, 3 to 10 s", "target")
    name = gr.Dropdown(list(models), value=next(iter(models)), label="Model")
    go, player = gr.Button("Convert", variant="primary", elem_id="convert"), gr.HTML(elem_classes="player")

    def convert(path: str | None, of: str | None, name: str) -> str:
        with friendly(path, of):
            model = models[name]
            wave, rate = listener.load(path)
            if not of:
                raise AudioError("record or upload the voice, too")
            owner = model.voice(*audio.load(Path(of), duration=REFERENCE_SECONDS))
            tokens = model.tokenize(wave, rate)
            return play(addresses.add_stream(begun(model.stream(tokens, owner)), model.sample_rate))

    go.click(convert, [source, voice, name], player)


def _say_tab(models: dict[str, Speaker], addresses: Addresses) -> None:
    with gr.Row():
        text = gr.Textbox(label="Text", lines=4, elem_id="text")
        with gr.Column():
            voice = _recording("The voice (where the model takes one)", "voice")
            said = gr.Textbox(label="What the recording says, if you know it")
    with gr.Row():
        name = gr.Dropdown(list(models), value=next(iter(models)), label="Model")
        seed = gr.Number(0, label="Seed", info="Another number is another take.", precision=0, minimum=0)
        paced = [name for name, model in models.items() if model.paced]
        info = f"Taken by {', '.join(paced)}." if len(paced) < len(models) else None
        speed = gr.Slider(0.5, 2.0, 1.0, step=0.1, label="Speed", info=info, visible=bool(paced))
    go, player = gr.Button("Say it", variant="primary", elem_id="say"), gr.HTML(elem_classes="player")

    def say(text: str, path: str | None, said: str, name: str, seed: float, speed: float) -> str:
        with friendly(path):
            model = models[name]
            owner = model.voice(Path(path), said) if path else None
            pieces = model.say_stream(text, owner, generator=generator_of(int(seed)), speed=speed)
            return play(addresses.add_stream(begun(pieces), model.sample_rate))

    go.click(say, [text, voice, said, name, seed, speed], player)


def play(address: str) -> str:
    """An audio player that starts at once."""
    return f'<audio controls autoplay aria-label="Speech" src="{html.escape(address)}"></audio>'


@contextmanager
def friendly(*paths: str | None) -> Iterator[None]:
    """Show VokensErrors as a note on the page, with uploaded files under their own names."""
    try:
        yield
    except VokensError as error:
        message = str(error)
        for path in filter(None, paths):
            message = message.replace(path, Path(path).name)
        raise gr.Error(html.escape(message, quote=False), duration=None, print_exception=False) from error
