"""The server: tokens over HTTP are those of the library, requests share batches, limits hold."""

import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from conftest import refused, speechlike
from hypothesis import HealthCheck, given, settings

import vokens
from vokens.cli import main
from vokens.errors import ConfigError
from vokens.serve.settings import Settings

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")

from serving import encode, metric, serving, wait_for, wav  # noqa: E402 (after the packages that it needs)

from vokens.serve.app import create_app  # noqa: E402
from vokens.serve.served import load_models  # noqa: E402

DECODE, VOK = "/v1/tokens/decode", {"content-type": "application/octet-stream"}
FUZZ = settings(
    max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def client():
    limits = Settings(max_upload=2_000_000, max_seconds=20, batch_wait=0.05)
    with serving(create_app(load_models(["mini"], limits), limits)) as client:
        yield client


@pytest.fixture(scope="module")
def mini():
    return vokens.load("mini")


def codes_of(mini, wave, **options):
    return mini.encode(wave, 16000, **options).codes[0].tolist()


def test_tokens_and_sound_are_those_of_the_library(client, mini):
    wave = speechlike(12345)
    reply = encode(client, wav(wave))
    assert reply.status_code == 200, reply.text
    assert reply.json()["codes"] == codes_of(mini, wave)
    decoded, rate = soundfile.read(io.BytesIO(client.post(DECODE, content=reply.content).content))
    assert (len(decoded), rate) == (12345, 16000)
    np.testing.assert_allclose(decoded, mini.decode(mini.encode(wave, 16000))[0].clip(-1, 1), atol=2 / 32768)


def test_vok_files_go_in_and_out(client, mini, tmp_path):
    wave = speechlike(9000)
    reply = encode(client, wav(wave), response_format="vok", num_codebooks="3")
    (tmp_path / "x.vok").write_bytes(reply.content)
    tokens = vokens.Tokens.load(tmp_path / "x.vok")
    assert tokens.codes[0].tolist() == codes_of(mini, wave, num_codebooks=3)
    sound = client.post(f"{DECODE}?response_format=pcm", content=reply.content, headers=VOK)
    assert len(sound.content) == 2 * 9000
    broken = client.post(DECODE, content=reply.content[:-5], headers=VOK)
    assert broken.status_code == 400
    assert "/tmp" not in broken.text


def test_requests_share_batches_and_change_nothing(client, mini):
    waves = [speechlike(4000 + 700 * i, seed=i) for i in range(12)]
    before = metric(client, "vokens_model_batches")
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda wave: encode(client, wav(wave)), waves))
    for wave, reply in zip(waves, replies, strict=True):
        assert reply.json()["codes"] == codes_of(mini, wave)
    assert metric(client, "vokens_model_batches") - before < 12


def test_one_bad_item_does_not_spoil_the_batch(client):
    good = encode(client, wav(speechlike(6000))).json()
    bodies = good, good | {"fingerprint": "0" * 16}, good
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda body: client.post(DECODE, json=body), bodies))
    assert [reply.status_code for reply in replies] == [200, 400, 200]


def test_limits_on_uploads(client):
    assert encode(client, b"").status_code == 400
    assert encode(client, b"0" * 2_100_000).status_code == 413
    long = io.BytesIO()
    soundfile.write(long, np.zeros(30 * 16000), 16000, format="FLAC")
    reply = encode(client, long.getvalue())  # a small file of many seconds
    assert reply.status_code == 413
    assert "20 s" in reply.json()["error"]["message"]
    parts = (b"0" * 65536 for _ in range(40))  # no content-length: counted while it is read
    chunked = client.post(DECODE, content=parts)
    assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "too_large")


def test_unknown_routes_and_keys():
    limits = Settings(api_key="secret")
    with serving(create_app(load_models(["mini"], limits), limits)) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/nothing").json()["error"]["type"] == "invalid_request_error"
        assert client.get("/v1/models").status_code == 401
        reply = client.get("/v1/models", headers={"Authorization": "Bearer secret"})
        assert reply.json()["data"][0]["id"] == "mini"
        assert client.post("/v1/models").status_code in (401, 405)


