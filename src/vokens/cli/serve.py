"""Serve models over HTTP: tokens in and out, and speech in the shape of OpenAI's endpoint.

vokens serve        then http://127.0.0.1:8000/docs lists all requests.
"""

import os
from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from vokens.cli.listen import Listening, Port, answer, bound
from vokens.errors import ConfigError, needs_extra
from vokens.serve.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Arguments(Listening):
    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in: then give an API key."""
    port: Port = 8000
    threads: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Of the CPU; 0 for all."""
    settings: Settings = field(default_factory=Settings)


def run(arguments: Arguments) -> int:
    """Serve until Ctrl-C or SIGTERM; requests in progress are finished first."""
    with needs_extra("fastapi", "serve", "the server"):
        import uvicorn  # noqa: F401 (a missing extra is reported first)

        from vokens.serve.app import create_app
    import torch

    from vokens.device import usable_device
    from vokens.serve.served import load_models

    key = arguments.settings.api_key or os.environ.get("VOKENS_API_KEY", "")
    settings = replace(arguments.settings, api_key=key)
    settings.check()
    if arguments.threads < 0:
        raise ConfigError(f"--threads {arguments.threads}: a number from 1 is accepted, or 0 for all")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = usable_device(arguments.device)
    with bound(arguments.host, arguments.port) as place:
        models = load_models(arguments.models, settings, device)
        app = create_app(models, settings)
        return answer(app, place, f"serving {', '.join(models)}", patience=30, note=" (/docs)")
