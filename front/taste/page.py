"""The page that asks, served to this machine alone by Python's own web server."""

from __future__ import annotations

import json
import logging
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from config.settings.errors import UserError
from front.errors import ChoiceError, FrontError
from front.taste.quiz import as_state

if TYPE_CHECKING:
    from front.taste.quiz import Quiz

logger = logging.getLogger(__name__)

LOCALHOST = "127.0.0.1"
_PAGE = Path(__file__).resolve().parents[1] / "templates" / "taste.html"
_POLICY = "default-src 'none'; img-src 'self' data:; connect-src 'self'; " + (
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
_MAX_BODY = 1000  # bytes of an answer


class _Handler(BaseHTTPRequestHandler):
    """One request; whatever is not asked for by the page itself is refused."""

    def __init__(self, quiz: Quiz, *arguments: Any) -> None:
        self._quiz = quiz
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """The page, the state or a picture."""
        path = urlsplit(self.path).path
        if not self._is_local():
            self._send(HTTPStatus.FORBIDDEN, b"", "text/plain")
        elif path == "/":
            self._send(HTTPStatus.OK, _PAGE.read_bytes(), "text/html; charset=utf-8")
        elif path == "/state":
            self._answer_state()
        elif picture := self._picture(unquote(path.removeprefix("/pictures/"))):
            self._send(HTTPStatus.OK, picture, "image/png")
        else:
            self._send(HTTPStatus.NOT_FOUND, b"", "text/plain")

    def do_POST(self) -> None:
        """An answer, or its undoing; other sites cannot post JSON here without being asked."""
        length = int(self.headers.get("Content-Length") or 0)
        is_json = self.headers.get_content_type() == "application/json"
        if not (self._is_local() and is_json and length <= _MAX_BODY):
            self._send(HTTPStatus.FORBIDDEN, b"", "text/plain")
            return
        try:
            data = json.loads(self.rfile.read(length))
            if self.path == "/answer":
                self._quiz.answer(int(data["number"]), str(data["choice"]))
            elif self.path == "/undo":
                self._quiz.undo()
        except ChoiceError as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"problem": str(error)})
        except (ValueError, KeyError, TypeError) as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"problem": f"not understood: {error!r}"})
        except UserError as error:
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"problem": str(error)})
        else:
            self._answer_state()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing of each request."""

    def _answer_state(self) -> None:
        try:
            self._send_json(HTTPStatus.OK, as_state(self._quiz))
        except UserError as error:
            self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"problem": str(error)})

    def _picture(self, file: str) -> bytes | None:
        """One of the two that are asked about."""
        pair = self._quiz.pair()
        found = [each.png for each in (pair.left, pair.right) if each.shown.file == file]
        return found[0] if found else None

    def _is_local(self) -> bool:
        """Whether the page was asked for by a name of this machine (no DNS rebinding)."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        return host in {LOCALHOST, "localhost"}

    def _send_json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Content-Security-Policy", _POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)
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
        self._quiz = quiz
        try:
            self._server = ThreadingHTTPServer((LOCALHOST, port), partial(_Handler, quiz))
        except OSError as error:
            raise FrontError(f"cannot listen on {LOCALHOST}, port {port}: {error}") from error
        self._server.daemon_threads = True
        self._threads = [
            Thread(target=self._server.serve_forever, name="taste-page", daemon=True),
            Thread(target=quiz.keep_filled, name="taste-pictures", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://{LOCALHOST}:{self._server.server_address[1]}/"

    def wait(self) -> None:
        """Serve until somebody interrupts."""
        self._threads[0].join()

    def close(self) -> None:
        """End all threads."""
        self._quiz.close()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join()
