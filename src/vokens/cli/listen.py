"""Sockets of web applications, bound before models are loaded, so that a bad port fails early."""

import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from vokens import registry
from vokens.errors import ConfigError

Port = Annotated[int, tyro.conf.arg(metavar="N", help="Port to listen on; 0 for any free one.")]


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Options of the verbs that listen; each adds its `port`."""

    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = registry.offline()
    """Models to offer: names of `vokens models`, folders, files or hub ids; NAME=FOLDER gives a name."""
    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in."""
    device: Annotated[str, tyro.conf.arg(metavar="NAME")] = "cpu"
    """cpu, cuda, cuda:1, mps."""


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to an address, for `answer`; port 0 takes any free one.

    Raises ConfigError for a port outside 0 to 65535 or in use, and for a host that is not this machine's.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: give 0 to 65535 (0: any free one), or leave it out")
    try:
        families = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, *_, address = min(families, key=lambda entry: entry[0] != socket.AF_INET)  # localhost is both
        listener = socket.socket(family, socket.SOCK_STREAM)
        # A restart does not wait for old connections.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        raise _unusable(host, port, error) from error
    return listener


def answer(app: Any, place: socket.socket, what: str, patience: int, note: str = "") -> int:
    """Serve an ASGI application at a bound socket until Ctrl-C or SIGTERM; 0 when it started.

    Args:
        what, note: printed before and after the address, once it listens.
        patience: seconds for requests in progress at shutdown.
    """
    import uvicorn

    host, port = place.getsockname()[:2]
    try:
        place.listen(2048)
    except OSError as error:  # another process took the port meanwhile
        raise _unusable(host, port, error) from error
    shown = f"[{host}]" if place.family == socket.AF_INET6 else host
    print(f"{what} on http://{shown}:{port}{note}", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=patience))
    with suppress(KeyboardInterrupt):  # which uvicorn raises again after its shutdown
        server.run(sockets=[place])
    return 0 if server.started else 2


def _unusable(host: str, port: int, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or error
    return ConfigError(
        f"cannot listen on {host} port {port} ({reason}): choose a free port with --port, 0 for any, and with --host "
        "an address of this machine"
    )
