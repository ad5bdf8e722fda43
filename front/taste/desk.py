"""Replies to the page of a quiz, whichever server its requests come through."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.settings.errors import UserError
from front.errors import ChoiceError
from front.taste.quiz import as_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from front.taste.quiz import Quiz

_PAGE = Path(__file__).resolve().parents[1] / "templates" / "taste.html"
_POLICY = "default-src 'none'; img-src 'self' data:; connect-src 'self'; " + (
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
}
_MAX_BODY = 1000  # bytes of an answer
_JSON = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What is sent back, with `HEADERS`."""

    status: HTTPStatus
    body: bytes = b""
    kind: str = "text/plain"


def may_post(kind: str, length: str) -> bool:
    """Whether to read a body: browsers send other sites' JSON only after asking this server.

    Args:
        kind: the header Content-Type; empty if it is missing.
        length: the header Content-Length; empty if it is missing.
    """
    is_json = kind.partition(";")[0].strip().lower() == _JSON
    return is_json and length.isdecimal() and int(length) <= _MAX_BODY


class Desk:
    """Replies to the page of one quiz, from several threads. Paths have no leading slash.

    Args:
        open_quiz: makes the quiz when it is wanted first.
    """

    def __init__(self, open_quiz: Callable[[], Quiz]) -> None:
        self._open_quiz = open_quiz
        self._quiz: Quiz | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def quiz(self) -> Quiz:
        """The quiz; from the first call on it draws pictures in a thread of its own.

        Raises:
            UserError: if it cannot be opened.
        """
        with self._lock:
            if self._quiz is None:
                self._quiz = self._open_quiz()
                self._thread = threading.Thread(
                    target=self._quiz.keep_filled, name="taste-pictures", daemon=True
                )
                self._thread.start()
            return self._quiz

    def get(self, path: str) -> Reply:
        """The page, the state or one of the two pictures in question."""
        if not path:
            body = _PAGE.read_bytes()
            return Reply(status=HTTPStatus.OK, body=body, kind="text/html; charset=utf-8")
        try:
            quiz = self.quiz()
            if path == "state":
                return _json(HTTPStatus.OK, as_state(quiz))
            pair = quiz.pair()
        except UserError as error:
            return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, error)
        for each in (pair.left, pair.right):
            if path == f"pictures/{each.shown.file}":
                return Reply(status=HTTPStatus.OK, body=each.png, kind="image/png")
        return Reply(status=HTTPStatus.NOT_FOUND)

    def post(self, path: str, body: bytes) -> Reply:
        """Take an answer, or take one back; the reply is the state after it."""
        try:
            quiz, data = self.quiz(), json.loads(body)
            if path == "answer":
                quiz.answer(int(data["number"]), str(data["choice"]))
            elif path == "undo":
                quiz.undo()
            else:
                return Reply(status=HTTPStatus.NOT_FOUND)
        except ChoiceError as error:
            return _problem(HTTPStatus.BAD_REQUEST, error)
        except (ValueError, KeyError, TypeError) as error:
            return _problem(HTTPStatus.BAD_REQUEST, f"not understood: {error!r}")
        except UserError as error:
            return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, error)
        return self.get("state")

    def close(self) -> None:
        """End the quiz and its thread, if it was ever wanted."""
        with self._lock:
            if self._quiz is not None and self._thread is not None:
                self._quiz.close()
                self._thread.join()


def _json(status: HTTPStatus, value: Any) -> Reply:
    return Reply(status=status, body=json.dumps(value).encode(), kind=_JSON)


def _problem(status: HTTPStatus, problem: object) -> Reply:
    return _json(status, {"problem": str(problem)})
