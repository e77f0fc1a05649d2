"""The page by HTTP: it reads, and answers nothing but what is listed here.

    GET /               the page, /page.js and /page.css
    GET /runs           a list of what `Watched.view` says of each run, JSON
    GET /runs/0/NAME    a sheet of samples of the first run, whose name must be among those that are there

No name of a file is made of what is asked for, and no script, style or font comes from elsewhere: the browser is told
so (Content-Security-Policy). A page of another site that has its name point at this machine is refused by the name.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import time
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from ...core.errors import UserError
from ...core.files import read_regular
from .view import Watched

_PAGE = Path(__file__).parent / "page"
_PARTS = {
    "/": ("page.html", "text/html; charset=utf-8"), "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_SAMPLE = re.compile(r"/runs/(\d{1,4})/([\w.-]+\.png)")
_SECONDS_BETWEEN_LOOKS = 1.0  # however many pages ask
_PICTURE_BYTES = 2**28


class Server(ThreadingHTTPServer):
    """Serves until `shutdown`. The address is taken when it is built: port 0 takes one that is free."""

    daemon_threads = True

    def __init__(self, runs: Sequence[Watched], host: str, port: int) -> None:
        """Raises UserError if the address cannot be had."""
        self._runs = tuple(runs)
        self._lock = Lock()
        self._looked_at, self._answer = -_SECONDS_BETWEEN_LOOKS, b"[]"
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = found[0]
            super().__init__((found[4][0], port), Handler)
        except OSError as error:
            raise UserError(
                f"--host {host} --port {port}: {error.strerror or error}; choose another port (0: one that is free) "
                "or an address of this machine"
            ) from error
        self._names = {host.lower(), "localhost", "127.0.0.1", "::1"}
        self._is_local = ipaddress.ip_address(self.server_address[0]).is_loopback

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://[{host}]:{port}/" if ":" in str(host) else f"http://{host}:{port}/"

    def runs(self) -> bytes:
        """The view of every run as JSON, at most a second old."""
        with self._lock:
            if time.monotonic() - self._looked_at >= _SECONDS_BETWEEN_LOOKS:
                views = [run.view() for run in self._runs]
                self._answer = json.dumps(views, allow_nan=False).encode()
                self._looked_at = time.monotonic()
            return self._answer

    def sample(self, number: int, name: str) -> bytes | None:
        """The bytes of a sheet that is there; None for all else."""
        if number >= len(self._runs) or name not in self._runs[number].samples():
            return None
        try:
            return read_regular(self._runs[number].folder.samples / name, _PICTURE_BYTES)
        except OSError:
            return None

    def is_named(self, host: str) -> bool:
        """Whether a request was meant for this server: only one that others reach may go by any name."""
        return not self._is_local or re.sub(r":\d+$", "", host).strip("[]").lower() in self._names


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD; the base class refuses the rest."""

    server: Server
    server_version, sys_version = "afm_scale", ""
    timeout = 30  # seconds, of a connection that says nothing

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        sample = _SAMPLE.fullmatch(path)
        if not self.server.is_named(self.headers.get("Host", "")):
            self._answer(HTTPStatus.FORBIDDEN, b"asked for by another name\n")
        elif path in _PARTS:
            name, kind = _PARTS[path]
            self._answer(HTTPStatus.OK, read_regular(_PAGE / name), kind)
        elif path == "/runs":
            self._answer(HTTPStatus.OK, self.server.runs(), "application/json")
        elif sample and (picture := self.server.sample(int(sample[1]), sample[2])) is not None:
            self._answer(HTTPStatus.OK, picture, "image/png")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"there is nothing here\n")

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, content: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *words: Any) -> None:
        """The screen is for who started it."""

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, TimeoutError):  # a tab that was closed
            pass
