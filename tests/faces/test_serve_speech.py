"""The server's speech: that of the library, whole and streamed, for OpenAI's clients; every refusal is JSON."""

import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from conftest import refused, speechlike

import vokens
from vokens.cli import main
from vokens.models.speaking import generator_of
from vokens.serve.settings import Settings
from vokens.serve.sound import MEDIA, Writer, encode, wav_header

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from s3gen_model import build  # noqa: E402
from serving import encode as post_encode  # noqa: E402 (after the packages that it needs)
from serving import metric, serving, wait_for, wav  # noqa: E402
from speakers import published_folder, tiny_speech  # noqa: E402

from vokens.serve.app import create_app  # noqa: E402
from vokens.serve.batcher import Batcher  # noqa: E402
from vokens.serve.schema import TokensBody  # noqa: E402
from vokens.serve.served import Served, load_models  # noqa: E402

SAID = {"model": "org/tts", "voice": "anna", "input": "Good morning to you all.", "response_format": "pcm"}
SPEECH, JSON = "/v1/audio/speech", {"content-type": "application/json"}
ENCODE, DECODE = "/v1/tokens/encode", "/v1/tokens/decode"
ORIGIN = {"Origin": "http://localhost:3000"}
TOKENS = {"model": "mini", "sample_rate": 16000, "frame_rate": 50.0, "codebook_sizes": [1024]}
TOKENS |= {"num_samples": 640, "codes": [[1, 2]]}


def say(client, **change):
    return client.post(SPEECH, json=SAID | change)


def is_pcm(reply, expected, atol=1e-3):
    """Assert that a reply is a wave (T,), in 16 bits."""
    assert reply.status_code == 200, reply.text
    np.testing.assert_allclose(np.frombuffer(reply.content, "<i2") / 32767, expected.clip(-1, 1), atol=atol)


def failed(reply, status):
    """The message of an error, which is of OpenAI's shape and says nothing of Python."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    for word in ("Traceback", "pip install", "bytes is", "vokens.load", "numpy", "(B, K, T)"):
        assert word not in error["message"]
    return error["message"]


def openai_client(client):
    openai = pytest.importorskip("openai")
    return openai, openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("format", list(MEDIA))
@pytest.mark.parametrize("rate", [16000, 22050])
def test_streamed_sound_is_the_whole_sound(format, rate):
    wave = speechlike(rate, sample_rate=rate)
    writer = Writer(format, rate)
    pieces = [writer.write(wave[start : start + 4000]) for start in range(0, len(wave), 4000)]
    streamed = b"".join([*pieces, writer.end()])
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
def speaker(tmp_path_factory):
    """A client of a server of an S3Gen with two voices, and its model."""
    voices = tmp_path_factory.mktemp("voices")
    for name in ("anna", "bert"):
        soundfile.write(voices / f"{name}.wav", speechlike(40000, seed=len(name)), 16000)
    limits = Settings(voices=voices, max_streams=1)
    served = Served("speaker", build("chatterbox-turbo"), Batcher(limits))
    with serving(create_app({"speaker": served}, limits)) as client:
        yield client, served


def s3_tokens(count):
    codes = [[int(code) for code in np.random.default_rng(count).integers(0, 6561, count)]]
    facts = {"model": "speech_tokenizer_v2_25hz", "sample_rate": 16000, "frame_rate": 25.0}
    return facts | {"codebook_sizes": [6561], "num_samples": 640 * count, "codes": codes}


def test_openai_client_speaks_tokens_whole_and_streamed(speaker):
    client, served = speaker
    openai, api = openai_client(client)
    assert [model.id for model in api.models.list()] == ["speaker"]
    tokens = s3_tokens(30)
    said = {"model": "speaker", "voice": "anna", "input": tokens, "response_format": "pcm"}
    whole = api.audio.speech.create(**said).content
    with api.audio.speech.with_streaming_response.create(**said, extra_body={"stream": True}) as reply:
        pieces = list(reply.iter_bytes())
    assert len(pieces) > 1
    expected = served.model.speak(TokensBody(**tokens).tokens(), served.voices["anna", True][1])[0]
    assert len(b"".join(pieces)) == len(whole) == 2 * len(expected)
    np.testing.assert_allclose(np.frombuffer(whole, "<i2") / 32767, expected.clip(-1, 1), atol=1e-4)
    create = api.audio.speech.create
    refused(openai.NotFoundError, "anna", create, **said | {"voice": "nobody"})
    refused(openai.BadRequestError, "cannot do this", create, **said | {"input": "a text"})
    refused(openai.BadRequestError, "speed", create, **said, speed=2.0)
    assert create(**said | {"response_format": "opus"}).content[:4] == b"OggS"


def test_a_streams_client_that_hangs_up_frees_its_place(speaker):
    client, _ = speaker
    body = {"model": "speaker", "voice": "bert", "response_format": "pcm"}
    body |= {"input": s3_tokens(2000), "stream": True}
    with client.stream("POST", SPEECH, json=body) as reply:
        sound = reply.iter_raw()  # kept: it hangs up when it goes
        assert next(sound)
        assert metric(client, "vokens_model_streams") == 1
        assert say(client, **body).status_code == 503
    wait_for(lambda: metric(client, "vokens_model_streams") == 0, 30)
    assert say(client, **body | {"input": s3_tokens(20)}).status_code == 200


@pytest.fixture(scope="module")
def cosyvoice(tmp_path_factory):
    """A server of CosyVoice 2's folder as downloaded, reduced, beside a model of other tokens; folder and recording."""
    root = tmp_path_factory.mktemp("cosyvoice")
    folder = published_folder(root / "CosyVoice", "cosyvoice2")
    (root / "voices").mkdir()
    (root / "voices/anna.txt").write_text("One.")
    soundfile.write(root / "voices/anna.wav", speechlike(24000), 16000)
    limits = Settings(voices=root / "voices")
    with serving(create_app(load_models([f"tts={folder}", "mini"], limits), limits)) as client:
        yield client, folder, root / "voices/anna.wav"


