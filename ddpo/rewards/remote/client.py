"""A reward in another process or on another machine, such as a VLM judge.

`tools/reward_server.py` is the other side, and `wire.py` beside this file defines the messages.
Pictures travel as PNG, so that a reward scores the same bits wherever it runs.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import random
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from config.settings.errors import UserError
from ddpo.rewards.image_batch import BatchReward
from ddpo.rewards.remote.wire import (
    WireError,
    error_text,
    read_answer,
    read_description,
    request_body,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ddpo.rewards.image_batch import ImageBatch

logger = logging.getLogger(__name__)

_MAX_ANSWER_BYTES = 1 << 20
_ATTEMPT_SECONDS, _RETRIES = 60.0, 4
_FIRST_DELAY_SECONDS, _MAX_DELAY_SECONDS = 0.5, 30.0
_TRY_AGAIN = {408, 425, 429}  # and all 5xx
_HINT = "is a server running there? See docs/rewards.md"


class RemoteError(UserError):
    """A remote reward gave no usable answer in time."""


class _Passing(Exception):  # noqa: N818 - it never leaves this module
    """A failure that may have passed by the next attempt."""


class RemoteReward(BatchReward):
    """A reward whose scores come from an HTTP server.

    Args:
        url: http:// or https://; redirects are not followed and proxies not used.
        attempt_seconds: time limit of one attempt.
        retries: further attempts after a failure that may pass, with exponential back-off.
        total_seconds: time limit of a call with all its attempts.
        first_delay_seconds: wait before the second attempt.

    Raises:
        RemoteError: if no reward answers at the URL.
    """

    def __init__(
        self,
        url: str,
        *,
        attempt_seconds: float = _ATTEMPT_SECONDS,
        retries: int = _RETRIES,
        total_seconds: float = 600.0,
        first_delay_seconds: float = _FIRST_DELAY_SECONDS,
    ) -> None:
        self.url = url
        self._attempt_seconds = attempt_seconds
        self._retries = retries
        self._total_seconds = total_seconds
        self._first_delay_seconds = first_delay_seconds
        try:
            self.name, self.unit = read_description(self._ask("GET", b""))
        except (RemoteError, WireError) as error:
            raise RemoteError(f"{error}; {_HINT}") from error

    def score(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:
        """See `BatchReward`; NaN where the server has no score.

        Raises:
            RemoteError: if no attempt gets an answer.
            WireError: if the answer is not one number per picture.
        """
        return read_answer(self._ask("POST", request_body(batch, prompts)), len(batch))

    def _ask(self, method: str, body: bytes) -> bytes:
        """The body of the answer, after one or more attempts."""
        deadline = time.monotonic() + self._total_seconds
        for attempt in range(self._retries + 1):
            seconds = min(self._attempt_seconds, deadline - time.monotonic())
            try:
                return self._attempt(method, body, seconds)
            except _Passing as failure:
                # A random wait of half to all of the delay: many clients must not return together.
                delay = min(_MAX_DELAY_SECONDS, self._first_delay_seconds * 2**attempt)
                delay *= random.uniform(0.5, 1.0)
                if attempt == self._retries or time.monotonic() + delay >= deadline:
                    raise RemoteError(
                        f"{self.url} gave no answer in {attempt + 1} attempts: {failure}"
                    ) from failure
                logger.warning("%s: %s; again in %.1f s", self.url, failure, delay)
                time.sleep(delay)
        raise AssertionError  # the last attempt returns or raises

    def _attempt(self, method: str, body: bytes, seconds: float) -> bytes:
        """One request.

        Raises:
            _Passing: if another attempt may succeed.
            RemoteError: if none will.
        """
        parts = urlsplit(self.url)
        is_secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if is_secure else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=seconds)
        started, is_late = time.monotonic(), threading.Event()
        try:
            connection.connect()
            # The socket's own time limit restarts with every byte; this one does not.
            left = max(0.0, started + seconds - time.monotonic())
            alarm = threading.Timer(left, _hang_up, [connection.sock, is_late])
            alarm.daemon = True
            alarm.start()
            try:
                path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                headers = {"Content-Type": "application/json", "Connection": "close"}
                connection.request(method, path, body or None, headers)
                response = connection.getresponse()
                answer = response.read(_MAX_ANSWER_BYTES + 1)
            finally:
                alarm.cancel()
                alarm.join()
        except ssl.SSLCertVerificationError as error:
            raise RemoteError(f"{self.url}: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            late = is_late.is_set() or isinstance(error, TimeoutError)
            words = f"no whole answer within {seconds:.1f} s" if late else str(error) or repr(error)
            raise _Passing(words) from error
        finally:
            connection.close()
        if is_late.is_set() or (response.length and len(answer) <= _MAX_ANSWER_BYTES):
            raise _Passing("the answer was cut off")
        return self._checked(response, answer)

    def _checked(self, response: http.client.HTTPResponse, answer: bytes) -> bytes:
        if len(answer) > _MAX_ANSWER_BYTES:
            raise RemoteError(f"{self.url}: the answer is larger than {_MAX_ANSWER_BYTES} bytes")
        if response.status == http.client.OK:
            return answer
        words = f"status {response.status}, {error_text(answer)}"
        if response.status in _TRY_AGAIN or response.status >= http.client.INTERNAL_SERVER_ERROR:
            raise _Passing(words)
        raise RemoteError(f"{self.url}: {words}")


def _hang_up(sock: socket.socket, is_late: threading.Event) -> None:
    """Close a connection while another thread waits for it."""
    is_late.set()
    with contextlib.suppress(OSError):  # it is closed already
        sock.shutdown(socket.SHUT_RDWR)