class Slow:
    """Stands for a model whose passes take long: the real one, behind a gate."""

    def __init__(self, limits):
        self.gate, self.seen = threading.Event(), 0
        self.models = load_models(["mini"], limits)
        self.app = create_app(self.models, limits)
        codec = self.models["mini"].model
        inner = codec.encode

        def encode(*given, **named):
            self.seen += len(given[0])
            self.gate.wait(10)
            return inner(*given, **named)

        codec.encode = encode


def test_a_full_queue_says_so_and_a_client_that_hangs_up_frees_its_place():
    slow, content = Slow(Settings(max_queue=2, max_batch=1)), wav(speechlike(3000))
    with serving(slow.app) as client, ThreadPoolExecutor(8) as pool:

        def post(patience):
            try:
                return encode(client, content, timeout=patience).status_code
            except httpx.TimeoutException:
                return 0

        first = pool.submit(post, 20)
        wait_for(lambda: slow.seen == 1)
        leaving = [pool.submit(post, 1.0) for _ in range(2)]
        wait_for(lambda: metric(client, "vokens_model_waiting") == 2)
        busy = encode(client, content)
        assert busy.status_code == 503
        assert busy.headers["retry-after"]
        assert [job.result() for job in leaving] == [0, 0]  # they hang up
        time.sleep(0.1)
        staying = pool.submit(post, 20)  # and this one gets a place
        time.sleep(0.3)
        slow.gate.set()
        assert (first.result(), staying.result()) == (200, 200)
        assert slow.seen == 2  # those that left cost nothing


def test_requests_in_progress_end_before_the_server_does():
    slow = Slow(Settings())
    with ThreadPoolExecutor(1) as pool:
        with serving(slow.app) as client:
            job = pool.submit(encode, client, wav(speechlike(3000)))
            wait_for(lambda: slow.seen == 1)
            threading.Timer(0.5, slow.gate.set).start()
        assert job.result().status_code == 200


@pytest.mark.filterwarnings("ignore")
def test_fuzzed_with_its_own_openapi_page(client):
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")
    operations = [actual.ok() for actual in schema.get_all_operations()]
    assert len(operations) >= 7
    for operation in operations:

        @settings(FUZZ)
        @given(case=operation.as_strategy())
        def attack(case):
            reply = case.call()
            assert reply.status_code < 500, reply.text  # 503 would be a full queue: there is one client
            assert reply.status_code < 400 or "message" in reply.json()["error"]

        attack()


def test_settings_are_checked(tmp_path):
    refused(ConfigError, "max_queue", Settings(max_queue=0).check)
    refused(ConfigError, "voices", Settings(voices=tmp_path / "none").check)
    refused(ConfigError, "two models", lambda: load_models(["mini", "mini"], Settings()))
    for name, value in (("max_seconds", float("nan")), ("batch_seconds", 0.0), ("batch_wait", -1.0)):
        refused(ConfigError, name, Settings(**{name: value}).check)
    for wrong in ("localhost:3000", "http://localhost:3000/page", ""):
        refused(ConfigError, "origin", Settings(cors=(wrong,)).check)


@pytest.mark.parametrize("verb", ["serve", "web"])
def test_what_is_wrong_is_said_before_models_are_loaded(verb, capsys):
    if verb == "web":
        pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = str(taken.getsockname()[1])
        ports = [(["--port", port], "--port") for port in ("99999", "-1", busy)]
        asked = [*ports, (["--host", "203.0.113.7"], "--port"), (["--device", "abacus"], "abacus")]
        asked += [(["--port", "0", "--models", name], name) for name in ("x=", "=mini")]
        if verb == "web":
            asked += [(["--max-seconds", "nan"], "nan")]
        else:
            limits = ("voices", "nowhere"), ("max-queue", "0"), ("threads", "-1")
            asked += [([f"--{name}", value], value) for name, value in limits]
        for wrong, said in asked:
            assert main([verb, "--models", "/no/such/model", *wrong]) == 2  # not the model's error
            out, error = capsys.readouterr()
            assert out == ""
            assert error.count("\n") == 1
            assert said in error


def test_the_port_that_is_printed_answers():
    command = [sys.executable, "-m", "vokens", "serve", "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"http://127.0.0.1:\d+", line)
        assert address, line
        assert httpx.get(f"{address[0]}/health").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
