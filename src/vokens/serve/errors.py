"""Error replies: every status from 400 on is JSON in OpenAI's error format."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.cors import CORSMiddleware

from vokens.errors import CheckpointError, DownloadError, MissingExtra, VokensError
from vokens.serve.batcher import Busy

_SHOWN = 20  # maximum number of names in an error
_FAILED = "the server failed: its log has the reason; try again, or tell its operator"


class ServerFault(Exception):
    """A fault of the server's own files or packages: the message is for the client, the cause for the log."""


def problem(status: int, message: str, code: str) -> HTTPException:
    return HTTPException(status, {"message": message, "code": code})


def listed(kind: str, names: Iterable[str]) -> str:
    """The available names of a kind, as the end of an error."""
    match list(names):
        case []:
            return f"this server has no {kind}"
        case [only]:
            return f"the only {kind} is {only}"
        case many:
            more = f" and {len(many) - _SHOWN} others" if len(many) > _SHOWN else ""
            return f"the {kind}s are {', '.join(many[:_SHOWN])}{more}"


def body_of(status: int, message: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """The JSON of a refused (4xx) or failed (5xx) request."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}


def failure(
    status: int, message: str, code: str | None, param: str | None = None, headers: Any = None
) -> JSONResponse:
    return JSONResponse(body_of(status, message, code, param), status, headers)


def complaint(error: RequestValidationError | ValidationError) -> tuple[str, str | None]:
    """The first error of a body or a form, and its field."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}", None
    if first["loc"] in ((), ("body",)) and first["type"] != "missing":
        return "the body is not a JSON object: send one, with the header Content-Type: application/json", None
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    given = first.get("input")
    shown = f" = {given!r:.60}" if isinstance(given, (str, int, float)) else ""
    return (f"{place}{shown}: {first['msg']}" if place else first["msg"]), place or None


def handle_errors(app: FastAPI) -> None:
    """Register handlers that give all exceptions the same format."""

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        detail: Any = error.detail if isinstance(error.detail, dict) else {"message": _plain(request, error)}
        return failure(error.status_code, detail["message"], detail.get("code"), headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        message, field = complaint(error)
        return failure(400, message, "invalid", field)

    @app.exception_handler(VokensError)
    async def unusable(request: Request, error: VokensError) -> Response:
        if isinstance(error, (CheckpointError, DownloadError, MissingExtra)):  # not the client's fault
            raise ServerFault(_FAILED) from error
        return failure(400, str(error), "invalid")

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> Response:
        return failure(503, "all places are taken: try again in 1 s", "busy", headers={"Retry-After": "1"})

    @app.exception_handler(Exception)  # uvicorn logs it with its traceback
    async def failed(request: Request, error: Exception) -> Response:
        return failure(500, str(error) if isinstance(error, ServerFault) else _FAILED, "server_error")


def _plain(request: Request, error: StarletteHTTPException) -> str:
    """The framework's own errors in plain sentences."""
    requested = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return f"{requested}: there is no such address; GET /docs lists all requests of this server"
    if error.status_code == 405:
        allowed = error.headers["Allow"] if error.headers else "another method"
        return f"{requested}: this address takes {allowed}"
    return str(error.detail)


class Limit:
    """Middleware that refuses a body of more than `most` bytes while it is read."""

    def __init__(self, app: Any, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        message = f"the body is too large: at most {self.most} bytes are accepted"
        if declared.isdigit() and int(declared) > self.most:
            await failure(413, message, "too_large")(scope, receive, send)
            return
        read = 0

        async def counted() -> Any:
            nonlocal read
            received = await receive()
            read += len(received.get("body", b""))
            if read > self.most:
                raise problem(413, message, "too_large")
            return received

        await self.app(scope, counted, send)


class Cors(CORSMiddleware):
    """Starlette's CORS, with refusals in our format."""

    def preflight_response(self, request_headers: Any) -> Response:
        reply = super().preflight_response(request_headers)
        if reply.status_code < 400:
            return reply
        origin = request_headers.get("origin", "")
        return failure(400, f"{origin!r:.200}: the server's operator can allow it with --cors ORIGIN", "cors")
