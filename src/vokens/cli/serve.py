"""Serve models over HTTP: tokens in and out, and speech in the shape of OpenAI's endpoint.

vokens serve        then http://127.0.0.1:8000/docs lists all requests.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from vokens import registry
from vokens.cli.listen import answer, bound
from vokens.errors import ConfigError, MissingExtra

_LIMITS = ("max_upload", "max_seconds", "max_text", "max_queue", "max_streams", "max_batch", "batch_wait")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = registry.offline()
    """Models to serve: names of `vokens models`, folders, files or hub ids; NAME=FOLDER gives a name."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in: then give an API key."""
    port: Annotated[int, tyro.conf.arg(metavar="N")] = 8000
    """Port to listen on; 0 for any free one."""
    api_key: str = ""
    """Clients must send it as `Authorization: Bearer KEY` (default: $VOKENS_API_KEY, else none)."""
    voices: Path | None = None
    """Folder of voices: NAME.wav, each with its transcript NAME.txt if known."""
    cors: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ORIGIN ...")] = ()
    """Allowed CORS origins, such as http://localhost:3000; * for all (default: none)."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, mps."""
    threads: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Of the CPU; 0 for all."""
    max_upload: int = 25_000_000
    """Bytes of a request."""
    max_seconds: float = 600.0
    """Seconds of audio in one request."""
    max_text: int = 10_000
    """Characters of a text to speak."""
    max_queue: int = 64
    """Queued requests per model."""
    max_streams: int = 8
    """Concurrent streamed replies per model."""
    max_batch: int = 16
    """Batch size."""
    batch_wait: float = 0.005
    """Seconds that a request waits to be batched with others."""


def run(arguments: Arguments) -> int:
    """Serve until Ctrl-C or SIGTERM; requests in progress are finished first."""
    try:
        import uvicorn  # noqa: F401 (a missing extra is reported first)

        from vokens.serve.app import create_app
    except ImportError as error:
        raise MissingExtra(error.name or "fastapi", "serve", "the server") from error
    import torch

    from vokens.device import usable_device
    from vokens.serve.schema import Settings
    from vokens.serve.served import load_models

    limits = {name: getattr(arguments, name) for name in _LIMITS}
    key = arguments.api_key or os.environ.get("VOKENS_API_KEY", "")
    settings = Settings(api_key=key, voices=arguments.voices, cors=arguments.cors, **limits)
    if arguments.threads < 0:
        raise ConfigError(f"--threads {arguments.threads}: a number from 1 is accepted, or 0 for all")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = usable_device(arguments.device)
    with bound(arguments.host, arguments.port) as place:
        models = load_models(arguments.models, settings, device)
        app = create_app(models, settings)
        return answer(app, place, f"serving {', '.join(models)}", patience=30, note=" (/docs)")
