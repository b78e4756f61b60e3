"""The page's recordings, tokens and streams, without a browser; test_web_browser.py has one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import speechlike

import vokens
from vokens.errors import AudioError, TokensError
from vokens.models.codec import Codec

pytest.importorskip("gradio")
pytest.importorskip("matplotlib")

from vokens.web.listen import Listener
from vokens.web.page import KEPT, Streams, create_app


@pytest.fixture(scope="module")
def mini() -> Codec:
    return vokens.load("mini")


@pytest.fixture
def listener(mini: Codec) -> Listener:
    return Listener({"mini": mini}, max_seconds=3)


def test_the_slider_decodes_fewer_codebooks_of_the_same_tokens(listener: Listener, mini: Codec) -> None:
    wave = speechlike(20000)
    tokens = mini.encode(wave, 16000)
    for count in (8, 2, 99):
        heard = listener.hear("mini", wave, 16000, count)
        assert heard.tokens.codes.equal(tokens.codes[:, :count])
        expected = mini.decode(tokens.select(0, min(count, 8)))[0].clip(-1, 1) * 32767
        np.testing.assert_allclose(heard.sound[1], expected, atol=1)
        assert heard.picture[:4] == b"\x89PNG"
        assert dict(heard.numbers)["bit rate"] == f"{min(count, 8) * 0.5:.2f} kbit/s"
    assert len(listener._kept) == 1  # encoded once


def test_token_files_are_heard(listener: Listener, mini: Codec, tmp_path: Path) -> None:
    tokens = mini.encode(speechlike(9000), 16000)
    tokens.to_json(tmp_path / "x.json")
    heard = listener.open(tmp_path / "x.json")
    assert len(heard.sound[1]) == 9000
    (tmp_path / "y.vok").write_bytes(b"no tokens")
    with pytest.raises(TokensError, match="not a token file"):
        listener.open(tmp_path / "y.vok")
    with pytest.raises(TokensError, match="vokens web --models mini"):
        Listener({}, 3).open(tmp_path / "x.json")


def test_long_and_wrong_files_get_friendly_messages(listener: Listener, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="record or upload"):
        listener.load(None)
    soundfile.write(tmp_path / "long.wav", speechlike(16000 * 4), 16000)
    with pytest.raises(AudioError, match="longer than 3 s"):
        listener.load(tmp_path / "long.wav")
    (tmp_path / "wrong.wav").write_text("no sound")
    with pytest.raises(AudioError, match="not readable audio"):
        listener.load(tmp_path / "wrong.wav")


def test_a_take_is_computed_once_and_heard_again_and_the_oldest_are_forgotten() -> None:
    from fastapi import HTTPException

    streams, wave = Streams(), speechlike(1000)
    given: list[int] = []

    def pieces() -> Iterator[np.ndarray]:
        for start in (0, 400):
            given.append(start)
            yield wave[start : start + (400 if start == 0 else 600)]

    ticket = streams.add(pieces(), 16000).rsplit("/", 1)[1]
    early = iter(streams.take(ticket))
    head = next(early)
    assert given == [0]  # the rest is computed when it is asked for
    whole = b"".join(streams.take(ticket))  # a player asks again from the start
    assert whole == head + b"".join(early)
    assert len(whole) == 44 + 2 * 1000
    assert given == [0, 400]
    addresses = [streams.add(iter(()), 16000) for _ in range(KEPT + 1)]
    with pytest.raises(HTTPException):
        streams.take(addresses[0].rsplit("/", 1)[1])


def test_the_page_is_built_for_models_of_each_kind(mini: Codec) -> None:
    from s3gen_model import build
    from speakers import tiny_speech

    models = {"mini": mini, "voice": build("chatterbox-turbo"), "tts": tiny_speech()}
    app = create_app(models)
    assert any(getattr(route, "path", "") == "/stream/{ticket}" for route in app.routes)
