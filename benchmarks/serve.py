"""How a server holds under load: latency to the first byte, throughput at 1, 4 and 16 clients, memory over a soak.

Starts `vokens serve` as a process of its own on this machine, sends it real recordings to encode and tokens to decode,
and reads its memory from /proc. Nothing but 127.0.0.1 is asked.

python benchmarks/serve.py --seconds 20 --soak 120
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import vokens

SAMPLES = Path(vokens.__file__).parent / "samples"


def rss(process: int) -> float:
    """MB that a process holds in memory."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


async def client(address: str, job: dict[str, Any], end: float, took: list[float], failed: list[int]) -> None:
    """One client: the next request follows the reply to the last."""
    async with httpx.AsyncClient(base_url=address, timeout=120) as http:
        while time.perf_counter() < end:
            start = time.perf_counter()
            async with http.stream("POST", **job) as reply:
                first = 0.0
                async for _ in reply.aiter_raw():
                    first = first or time.perf_counter() - start
            took.append(first)
            if reply.status_code != 200:
                failed.append(reply.status_code)


async def load(
    address: str, job: dict[str, Any], clients: int, seconds: float
) -> tuple[list[float], float, int]:
    """Seconds to each first byte, requests per second, and how many failed."""
    took: list[float] = []
    failed: list[int] = []
    start = time.perf_counter()
    await asyncio.gather(*(client(address, job, start + seconds, took, failed) for _ in range(clients)))
    return took, len(took) / (time.perf_counter() - start), len(failed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument("--soak", type=float, default=60, help="seconds of the soak, 16 clients")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", "--models", options.model, "--port", str(port)]
    server = subprocess.Popen([sys.executable, "-m", "vokens", *words], stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait(address, server)
        recording = (SAMPLES / "english.flac").read_bytes()
        encode = {"url": "/v1/tokens/encode", "files": {"file": ("x.flac", recording)}}
        encode["data"] = {"model": options.model}
        tokens = httpx.post(
            address + encode["url"], files=encode["files"], data=encode["data"]
        ).raise_for_status()
        decode = {"url": "/v1/tokens/decode", "json": tokens.json()}
        seconds = tokens.json()["num_samples"] / tokens.json()["sample_rate"]
        print(
            f"{options.model}, recordings of {seconds:.1f} s, {os.cpu_count()} cores shared with the clients\n"
        )
        print("| request | clients | first byte p50 | p95 | requests/s | x real time | failed |")
        print("|---|---|---|---|---|---|---|")
        for name, job in (("encode", encode), ("decode", decode)):
            for clients in options.clients:
                took, rate, failed = asyncio.run(load(address, job, clients, options.seconds))
                p50, p95 = (1000 * np.percentile(took, q) for q in (50, 95))
                cells = [name, clients, f"{p50:.0f} ms", f"{p95:.0f} ms", f"{rate:.1f}"]
                cells += [f"{rate * seconds:.0f}", failed]
                print(f"| {' | '.join(map(str, cells))} |", flush=True)
        soak(address, server.pid, encode, decode, options.soak, seconds)
    finally:
        server.terminate()
        server.wait(40)


def soak(address: str, process: int, encode: Any, decode: Any, length: float, seconds: float) -> None:
    """Encode and decode by turns from 16 clients; the memory at each tenth of it."""
    held, total = [], 0
    for turn in range(10):
        _, rate, failed = asyncio.run(load(address, decode if turn % 2 else encode, 16, length / 10))
        total += round(rate * length / 10)
        held.append(rss(process))
        assert not failed, f"{failed} requests failed"
    print(
        f"\nsoak of {length:.0f} s, 16 clients: {total} requests, {total * seconds / 3600:.1f} hours of audio; "
        f"memory {', '.join(f'{value:.0f}' for value in held)} MB"
    )


def wait(address: str, server: subprocess.Popen[Any]) -> None:
    """Until the server answers."""
    while server.poll() is None:
        try:
            httpx.get(f"{address}/health").raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit("the server did not start")


if __name__ == "__main__":
    main()
