"""The server: tokens and speech over HTTP are those of the library, requests share batches, limits hold."""

import base64
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import refused, speechlike
from hypothesis import HealthCheck, given, settings

import vokens
from vokens.cli import main
from vokens.errors import ConfigError
from vokens.serve.settings import Settings
from vokens.serve.sound import MEDIA, Writer, encode, wav_header

httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from vokens.serve.app import create_app  # noqa: E402 (after the packages that it needs)
from vokens.serve.batcher import Batcher  # noqa: E402
from vokens.serve.schema import TokensBody  # noqa: E402
from vokens.serve.served import Served, load_models  # noqa: E402

FUZZ = settings(
    max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@contextmanager
def serving(models: dict[str, Served], settings: Settings) -> Iterator[str]:
    """The address of a real server that runs in a thread."""
    config = uvicorn.Config(create_app(models, settings), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def wav(wave: np.ndarray, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    settings = Settings(max_upload=2_000_000, max_seconds=20, batch_wait=0.05)
    with serving(load_models(["mini"], settings), settings) as actual:
        yield actual


@pytest.fixture(scope="module")
def mini() -> Any:
    return vokens.load("mini")


def post_encode(address: str, content: bytes, **fields: str) -> Any:
    return httpx.post(
        f"{address}/v1/tokens/encode", files={"file": ("x", content)}, data={"model": "mini"} | fields
    )


def test_tokens_and_sound_are_those_of_the_library(address: str, mini: Any) -> None:
    wave = speechlike(12345)
    reply = post_encode(address, wav(wave))
    assert reply.status_code == 200, reply.text
    tokens = mini.encode(wave, 16000)
    assert reply.json()["codes"] == tokens.codes[0].tolist()
    sound = httpx.post(f"{address}/v1/tokens/decode", content=reply.content)
    decoded, rate = soundfile.read(io.BytesIO(sound.content), dtype="float32")
    assert rate == 16000
    assert len(decoded) == 12345
    np.testing.assert_allclose(decoded, mini.decode(tokens)[0].clip(-1, 1), atol=2 / 32768)


def test_vok_files_go_in_and_out(address: str, mini: Any, tmp_path: Path) -> None:
    wave = speechlike(9000)
    reply = post_encode(address, wav(wave), response_format="vok", num_codebooks="3")
    (tmp_path / "x.vok").write_bytes(reply.content)
    tokens = vokens.Tokens.load(tmp_path / "x.vok")
    assert tokens.codes.equal(mini.encode(wave, 16000, num_codebooks=3).codes)
    kind = {"content-type": "application/octet-stream"}
    sound = httpx.post(f"{address}/v1/tokens/decode?response_format=pcm", content=reply.content, headers=kind)
    assert len(sound.content) == 2 * 9000
    broken = httpx.post(f"{address}/v1/tokens/decode", content=reply.content[:-5], headers=kind)
    assert broken.status_code == 400
    assert "/tmp" not in broken.text


def test_requests_share_batches_and_change_nothing(address: str, mini: Any) -> None:
    waves = [speechlike(4000 + 700 * i, seed=i) for i in range(12)]
    before = metric(address, "vokens_model_batches")
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda wave: post_encode(address, wav(wave)), waves))
    for wave, reply in zip(waves, replies, strict=True):
        assert reply.json()["codes"] == mini.encode(wave, 16000).codes[0].tolist()
    assert metric(address, "vokens_model_batches") - before < 12


def test_one_bad_item_does_not_spoil_the_batch(address: str, mini: Any) -> None:
    tokens = mini.encode(speechlike(6000), 16000)
    good = post_encode(address, wav(speechlike(6000))).json()
    assert good["codes"] == tokens.codes[0].tolist()
    bad = good | {"fingerprint": "0" * 16}
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(httpx.post, f"{address}/v1/tokens/decode", json=body) for body in (good, bad, good)
        ]
        codes = [job.result().status_code for job in jobs]
    assert codes == [200, 400, 200]


