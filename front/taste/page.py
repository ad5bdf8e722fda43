"""The page that asks, served to this machine alone by Python's own web server."""

from __future__ import annotations

import logging
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from front.errors import FrontError
from front.taste.desk import HEADERS, Desk, Reply, may_post

if TYPE_CHECKING:
    from front.taste.quiz import Quiz

logger = logging.getLogger(__name__)

LOCALHOST = "127.0.0.1"
_FORBIDDEN = Reply(status=HTTPStatus.FORBIDDEN)


class _Handler(BaseHTTPRequestHandler):
    """One request; whatever is not asked for by the page itself is refused."""

    def __init__(self, desk: Desk, *arguments: Any) -> None:
        self._desk = desk
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """See `Desk.get`."""
        self._send(self._desk.get(self._place()) if self._is_local() else _FORBIDDEN)

    def do_POST(self) -> None:
        """See `Desk.post`."""
        length = self.headers.get("Content-Length") or ""
        if self._is_local() and may_post(self.headers.get("Content-Type") or "", length):
            self._send(self._desk.post(self._place(), self.rfile.read(int(length))))
        else:
            self._send(_FORBIDDEN)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing of each request."""

    def _place(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/")

    def _is_local(self) -> bool:
        """Whether the page was asked for by a name of this machine (no DNS rebinding)."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        return host in {LOCALHOST, "localhost"}

    def _send(self, reply: Reply) -> None:
        try:
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.kind)
            self.send_header("Content-Length", str(len(reply.body)))
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)
        except (BrokenPipeError, ConnectionResetError):
            logger.debug("the browser has left")


class Page:
    """The server of a quiz, in threads of its own.

    Args:
        quiz: that it asks.
        port: to listen on; 0 takes a free one.

    Raises:
        FrontError: if the port is taken.
    """

    def __init__(self, quiz: Quiz, port: int = 0) -> None:
        self._desk = Desk(lambda: quiz)
        try:
            self._server = ThreadingHTTPServer((LOCALHOST, port), partial(_Handler, self._desk))
        except OSError as error:
            raise FrontError(f"cannot listen on {LOCALHOST}, port {port}: {error}") from error
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, name="taste-page", daemon=True)
        self._desk.quiz()  # draws while the browser opens
        self._thread.start()

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://{LOCALHOST}:{self._server.server_address[1]}/"

    def wait(self) -> None:
        """Serve until somebody interrupts."""
        self._thread.join()

    def close(self) -> None:
        """End all threads."""
        self._desk.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