def test_cosyvoices_folder_says_texts_in_a_voice_whole_and_streamed(cosyvoice):
    client, folder, anna = cosyvoice
    said = {"model": "tts", "input": "Hi.", "seed": 3}
    whole = say(client, **said)
    (expected,) = vokens.load_voice(folder).say("Hi.", anna, voice_text="One.", generator=generator_of(3))
    is_pcm(whole, expected)
    assert len(say(client, **said, stream=True).content) == len(whole.content)
    card = client.get("/v1/models/tts").json()
    assert card["can"] == ["encode", "say", "speak"]
    assert (card["frame_rate"], card["codebook_sizes"]) == (25.0, [6561])
    assert "needs a voice" in failed(say(client, model="tts", voice=None), 400)


def test_cosyvoices_folder_takes_and_gives_tokens(cosyvoice):
    client, folder, anna = cosyvoice
    tokens = post_encode(client, anna.read_bytes(), model="tts").json()
    s3gen = vokens.load(folder)
    assert tokens["codes"] == s3gen.tokenize(anna).codes[0].tolist()
    (expected,) = s3gen.speak(s3gen.tokenize(anna), s3gen.voice(anna))
    is_pcm(say(client, model="tts", input=tokens), expected)
    other = tokens | {"model": "speech_tokenizer_v3_25hz", "fingerprint": ""}
    assert "speech_tokenizer_v2_25hz" in failed(say(client, model="tts", input=other), 400)
    assert failed(client.post(DECODE, json=tokens), 404)