def metric(address: str, name: str) -> float:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "nobody"}, 404, "mini"),
        ({"codes": [[0, 1], [0]]}, 400, "rows"),
        ({"codes": [[5000]]}, 400, "codebook"),
        ({"codes": [["x"]]}, 400, "codes"),
        ({"num_samples": -1}, 400, "num_samples"),
        ({"frame_rate": 1e-9}, 413, "at most"),
    ],
)
def test_bad_tokens_get_a_clear_answer(address: str, change: dict[str, Any], status: int, words: str) -> None:
    body = {"model": "mini", "sample_rate": 16000, "frame_rate": 50.0, "codebook_sizes": [1024]}
    body |= {"num_samples": 640, "codes": [[1, 2]]} | change
    reply = httpx.post(f"{address}/v1/tokens/decode", json=body)
    assert reply.status_code == status, reply.text
    assert words in reply.json()["error"]["message"]


def test_limits_on_uploads(address: str) -> None:
    assert post_encode(address, b"no sound").status_code == 400
    assert post_encode(address, b"").status_code == 400
    assert post_encode(address, b"0" * 2_100_000).status_code == 413
    long = io.BytesIO()
    soundfile.write(long, np.zeros(30 * 16000), 16000, format="FLAC")
    reply = post_encode(address, long.getvalue())  # a small file of many seconds
    assert reply.status_code == 413
    assert "20 s" in reply.json()["error"]["message"]

    def parts() -> Iterator[bytes]:  # no content-length: counted while it is read
        for _ in range(40):
            yield b"0" * 65536

    chunked = httpx.post(f"{address}/v1/tokens/decode", content=parts())
    assert chunked.status_code == 413
    assert chunked.json()["error"]["code"] == "too_large"


def test_unknown_routes_and_keys() -> None:
    settings = Settings(api_key="secret")
    with serving(load_models(["mini"], settings), settings) as address:
        assert httpx.get(f"{address}/health").status_code == 200
        assert httpx.get(f"{address}/nothing").json()["error"]["type"] == "invalid_request_error"
        assert httpx.get(f"{address}/v1/models").status_code == 401
        reply = httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer secret"})
        assert reply.json()["data"][0]["id"] == "mini"
        assert httpx.post(f"{address}/v1/models").status_code in (401, 405)


class Slow:
    """Stands for a model whose passes take long: the real one, behind a gate."""

    def __init__(self, served: Served) -> None:
        self.gate, self.seen = threading.Event(), 0
        inner = served.model.encode

        def encode(*given: Any, **named: Any) -> Any:
            self.seen += len(given[0])
            self.gate.wait(10)
            return inner(*given, **named)

        served.model.encode = encode


def test_a_full_queue_says_so_and_a_client_that_hangs_up_frees_its_place() -> None:
    settings = Settings(max_queue=2, max_batch=1)
    models = load_models(["mini"], settings)
    slow = Slow(models["mini"])
    content = wav(speechlike(3000))
    with serving(models, settings) as address, ThreadPoolExecutor(8) as pool:

        def post(patience: float) -> int:
            try:
                files = {"file": ("x", content)}
                return httpx.post(
                    f"{address}/v1/tokens/encode", files=files, data={"model": "mini"}, timeout=patience
                ).status_code
            except httpx.TimeoutException:
                return 0

        first = pool.submit(post, 20)
        wait_for(lambda: slow.seen == 1)
        leaving = [pool.submit(post, 1.0) for _ in range(2)]
        wait_for(lambda: metric(address, "vokens_model_waiting") == 2)
        busy = httpx.post(
            f"{address}/v1/tokens/encode", files={"file": ("x", content)}, data={"model": "mini"}
        )
        assert busy.status_code == 503
        assert busy.headers["retry-after"]
        assert [job.result() for job in leaving] == [0, 0]  # they hang up
        time.sleep(0.1)
        staying = pool.submit(post, 20)  # and this one gets a place
        time.sleep(0.3)
        slow.gate.set()
        assert first.result() == 200
        assert staying.result() == 200
        assert slow.seen == 2  # those that left cost nothing


