"""A real server in a thread, and requests to it, which tests of the server and of the page share."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import soundfile
import uvicorn


@contextmanager
def serving(app: Any) -> Iterator[httpx.Client]:
    """A client of an application that runs in a thread; it is closed after the server has ended."""
    config = uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=10)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    alone = httpx.Limits(max_keepalive_connections=0)  # a kept one may be closed while it is used again
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=alone) as client:
        yield client
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


def wav(wave: np.ndarray, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def encode(client: httpx.Client, content: bytes, timeout: float = 60, **fields: str) -> httpx.Response:
    """The reply to a recording, for mini or another `model`."""
    files, data = {"file": ("x", content)}, {"model": "mini"} | fields
    return client.post("/v1/tokens/encode", files=files, data=data, timeout=timeout)


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


def wait_for(condition: Callable[[], Any], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
