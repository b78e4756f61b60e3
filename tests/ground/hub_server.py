"""A server of files on this machine, which answers as the hub does, or badly."""

import hashlib
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """Files to serve and ways to serve them badly; `requests` says what was asked and sent."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)  # send this many bytes, then close, one per request
    statuses: list[int] = field(default_factory=list)  # answer with these first
    redirects: dict[str, str] = field(default_factory=dict)
    linked_etag: str = ""
    other: str = "-"  # another host, where redirects may lead
    ranges: bool = True
    pretended_length: int = 0
    requests: list[dict] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    url: str = ""

    def sent(self) -> list[int]:
        return [request["sent"] for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        """As the hub answers: which commit, which hash, how long; and where large files are."""
        site = self.server.site
        site.heads.append(self.path)
        found = site.redirects.get(self.path)
        content = site.files.get(self.path if found is None else found.removeprefix(site.other), None)
        if content is None:
            return self.answer(404, **{"X-Error-Code": "EntryNotFound"})
        revision = self.path.split("/")[4]
        facts = {"X-Repo-Commit": hashlib.sha1(revision.encode()).hexdigest()}
        etag = f'"{site.linked_etag or hashlib.sha256(content).hexdigest()}"'
        if found is None:
            return self.answer(200, length=len(content), ETag=etag, **facts)
        facts |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        return self.answer(302, Location=found, **facts)

    def do_GET(self) -> None:
        site = self.server.site
        if self.path.startswith("/api/"):  # questions of huggingface_hub's own
            return self.answer(404)
        asked = self.headers.get("Range", "")
        request = {"path": self.path, "range": asked, "token": self.headers.get("Authorization"), "sent": 0}
        site.requests.append(request)
        if site.statuses:
            return self.answer(site.statuses.pop(0))
        if self.path in site.redirects:
            return self.answer(302, Location=site.redirects[self.path])
        if self.path not in site.files:
            return self.answer(404)
        content = site.files[self.path]
        start = int(asked[6:-1]) if asked and site.ranges else 0
        if asked and start >= len(content):
            return self.answer(416, **{"Content-Range": f"bytes */{len(content)}"})
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(site.pretended_length or len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        body = body[: site.cuts.pop(0)] if site.cuts else body
        request["sent"] = len(body)
        self.wfile.write(body)

    def answer(self, status: int, length: int = 0, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.site = Site(url=f"http://127.0.0.1:{self.server_port}")