def wait_for(condition: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_requests_in_progress_end_before_the_server_does() -> None:
    settings = Settings()
    models = load_models(["mini"], settings)
    slow = Slow(models["mini"])
    with ThreadPoolExecutor(1) as pool:
        with serving(models, settings) as address:
            job = pool.submit(post_encode, address, wav(speechlike(3000)))
            wait_for(lambda: slow.seen == 1)
            threading.Timer(0.5, slow.gate.set).start()
        assert job.result().status_code == 200


@pytest.mark.parametrize("format", list(MEDIA))
@pytest.mark.parametrize("rate", [16000, 22050])
def test_streamed_sound_is_the_whole_sound(format: str, rate: int) -> None:
    wave = speechlike(rate, sample_rate=rate)
    writer = Writer(format, rate)
    streamed = b"".join(
        [*(writer.write(wave[start : start + 4000]) for start in range(0, len(wave), 4000)), writer.end()]
    )
    whole = encode(wave, rate, format)
    if format == "wav":
        assert streamed[:44] == wav_header(rate, None)
        assert streamed[44:] == whole[44:]
    elif format == "pcm":
        assert streamed == whole == encode(wave, rate, "wav")[44:]
    else:
        assert abs(len(streamed) - len(whole)) < 0.1 * len(whole)
        decoded, actual = soundfile.read(io.BytesIO(whole))
        assert abs(len(decoded) / actual - 1) < 0.1
    if format == "opus":
        again, _ = soundfile.read(io.BytesIO(streamed))
        assert len(again) == len(decoded)


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Served]]:
    from s3gen_model import build

    voices = tmp_path_factory.mktemp("voices")
    for name in ("anna", "bert"):
        soundfile.write(voices / f"{name}.wav", speechlike(40000, seed=len(name)), 16000)
    settings = Settings(voices=voices, max_streams=1)
    served = Served("speaker", build("chatterbox-turbo"), Batcher(settings), "s3gen")
    with serving({"speaker": served}, settings) as address:
        yield address, served


def s3_tokens(count: int) -> dict[str, Any]:
    codes = [[int(code) for code in np.random.default_rng(count).integers(0, 6561, count)]]
    facts = {"model": "speech_tokenizer_v2_25hz", "sample_rate": 16000, "frame_rate": 25.0}
    return facts | {"codebook_sizes": [6561], "num_samples": 640 * count, "codes": codes}


def test_openai_client_speaks_tokens_whole_and_streamed(speaker: tuple[str, Served]) -> None:
    openai = pytest.importorskip("openai")
    address, served = speaker
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["speaker"]
    tokens: Any = s3_tokens(30)
    said: dict[str, Any] = {"model": "speaker", "voice": "anna", "input": tokens, "response_format": "pcm"}
    whole = client.audio.speech.create(**said).content
    with client.audio.speech.with_streaming_response.create(**said, extra_body={"stream": True}) as reply:
        pieces = list(reply.iter_bytes())
    assert len(pieces) > 1
    expected = served.model.speak(TokensBody(**tokens).tokens(), served.voices["anna", True][1])[0]
    assert len(b"".join(pieces)) == len(whole) == 2 * len(expected)
    decoded = np.frombuffer(whole, "<i2") / 32767
    np.testing.assert_allclose(decoded, expected.clip(-1, 1), atol=1e-4)
    refused(openai.NotFoundError, "anna", client.audio.speech.create, **said | {"voice": "nobody"})
    with pytest.raises(openai.BadRequestError, match="cannot do this"):
        client.audio.speech.create(**said | {"input": "a text"})
    refused(openai.BadRequestError, "speed", client.audio.speech.create, **said, speed=2.0)
    assert client.audio.speech.create(**said | {"response_format": "opus"}).content[:4] == b"OggS"


@pytest.fixture(scope="module")
def cosyvoice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Path]]:
    """A server of CosyVoice 2's folder as downloaded, reduced, beside a model of other tokens; folder and recording."""
    from test_say import published_folder

    root = tmp_path_factory.mktemp("cosyvoice")
    folder = published_folder(root / "CosyVoice", "cosyvoice2")
    (root / "voices").mkdir()
    (root / "voices/anna.txt").write_text("One.")
    soundfile.write(root / "voices/anna.wav", speechlike(24000), 16000)
    limits = Settings(voices=root / "voices")
    with serving(load_models([f"tts={folder}", "mini"], limits), limits) as address:
        yield address, folder, root / "voices/anna.wav"


def test_cosyvoices_folder_says_texts_in_a_voice_whole_and_streamed(
    cosyvoice: tuple[str, Path, Path],
) -> None:
    address, folder, anna = cosyvoice
    body = SAID | {"model": "tts", "input": "Hi.", "seed": 3}
    whole = httpx.post(f"{address}/v1/audio/speech", json=body, timeout=60)
    assert whole.status_code == 200, whole.text
    generator = torch.Generator().manual_seed(3)
    (expected,) = vokens.load_voice(folder).say("Hi.", anna, voice_text="One.", generator=generator)
    np.testing.assert_allclose(np.frombuffer(whole.content, "<i2") / 32767, expected.clip(-1, 1), atol=1e-3)
    streamed = httpx.post(f"{address}/v1/audio/speech", json=body | {"stream": True}, timeout=60)
    assert len(streamed.content) == len(whole.content)
    card = httpx.get(f"{address}/v1/models/tts").json()
    assert card["can"] == ["encode", "say", "speak"]
    assert (card["frame_rate"], card["codebook_sizes"]) == (25.0, [6561])
    assert "needs a voice" in failed(say(address, model="tts", voice=None), 400)


