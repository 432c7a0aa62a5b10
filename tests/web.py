"""A web server on 127.0.0.1 that serves bytes, and cuts or refuses as a test asks."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Web:
    """Pages by path, how many coming requests of a path are cut in the middle, and the paths that were asked for."""

    root: str
    pages: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)

    def add(self, path: str, body: bytes) -> str:
        self.pages[path] = body
        return self.root + path


@contextlib.contextmanager
def serve() -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if self.command == "GET":
                web.seen.append(path)
            if path not in web.pages:
                self.send_error(404)
                return
            body = web.pages[path]
            self.send_response(200)
            digest = hashlib.sha256(body).hexdigest()  # a hub's client keeps files under it
            for name, value in {"Content-Length": str(len(body)), "ETag": f'"{digest}"', **web.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                cut = web.cuts.get(path, 0) > 0
                web.cuts[path] = web.cuts.get(path, 0) - 1
                self.wfile.write(body[: len(body) // 2] if cut else body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    web = Web(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
