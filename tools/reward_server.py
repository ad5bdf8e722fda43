"""Serves rewards over HTTP, so that a run on another process or machine can use them.

    python -m tools.reward_server clip_score my_judge.py:alignment --port 8100
    accelerate launch mo_train.py \
        --config.rewards.remotes=alignment=http://127.0.0.1:8100/alignment \
        --config.rewards.names=alignment,jpeg_compressibility

Any reward of docs/rewards.md and any `module:function` is served at /<its name>. Settings are
overridden as in training (`--config.rewards.device=cuda:1`).

There is no password and no encryption. By default the server listens only on this machine
(`--host`); between machines use an ssh tunnel. The messages: `ddpo/rewards/remote/wire.py`.
"""

from __future__ import annotations

import argparse
import http
import json
import logging
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import torch

from config.settings.derived import objective_name
from config.settings.errors import UserError
from ddpo.processes import own_device
from ddpo.rewards.lookup import build_reward, name_problem
from ddpo.rewards.remote.wire import FORMAT, WireError, answer_body, read_request
from ddpo.rewards.scorer import RewardError, Scorer
from front.commands.arguments import port
from run.command_line import read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from config.base import RewardSettings

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 1 << 28
_IDLE_SECONDS = 60  # after this long without data from a client, the connection is closed


class RewardServer(ThreadingHTTPServer):
    """A server of the messages in `ddpo/rewards/remote/wire.py`.

    Args:
        address: host and port; port 0 takes a free port.
        scorers: name -> a scorer of that one objective.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], scorers: Mapping[str, Scorer]) -> None:
        self.scorers = dict(scorers)
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        """The address where it listens."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        """Describe the reward at this path."""
        name, scorer = self._reward()
        if scorer is None:
            return self._refuse(http.HTTPStatus.NOT_FOUND, self._offer())
        description = {"format": FORMAT, "name": name, "unit": scorer.units[name]}
        return self._send(http.HTTPStatus.OK, json.dumps(description).encode())

    def do_POST(self) -> None:
        """Score the pictures of the request."""
        _, scorer = self._reward()
        length = self.headers.get("Content-Length", "")
        if scorer is None:
            return self._refuse(http.HTTPStatus.NOT_FOUND, self._offer())
        if self.headers.get_content_type() != "application/json" or not length.isdecimal():
            return self._refuse(http.HTTPStatus.BAD_REQUEST, "expected JSON and its length")
        if int(length) > MAX_REQUEST_BYTES:
            words = f"a request may have {MAX_REQUEST_BYTES} bytes; lower rewards.batch_size"
            return self._refuse(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, words)
        try:
            images, prompts = read_request(self.rfile.read(int(length)))
            scores = scorer.gather([scorer.submit(images, prompts)], num_agents=1).values
        except WireError as error:
            return self._refuse(http.HTTPStatus.BAD_REQUEST, str(error))
        except RewardError as error:
            return self._refuse(http.HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        return self._send(http.HTTPStatus.OK, answer_body(scores.flatten()))

    def _reward(self) -> tuple[str, Scorer | None]:
        name = self.path.partition("?")[0].strip("/")
        return name, self.server.scorers.get(name)

    def _offer(self) -> str:
        return "no such reward; here are " + ", ".join(f"/{name}" for name in self.server.scorers)

    def _refuse(self, status: http.HTTPStatus, words: str) -> None:
        logger.warning("%s %s: %s", self.command, self.path, words)
        self._send(status, json.dumps({"error": words}).encode())

    def _send(self, status: http.HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Log every answered request at level DEBUG."""
        logger.debug(format, *args)


def make_scorers(names: Sequence[str], settings: RewardSettings) -> dict[str, Scorer]:
    """Make a scorer for each reward; a score that is not finite counts as missing.

    Raises:
        UserError: if a reward cannot be found or loaded.
    """
    device = torch.device(settings.device) if settings.device else own_device()
    scorers = {}
    for name in names:
        if problem := name_problem("reward", name):
            raise UserError(problem)
        try:
            reward, unit = build_reward(name, settings, device)
        except (OSError, ValueError) as error:
            raise UserError(f"reward {name!r} cannot be loaded: {error}") from error
        label = objective_name(name)
        scorers[label] = Scorer(
            {label: reward},
            units={label: unit},
            device=device,
            batch_size=settings.batch_size,
            timeout_seconds=settings.timeout_seconds,
        )
    return scorers


def main(arguments: Sequence[str]) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rewards", nargs="+", metavar="REWARD", help="a name or module:function")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=port, default=8100, help="0 takes a free one")
    known, overrides = parser.parse_known_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        scorers = make_scorers(known.rewards, read_settings(overrides).rewards)
        try:
            server = RewardServer((known.host, known.port), scorers)
        except OSError as error:
            raise UserError(f"cannot listen on {known.host}, port {known.port}: {error}") from error
        with server:
            for name in scorers:
                sys.stdout.write(f"serving {server.url}/{name}\n")
            sys.stdout.flush()
            server.serve_forever()
    except UserError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main(sys.argv[1:])