def test_cosyvoices_folder_takes_and_gives_tokens(cosyvoice: tuple[str, Path, Path]) -> None:
    address, folder, anna = cosyvoice
    tokens = post_encode(address, anna.read_bytes(), model="tts").json()
    s3gen = vokens.load(folder)
    assert tokens["codes"] == s3gen.tokenize(anna).codes[0].tolist()
    reply = say(address, model="tts", input=tokens)
    assert reply.status_code == 200, reply.text
    (expected,) = s3gen.speak(s3gen.tokenize(anna), s3gen.voice(anna))
    np.testing.assert_allclose(np.frombuffer(reply.content, "<i2") / 32767, expected.clip(-1, 1), atol=1e-3)
    other = tokens | {"model": "speech_tokenizer_v3_25hz", "fingerprint": ""}
    assert "speech_tokenizer_v2_25hz" in failed(say(address, model="tts", input=other), 400)
    assert failed(httpx.post(f"{address}/v1/tokens/decode", json=tokens), 404)


def test_a_language_model_alone_is_refused_in_one_line(
    cosyvoice: tuple[str, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("serve", "web"):
        assert main([verb, "--models", str(cosyvoice[1] / "llm.pt"), "--port", "0"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "give CosyVoice's folder" in line


def test_a_streams_client_that_hangs_up_frees_its_place(speaker: tuple[str, Served]) -> None:
    address, _ = speaker
    body = {"model": "speaker", "voice": "bert", "input": s3_tokens(2000), "stream": True}
    body["response_format"] = "pcm"
    with httpx.stream("POST", f"{address}/v1/audio/speech", json=body, timeout=60) as reply:
        sound = reply.iter_raw()  # kept: it hangs up when it goes
        assert next(sound)
        assert metric(address, "vokens_model_streams") == 1
        busy = httpx.post(f"{address}/v1/audio/speech", json=body, timeout=60)
        assert busy.status_code == 503
    wait_for(lambda: metric(address, "vokens_model_streams") == 0, 30)
    assert httpx.post(f"{address}/v1/audio/speech", json=body | {"input": s3_tokens(20)}).status_code == 200


def test_texts_are_said_in_a_voice_whole_and_streamed(tmp_path: Path) -> None:
    from speakers import tiny_speech

    soundfile.write(tmp_path / "anna.wav", speechlike(32000), 16000)
    limits = Settings(voices=tmp_path, max_text=200)
    model = tiny_speech()
    with serving({"tts": Served("tts", model, Batcher(limits), "learnable")}, limits) as address:
        body = {"model": "tts", "input": "Good morning. It is 9 o'clock.", "voice": "anna", "seed": 3}
        body["response_format"] = "pcm"
        with ThreadPoolExecutor(3) as pool:
            replies = list(pool.map(lambda _: httpx.post(f"{address}/v1/audio/speech", json=body), range(3)))
        generator = torch.Generator().manual_seed(3)
        (expected,) = model.say(body["input"], tmp_path / "anna.wav", generator=generator)
        for reply in replies:  # in one batch
            decoded = np.frombuffer(reply.content, "<i2") / 32767
            np.testing.assert_allclose(decoded, expected.clip(-1, 1), atol=1e-3)
        streamed = httpx.post(f"{address}/v1/audio/speech", json=body | {"stream": True})
        assert len(streamed.content) > 0
        for change, status in (({"input": " . "}, 400), ({"input": "a" * 201}, 413), ({"speed": 2}, 400)):
            assert httpx.post(f"{address}/v1/audio/speech", json=body | change).status_code == status


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Served, Path]]:
    """A server of a tiny model that speaks texts and of mini, its model and its folder of voices."""
    from speakers import tiny_speech

    voices = tmp_path_factory.mktemp("talkers")
    soundfile.write(voices / "anna.wav", speechlike(64000), 16000)
    limits = Settings(voices=voices, max_text=100_000, max_upload=400_000, cors=("http://localhost:3000",))
    served = Served("org/tts", tiny_speech(), Batcher(limits), "learnable")
    with serving({"org/tts": served, **load_models(["mini"], limits)}, limits) as address:
        yield address, served, voices


SAID = {"model": "org/tts", "voice": "anna", "input": "Good morning to you all.", "response_format": "pcm"}


def say(address: str, **change: Any) -> Any:
    return httpx.post(f"{address}/v1/audio/speech", json=SAID | change, timeout=60)


def failed(reply: Any, status: int) -> str:
    """The message of an error, which is of OpenAI's shape and says nothing of Python."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    for word in ("Traceback", "pip install", "bytes is", "vokens.load", "numpy", "(B, K, T)"):
        assert word not in error["message"]
    return error["message"]


SPEECH, JSON = "/v1/audio/speech", {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "words"),
    [
        ("GET", "/nothing", {}, 404, "/docs"),
        ("GET", "/v1/models/none", {}, 404, "the models are org/tts, mini"),
        ("POST", "/health", {}, 405, "GET"),
        ("DELETE", "/v1/models", {}, 405, "GET"),
        ("GET", SPEECH, {}, 405, "POST"),
        ("POST", SPEECH, {"content": b"{", "headers": JSON}, 400, "not JSON"),
        ("POST", SPEECH, {"content": b"\xff\x00", "headers": JSON}, 400, ""),
        ("POST", SPEECH, {"content": b"[" * 200_000, "headers": JSON}, 400, ""),
        ("POST", SPEECH, {"content": b'{"seed": ' + b"9" * 5000 + b"}", "headers": JSON}, 400, ""),
        ("POST", SPEECH, {"content": b"Hello"}, 400, "application/json"),
        ("POST", SPEECH, {"json": [1]}, 400, "JSON object"),
        ("POST", SPEECH, {"json": SAID | {"input": ["a"]}}, 400, "input"),
        ("POST", SPEECH, {"json": SAID | {"response_format": "aac"}}, 400, "aac"),
        ("POST", SPEECH, {"json": SAID | {"stream_format": "wav"}}, 400, "sse"),
        ("POST", SPEECH, {"json": SAID | {"voice": {"id": []}}}, 400, "voice"),
        ("POST", SPEECH, {"json": SAID | {"voice": "bert"}}, 404, "the only voice is anna"),
        ("POST", SPEECH, {"json": SAID | {"voice": None}}, 400, "the only voice is anna"),
        ("POST", SPEECH, {"json": SAID | {"model": "mini"}}, 400, "org/tts can"),
        ("POST", SPEECH, {"json": SAID | {"input": "a" * 100_001}}, 413, "100000"),
        ("POST", SPEECH, {"json": SAID | {"input": "a" * 400_000}}, 413, "400000 bytes"),
        ("POST", "/v1/tokens/encode", {"content": b"x"}, 400, "file"),
        ("POST", "/v1/tokens/encode", {"files": {"file": b"x"}, "data": {"model": "mini"}}, 400, "'file'"),
        (
            "POST",
            "/v1/tokens/encode",
            {"files": {"file": b"\x1aE\xdf\xa3" * 9}, "data": {"model": "mini"}},
            400,
            "wav",
        ),
        ("POST", "/v1/tokens/decode", {"content": b"x"}, 400, "not JSON"),
        ("POST", "/v1/tokens/decode?response_format=x", {"content": b"x"}, 400, "wav"),
    ],
)
def test_every_refusal_is_json(
    talker: tuple[str, Served, Path], method: str, path: str, sent: dict[str, Any], status: int, words: str
) -> None:
    assert words in failed(httpx.request(method, talker[0] + path, **sent), status)


def test_a_fault_of_the_server_is_json_too_and_stops_nothing(
    talker: tuple[str, Served, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, served, voices = talker

    def broken(*given: Any, **named: Any) -> Any:
        raise ZeroDivisionError("secret")

    with monkeypatch.context() as patched:
        patched.setattr(served.model, "say", broken)
        patched.setattr(served.model, "say_stream", broken)
        for change in ({}, {"stream": True}):
            reply = httpx.post(
                f"{address}{SPEECH}", json=SAID | change, headers={"Origin": "http://localhost:3000"}
            )
            assert "secret" not in failed(reply, 500)
            assert reply.headers["access-control-allow-origin"] == "http://localhost:3000"
    (voices / "torn.wav").write_bytes(b"RIFF")
    assert "the voice 'torn' cannot be used" in failed(say(address, voice="torn"), 500)
    (voices / "torn.wav").unlink()
    assert say(address).status_code == 200


def test_health_answers_while_a_long_text_is_prepared(
    talker: tuple[str, Served, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, served, _ = talker
    monkeypatch.setattr(
        served.model, "synthesize", lambda pieces, *_: [np.zeros(8, np.float32)] * len(pieces)
    )  # what is tried is the text's way, not the model's
    kinds = ("7", "3,4", "a", "$3.50 at 9 o'clock. ", ".,;", "-1/2")
    texts = ("7" * 9990, " ".join((kind * 17_000)[:16_600] for kind in kinds))
    with ThreadPoolExecutor(1) as pool:
        for text in texts:
            job = pool.submit(say, address, input=text)
            while not job.done():
                start = time.monotonic()
                assert httpx.get(f"{address}/health", timeout=10).status_code == 200
                assert time.monotonic() - start < 2
                time.sleep(0.05)
            assert job.result().status_code == 200, job.result().text


def test_a_voice_that_is_added_or_replaced_is_heard_at_once(talker: tuple[str, Served, Path]) -> None:
    address, _, voices = talker
    assert say(address, voice="cleo").status_code == 404
    soundfile.write(voices / "cleo.wav", speechlike(64000, seed=1), 16000)
    names = ["anna", "cleo"]
    assert httpx.get(f"{address}/v1/voices").json()["data"] == names
    listed = httpx.get(f"{address}/v1/audio/voices").json()["voices"]
    assert [(voice["id"], voice["name"]) for voice in listed] == [(name, name) for name in names]
    first, again = say(address, voice="cleo").content, say(address, voice={"id": "cleo"}).content
    assert first == again
    soundfile.write(voices / "cleo.wav", speechlike(64000, seed=2), 16000)  # as many bytes as before
    assert say(address, voice="cleo").content != first
    (voices / "cleo.wav").unlink()
    assert say(address, voice="cleo").status_code == 404


def test_openai_client_hears_events(talker: tuple[str, Served, Path]) -> None:
    openai = pytest.importorskip("openai")
    address, served, _ = talker
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    assert client.models.retrieve("org/tts").id == "org/tts"
    whole = say(address, stream=True).content
    with client.audio.speech.with_streaming_response.create(**SAID, stream_format="sse") as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [event["type"] for event in events[:-1]] == ["speech.audio.delta"] * (len(events) - 1)
    assert b"".join(base64.b64decode(event["audio"]) for event in events[:-1]) == whole
    usage = events[-1]["usage"]
    assert events[-1]["type"] == "speech.audio.done"
    assert usage["input_tokens"] == len(SAID["input"])
    assert usage["output_tokens"] == round(25 * len(whole) / 2 / served.sample_rate)
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert client.audio.speech.create(**SAID, instructions="cheerfully").content == say(address).content


def test_nulls_are_absent_and_ignored_fields_are_named(talker: tuple[str, Served, Path]) -> None:
    address, _, _ = talker
    empty = dict.fromkeys(("seed", "speed", "stream", "stream_format", "instructions"))
    reply = say(address, **empty)
    assert reply.content == say(address).content
    assert "x-ignored" not in reply.headers
    assert say(address, instructions="cheerfully", lang="x").headers["x-ignored"] == "instructions, lang"
    assert "input" in failed(say(address, input=None), 400)
    body = post_encode(address, wav(speechlike(4000))).json() | {"fingerprint": None, "global_vector": None}
    assert httpx.post(f"{address}/v1/tokens/decode", json=body).status_code == 200


def test_pages_of_allowed_origins_alone_may_ask(talker: tuple[str, Served, Path], address: str) -> None:
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-own",
    }
    for place, origin, status in (
        (talker[0], "http://localhost:3000", 200),
        (talker[0], "http://evil.example", 400),
        (address, "http://localhost:3000", 405),  # none by default
    ):
        reply = httpx.options(f"{place}{SPEECH}", headers=asked | {"Origin": origin})
        assert reply.status_code == status
        assert (reply.headers.get("access-control-allow-origin") == origin) == (status == 200)
        if status >= 400:
            failed(reply, status)
    for wrong in ("localhost:3000", "http://localhost:3000/page", ""):
        refused(ConfigError, "origin", Settings(cors=(wrong,)).check)


def test_a_model_that_says_nothing_is_an_error(talker: tuple[str, Served, Path]) -> None:
    for change in (
        {},
        {"stream": True},
        {"stream_format": "sse"},
    ):  # the tiny model ends at once on two letters
        assert "another seed, or a longer text" in failed(say(talker[0], input="Hi", **change), 400)


@pytest.mark.parametrize("format", list(MEDIA))
def test_no_samples_are_a_valid_file(talker: tuple[str, Served, Path], format: str) -> None:
    tokens = {"model": "mini", "sample_rate": 16000, "frame_rate": 50.0, "codebook_sizes": [1024]}
    tokens |= {"num_samples": 0, "codes": [[1]]}
    reply = httpx.post(f"{talker[0]}/v1/tokens/decode?response_format={format}", json=tokens)
    assert reply.status_code == 200
    streamed = say(talker[0], model="mini", input=tokens, response_format=format, stream=True)
    for content in (reply.content, streamed.content):
        if format == "pcm":
            assert content == b""
        else:
            if format == "flac" and content is streamed.content:  # libsndfile reads none of unknown length
                content = content[:21] + bytes([content[21] & 0xF0, 0, 0, 0, 1]) + content[26:]
            decoded, _ = soundfile.read(io.BytesIO(content))
            assert len(decoded) <= 1152  # a frame of mp3
            assert np.abs(decoded).max(initial=0) < 1e-6


def test_head_is_answered_where_get_is(talker: tuple[str, Served, Path]) -> None:
    for path in ("/health", "/v1/models", "/docs"):
        reply = httpx.head(talker[0] + path)
        assert reply.status_code == 200
        assert reply.content == b""


def test_the_docs_page_lists_every_request_and_loads_nothing(talker: tuple[str, Served, Path]) -> None:
    page = httpx.get(f"{talker[0]}/docs").text
    for path, methods in httpx.get(f"{talker[0]}/openapi.json").json()["paths"].items():
        for method in methods:
            assert f"<b>{method.upper()}</b> {path}<" in page
    assert "stream_format" in page
    assert "//" not in page.replace("<!doctype", "")  # no address of another server


@pytest.mark.filterwarnings("ignore")
def test_fuzzed_with_its_own_openapi_page(address: str) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    count = 0
    for actual in schema.get_all_operations():
        operation = actual.ok()

        count += 1

        @settings(FUZZ)
        @given(case=operation.as_strategy())
        def attack(case: Any) -> None:
            reply = case.call()
            assert reply.status_code < 500, reply.text  # 503 would be a full queue: there is one client
            assert reply.status_code < 400 or "message" in reply.json()["error"]

        attack()
    assert count >= 7


def test_settings_are_checked(tmp_path: Path) -> None:
    refused(ConfigError, "max_queue", Settings(max_queue=0).check)
    refused(ConfigError, "voices", Settings(voices=tmp_path / "none").check)
    refused(ConfigError, "two models", lambda: load_models(["mini", "mini"], Settings()))
    for name, value in (("max_seconds", float("nan")), ("batch_seconds", 0.0), ("batch_wait", -1.0)):
        refused(ConfigError, name, Settings(**{name: value}).check)


@pytest.mark.parametrize("verb", ["serve", "web"])
def test_the_port_is_had_before_models_are_loaded(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    if verb == "web":
        pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = str(taken.getsockname()[1])
        asked = (["--port", "99999"], ["--port", "-1"], ["--port", busy], ["--host", "203.0.113.7"])
        for wrong in asked:
            assert main([verb, "--models", "/no/such/model", *wrong]) == 2  # not the model's error
            out, error = capsys.readouterr()
            assert out == ""
            assert error.count("\n") == 1
            assert "--port" in error
    asked = (["--device", "abacus"], ["--threads", "-1"], ["--voices", "nowhere"], ["--max-queue", "0"])
    for wrong in asked[: 4 if verb == "serve" else 1]:
        assert main([verb, "--models", "/no/such/model", *wrong]) == 2
        error = capsys.readouterr().err
        assert wrong[1] in error
        assert error.count("\n") == 1


def test_the_port_that_is_printed_answers() -> None:
    command = [sys.executable, "-m", "vokens", "serve", "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"http://127.0.0.1:\d+", line)
        assert address, line
        assert httpx.get(f"{address[0]}/health").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