def test_a_language_model_alone_is_refused_in_one_line(cosyvoice, capsys):
    for verb in ("serve", "web"):
        assert main([verb, "--models", str(cosyvoice[1] / "llm.pt"), "--port", "0"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "give CosyVoice's folder" in line


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A client of a server of a tiny model that speaks texts and of mini, its model and its folder of voices."""
    voices = tmp_path_factory.mktemp("talkers")
    soundfile.write(voices / "anna.wav", speechlike(64000), 16000)
    limits = Settings(voices=voices, max_text=100_000, max_upload=400_000, cors=(ORIGIN["Origin"],))
    served = Served("org/tts", tiny_speech(), Batcher(limits))
    with serving(create_app({"org/tts": served, **load_models(["mini"], limits)}, limits)) as client:
        yield client, served, voices


@pytest.fixture
def client(talker):
    return talker[0]


def test_texts_are_said_in_a_voice_whole_and_streamed(talker):
    client, served, voices = talker
    said = {"input": "Good morning. It is 9 o'clock.", "seed": 3}
    with ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda _: say(client, **said), range(3)))
    (expected,) = served.model.say(said["input"], voices / "anna.wav", generator=generator_of(3))
    for reply in replies:  # in one batch
        is_pcm(reply, expected)
    assert len(say(client, **said, stream=True).content) > 0


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
        ("POST", SPEECH, {"json": SAID | {"input": " . "}}, 400, ""),
        ("POST", SPEECH, {"json": SAID | {"speed": 2}}, 400, "speed"),
        ("POST", SPEECH, {"json": SAID | {"response_format": "aac"}}, 400, "aac"),
        ("POST", SPEECH, {"json": SAID | {"stream_format": "wav"}}, 400, "sse"),
        ("POST", SPEECH, {"json": SAID | {"voice": {"id": []}}}, 400, "voice"),
        ("POST", SPEECH, {"json": SAID | {"voice": "bert"}}, 404, "the only voice is anna"),
        ("POST", SPEECH, {"json": SAID | {"voice": None}}, 400, "the only voice is anna"),
        ("POST", SPEECH, {"json": SAID | {"model": "mini"}}, 400, "org/tts can"),
        ("POST", SPEECH, {"json": SAID | {"input": "a" * 100_001}}, 413, "100000"),
        ("POST", SPEECH, {"json": SAID | {"input": "a" * 400_000}}, 413, "400000 bytes"),
        ("POST", ENCODE, {"content": b"x"}, 400, "file"),
        ("POST", ENCODE, {"files": {"file": b"x"}, "data": {"model": "mini"}}, 400, "'file'"),
        ("POST", ENCODE, {"files": {"file": b"\x1aE\xdf\xa3" * 9}, "data": {"model": "mini"}}, 400, "wav"),
        ("POST", DECODE, {"content": b"x"}, 400, "not JSON"),
        ("POST", f"{DECODE}?response_format=x", {"content": b"x"}, 400, "wav"),
        ("POST", DECODE, {"json": TOKENS | {"model": "nobody"}}, 404, "mini"),
        ("POST", DECODE, {"json": TOKENS | {"codes": [[0, 1], [0]]}}, 400, "rows"),
        ("POST", DECODE, {"json": TOKENS | {"codes": [[5000]]}}, 400, "codebook"),
        ("POST", DECODE, {"json": TOKENS | {"codes": [["x"]]}}, 400, "codes"),
        ("POST", DECODE, {"json": TOKENS | {"num_samples": -1}}, 400, "num_samples"),
        ("POST", DECODE, {"json": TOKENS | {"frame_rate": 1e-9}}, 413, "at most"),
    ],
)
def test_every_refusal_is_json(client, method, path, sent, status, words):
    assert words in failed(client.request(method, path, **sent), status)


def test_a_fault_of_the_server_is_json_too_and_stops_nothing(talker, monkeypatch):
    client, served, voices = talker

    def broken(*given, **named):
        raise ZeroDivisionError("secret")

    with monkeypatch.context() as patched:
        for name in ("say", "say_stream"):
            patched.setattr(served.model, name, broken)
        for change in ({}, {"stream": True}):
            reply = client.post(SPEECH, json=SAID | change, headers=ORIGIN)
            assert "secret" not in failed(reply, 500)
            assert reply.headers["access-control-allow-origin"] == ORIGIN["Origin"]
    (voices / "torn.wav").write_bytes(b"RIFF")
    assert "the voice 'torn' cannot be used" in failed(say(client, voice="torn"), 500)
    (voices / "torn.wav").unlink()
    assert say(client).status_code == 200


def test_health_answers_while_a_long_text_is_prepared(talker, monkeypatch):
    client, served, _ = talker
    # What is tried is the text's way, not the model's.
    nothing = np.zeros(8, np.float32)
    monkeypatch.setattr(served.model, "synthesize", lambda pieces, *_: [nothing] * len(pieces))
    kinds = ("7", "3,4", "a", "$3.50 at 9 o'clock. ", ".,;", "-1/2")
    texts = ("7" * 9990, " ".join((kind * 17_000)[:16_600] for kind in kinds))
    with ThreadPoolExecutor(1) as pool:
        for text in texts:
            job = pool.submit(say, client, input=text)
            while not job.done():
                start = time.monotonic()
                assert client.get("/health", timeout=10).status_code == 200
                assert time.monotonic() - start < 2
                time.sleep(0.05)
            assert job.result().status_code == 200, job.result().text


def test_a_voice_that_is_added_or_replaced_is_heard_at_once(talker):
    client, _, voices = talker
    assert say(client, voice="cleo").status_code == 404
    soundfile.write(voices / "cleo.wav", speechlike(64000, seed=1), 16000)
    names = ["anna", "cleo"]
    assert client.get("/v1/voices").json()["data"] == names
    listed = client.get("/v1/audio/voices").json()["voices"]
    assert [(voice["id"], voice["name"]) for voice in listed] == [(name, name) for name in names]
    first, again = say(client, voice="cleo").content, say(client, voice={"id": "cleo"}).content
    assert first == again
    soundfile.write(voices / "cleo.wav", speechlike(64000, seed=2), 16000)  # as many bytes as before
    assert say(client, voice="cleo").content != first
    (voices / "cleo.wav").unlink()
    assert say(client, voice="cleo").status_code == 404


def test_openai_client_hears_events(talker):
    client, served, _ = talker
    _, api = openai_client(client)
    assert api.models.retrieve("org/tts").id == "org/tts"
    whole = say(client, stream=True).content
    with api.audio.speech.with_streaming_response.create(**SAID, stream_format="sse") as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line]
    *deltas, done = (json.loads(line.removeprefix("data: ")) for line in lines)
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in deltas) == whole
    assert done["type"] == "speech.audio.done"
    spoken = round(25 * len(whole) / 2 / served.sample_rate)
    counts = {"input_tokens": len(SAID["input"]), "output_tokens": spoken}
    assert done["usage"] == counts | {"total_tokens": sum(counts.values())}
    assert api.audio.speech.create(**SAID, instructions="cheerfully").content == say(client).content


def test_nulls_are_absent_and_ignored_fields_are_named(client):
    empty = dict.fromkeys(("seed", "speed", "stream", "stream_format", "instructions"))
    reply = say(client, **empty)
    assert reply.content == say(client).content
    assert "x-ignored" not in reply.headers
    assert say(client, instructions="cheerfully", lang="x").headers["x-ignored"] == "instructions, lang"
    assert "input" in failed(say(client, input=None), 400)
    body = post_encode(client, wav(speechlike(4000))).json() | {"fingerprint": None, "global_vector": None}
    assert client.post(DECODE, json=body).status_code == 200


def test_pages_of_allowed_origins_alone_may_ask(client, speaker):
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-own",
    }
    for server, origin, status in (
        (client, ORIGIN["Origin"], 200),
        (client, "http://evil.example", 400),
        (speaker[0], ORIGIN["Origin"], 405),  # none by default
    ):
        reply = server.options(SPEECH, headers=asked | {"Origin": origin})
        assert reply.status_code == status
        assert (reply.headers.get("access-control-allow-origin") == origin) == (status == 200)
        if status >= 400:
            failed(reply, status)


@pytest.mark.parametrize("change", [{}, {"stream": True}, {"stream_format": "sse"}])
def test_a_model_that_says_nothing_is_an_error(client, change):
    """The tiny model ends at once on two letters."""
    assert "another seed, or a longer text" in failed(say(client, input="Hi", **change), 400)


@pytest.mark.parametrize("format", list(MEDIA))
def test_no_samples_are_a_valid_file(client, format):
    tokens = TOKENS | {"num_samples": 0, "codes": [[1]]}
    reply = client.post(f"{DECODE}?response_format={format}", json=tokens)
    assert reply.status_code == 200
    streamed = say(client, model="mini", input=tokens, response_format=format, stream=True)
    for content in (reply.content, streamed.content):
        if format == "pcm":
            assert content == b""
        else:
            if format == "flac" and content is streamed.content:  # libsndfile reads none of unknown length
                content = content[:21] + bytes([content[21] & 0xF0, 0, 0, 0, 1]) + content[26:]
            decoded, _ = soundfile.read(io.BytesIO(content))
            assert len(decoded) <= 1152  # a frame of mp3
            assert np.abs(decoded).max(initial=0) < 1e-6


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/docs"])
def test_head_is_answered_where_get_is(client, path):
    reply = client.head(path)
    assert (reply.status_code, reply.content) == (200, b"")


def test_the_docs_page_lists_every_request_and_loads_nothing(client):
    page = client.get("/docs").text
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            assert f"<b>{method.upper()}</b> {path}<" in page
    assert "stream_format" in page
    assert "//" not in page.replace("<!doctype", "")  # no address of another server
