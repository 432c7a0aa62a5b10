"""A web server on 127.0.0.1 that serves bytes, and cuts, stalls, changes or refuses as a test asks."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What lies at an address. `plan` has one entry per coming request: what goes wrong there; then all goes well."""

    body: bytes
    etag: str | None = ""  # "": made from the body; None: none is sent
    ranges: bool = True
    if_range: bool = True  # False: a server that sends the rest of whatever it has now
    length: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    plan: list[dict] = field(default_factory=list)

    def tag(self) -> str | None:
        return f'"{hashlib.sha256(self.body).hexdigest()[:16]}"' if self.etag == "" else self.etag


class Web:
    """Pages by path, and the requests that came: method, path, headers."""

    def __init__(self, port: int) -> None:
        self.root = f"http://127.0.0.1:{port}"
        self.pages: dict[str, Page] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.closing = threading.Event()

    def add(self, path: str, body: bytes, **how) -> str:
        self.pages[path] = Page(body, **how)
        return self.root + path

    def asked(self, path: str) -> list[dict[str, str]]:
        """The headers of each request for the content of a page."""
        return [headers for method, found, headers in self.seen if (method, found) == ("GET", path)]


@contextlib.contextmanager
def serve() -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            web.seen.append((self.command, self.path, dict(self.headers)))
            page = web.pages.get(self.path)
            if page is None:
                self.send_error(404)
                return
            wrong = page.plan.pop(0) if page.plan and self.command == "GET" else {}
            if "status" in wrong:
                self.send_response(wrong["status"])
                for name, value in wrong.get("headers", {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start, total, asked = 0, len(page.body), self.headers.get("Range")
            condition = self.headers.get("If-Range")
            if asked and page.ranges and (not page.if_range or condition in (None, page.tag())):
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= total:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{total}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            if page.length:
                self.send_header("Content-Length", str(total - start))
            if page.tag():
                self.send_header("ETag", page.tag())
            for name, value in page.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            rest = page.body[start:]
            with contextlib.suppress(OSError):  # the client may have hung up
                self.wfile.write(rest[: wrong.get("after", len(rest))])
                self.wfile.flush()
                if wrong.get("stall"):
                    web.closing.wait(5)
                if wrong:
                    self.connection.shutdown(socket.SHUT_RDWR)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    web = Web(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
