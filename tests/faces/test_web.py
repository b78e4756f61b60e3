"""The page's recordings, tokens and addresses, without a browser; test_web_browser.py has one."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import refused, speechlike

import vokens
from vokens.cli import main
from vokens.errors import AudioError, ConfigError, TokensError
from vokens.models.codec import Codec
from vokens.models.named import load_named
from vokens.models.speaking import begun

pytest.importorskip("gradio")
pytest.importorskip("matplotlib")

from matplotlib.image import imread

from vokens.web.addresses import KEPT, Addresses
from vokens.web.listen import Listener
from vokens.web.page import create_app, create_page


@pytest.fixture(scope="module")
def mini() -> Codec:
    return vokens.load("mini")


@pytest.fixture
def listener(mini: Codec) -> Listener:
    return Listener({"mini": mini}, max_seconds=3)


def test_the_slider_decodes_fewer_codebooks_of_the_same_tokens(listener, mini):
    wave = speechlike(20000)
    tokens = mini.encode(wave, 16000)
    for count in (8, 2, 99):
        result = listener.roundtrip("mini", wave, 16000, count)
        assert result.tokens.codes.equal(tokens.codes[:, :count])
        np.testing.assert_allclose(result.decoded, mini.decode(tokens.select(0, min(count, 8)))[0], atol=1e-5)
        assert result.numbers["bit rate"] == f"{min(count, 8) * 0.5:.2f} kbit/s"
        assert float(result.numbers["mel distance"]) > 0
    assert len(listener._kept) == 1  # encoded once


def test_silence_is_not_called_a_perfect_copy(listener):
    numbers = listener.roundtrip("mini", np.zeros(16000, np.float32), 16000, 8).numbers
    assert "silent" in numbers["closeness"]
    assert not numbers.keys() & {"mel distance", "STOI"}


def test_files_of_a_result_are_written_on_request_and_the_oldest_expire(listener):
    from fastapi import FastAPI, HTTPException
    from fastapi.testclient import TestClient

    addresses, app = Addresses(), FastAPI()
    addresses.routes(app)
    client = TestClient(app)
    result = listener.roundtrip("mini", speechlike(8000), 16000, 8, "a b.flac")
    wave, tokens, wide, narrow = addresses.add_files(result.files("a b"))
    kept = Path(addresses._folder.name)
    assert not list(kept.iterdir())
    decoded, rate = soundfile.read(io.BytesIO(client.get(wave).content))
    assert (len(decoded), rate) == (8000, 16000)
    assert client.get(wave, headers={"Range": "bytes=44-47"}).status_code == 206  # or players cannot seek
    assert tokens.endswith("/a%20b.vok")
    assert client.get(tokens).content[8:9] == b"{"  # the head of safetensors
    sizes = [imread(io.BytesIO(client.get(address).content)).shape[:2] for address in (wide, narrow)]
    assert sizes == [(1000, 1600), (2080, 800)]
    for _ in range(KEPT):
        addresses.add_files({})
    assert not list(kept.iterdir())
    assert client.get(wave).status_code == 404
    with pytest.raises(HTTPException):
        addresses.file(wave.split("/")[2], "../secret")


def test_token_files_are_opened(listener, mini, tmp_path):
    tokens = mini.encode(speechlike(9000), 16000)
    tokens.to_json(tmp_path / "x.json")
    result = listener.open(tmp_path / "x.json")
    assert (len(result.decoded), result.title) == (9000, "x.json")
    result.draw(tmp_path / "x.png", narrow=True)
    assert imread(tmp_path / "x.png").shape[:2] == (960, 800)
    (tmp_path / "y.vok").write_bytes(b"no tokens")
    refused(TokensError, "not a token file", listener.open, tmp_path / "y.vok")
    mini.tokens(np.zeros((1, 8, 0), np.int64)).save(tmp_path / "z.vok")
    refused(TokensError, "no samples", listener.open, tmp_path / "z.vok")
    refused(TokensError, "vokens web --models mini", lambda: Listener({}, 3).open(tmp_path / "x.json"))


def test_long_and_wrong_files_get_friendly_messages(listener, tmp_path):
    refused(AudioError, "press a sample", listener.load, None)
    soundfile.write(tmp_path / "long.wav", speechlike(16000 * 4), 16000)
    refused(AudioError, "longer than 3 s", listener.load, tmp_path / "long.wav")
    (tmp_path / "wrong.wav").write_text("no sound")
    refused(AudioError, "not readable audio", listener.load, tmp_path / "wrong.wav")


def test_a_take_is_computed_once_and_served_again_and_the_oldest_expire():
    from fastapi import HTTPException

    streams, wave = Addresses(), speechlike(1000)
    given: list[int] = []

    def pieces() -> Iterator[np.ndarray]:
        for start in (0, 400):
            given.append(start)
            yield wave[start : start + (400 if start == 0 else 600)]

    ticket = streams.add_stream(pieces(), 16000).rsplit("/", 1)[1]
    early = iter(streams.take(ticket))
    head = next(early)
    assert given == [0]  # the rest is computed when it is asked for
    whole = b"".join(streams.take(ticket))  # a player asks again from the start
    assert whole == head + b"".join(early)
    assert len(whole) == 44 + 2 * 1000
    assert given == [0, 400]
    addresses = [streams.add_stream(iter(()), 16000) for _ in range(KEPT + 1)]
    with pytest.raises(HTTPException):
        streams.take(addresses[0].rsplit("/", 1)[1])


def test_the_page_is_built_for_models_of_each_kind(mini):
    from s3gen_model import build
    from speakers import tiny_speech

    models = {"mini": mini, "voice": build("chatterbox-turbo"), "tts": tiny_speech()}
    app = create_app(models)
    assert any(getattr(route, "path", "") == "/stream/{ticket}" for route in app.routes)


def test_cosyvoices_folder_says_texts_and_converts_voices(tmp_path):
    from speakers import published_folder

    published_folder(tmp_path / "CosyVoice", "cosyvoice3")
    addresses, recording = Addresses(), str(tmp_path / "a.wav")
    soundfile.write(recording, speechlike(24000), 16000)
    page = create_page(load_named([f"tts={tmp_path / 'CosyVoice'}"]), addresses, 60)
    work = {one.name: one.fn for one in page.fns.values()}
    said = work["say"]("Hi.", recording, "One.", "tts", 0, 1.0)
    for player in (said, work["convert"](recording, recording, "tts")):
        ticket = player.partition("/stream/")[2].partition('"')[0]
        assert len(b"".join(addresses.take(ticket))) > 44


def test_models_of_no_use_to_the_page_are_named(mini):
    with pytest.raises(ConfigError, match="cannot use lone: it takes codecs"):
        create_app({"mini": mini, "lone": object()})


def test_a_codec_that_only_encodes_is_refused_before_a_download(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VOKENS_CACHE", str(tmp_path / "cache"))
    assert main(["web", "--port", "0", "--models", "mini", "s3=speech_tokenizer_v2_25hz"]) == 2
    assert "cannot use s3=speech_tokenizer_v2_25hz: it takes" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_speech_without_a_sample_is_refused_before_it_plays():
    nothing, sound = np.zeros(0, np.float32), np.ones(3, np.float32)
    assert np.concatenate(list(begun(iter([nothing, sound, nothing, sound])))).tolist() == [1.0] * 6
    for pieces in ([], [nothing, nothing]):
        with pytest.raises(ConfigError, match="without a sound"):
            begun(iter(pieces))
