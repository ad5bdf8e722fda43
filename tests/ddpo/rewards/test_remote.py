"""A reward behind HTTP, over loopback: the same scores, and an answer to every fault."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from config.settings.errors import ConfigError, UserError
from ddpo.rewards import reward_entry
from ddpo.rewards.image_batch import ImageBatch
from ddpo.rewards.remote.client import RemoteError, RemoteReward
from ddpo.rewards.remote.wire import WireError, error_text, read_answer, read_request, request_body
from ddpo.rewards.scorer import RewardError, Scorer
from run.command_line import read_settings
from tests.support.paths import ROOT
from tests.support.rewards import build
from tests.support.rig import make_settings
from tools import reward_server
from tools.reward_server import RewardServer, make_scorers

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a cat", 'ein Kätzchen, "zitiert" <b>', "猫"]
HELLO = json.dumps({"format": 1, "name": "r", "unit": "score"}).encode()


@contextlib.contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(name="server")
def _server():
    """The reference server with two rewards of the table."""
    names = ("jpeg_compressibility", "colorfulness")
    server = RewardServer(("127.0.0.1", 0), make_scorers(names, make_settings().rewards))
    with serving(server):
        yield server


@pytest.mark.parametrize("name", ["jpeg_compressibility", "colorfulness"])
def test_a_remote_reward_gives_the_scores_of_the_local_one_bit_for_bit(server, name):
    remote = RemoteReward(f"{server.url}/{name}")
    local = build(name)
    batch = ImageBatch(IMAGES)
    assert remote.unit == reward_entry(name).unit
    assert torch.equal(remote.score(batch, PROMPTS), local(batch.images, PROMPTS))


def test_remote_and_local_rewards_mix_in_one_run(server):
    settings = read_settings(
        [
            f"--config.rewards.remotes=vivid={server.url}/colorfulness",
            "--config.rewards.names=vivid,colorfulness,jpeg_compressibility",
        ]
    )
    scorer = Scorer.build(settings.rewards, torch.device("cpu"))
    scorer.check(8, 8, ["a", "b"])
    values = scorer.gather([scorer.submit(IMAGES, PROMPTS)], 1).values
    assert torch.equal(values[..., 0], values[..., 1])
    assert scorer.units["vivid"] == reward_entry("colorfulness").unit


def test_another_process_serves_prompts_to_a_function_of_the_user(tmp_path):
    """The server as it is started by hand; NaN travels as a missing score."""
    own = tmp_path / "own.py"
    own.write_text(
        "import torch\n"
        "def length(images, prompts):\n"
        "    return torch.tensor([float(len(p)) if p.isascii() else torch.nan for p in prompts])\n"
        "length.unit = 'letters'\n"
    )
    command = [sys.executable, "-m", "tools.reward_server", f"{own}:length", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        url = re.fullmatch(r"serving (http://127\.0\.0\.1:\d+/length)\n", process.stdout.readline())
        remote = RemoteReward(url[1])
        assert remote.unit == "letters"
        scores = remote(IMAGES, PROMPTS)
        assert scores[0] == 5
        assert scores[1:].isnan().all()
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_the_server_names_what_it_has_and_what_is_wrong(server):
    with pytest.raises(RemoteError, match=r"404.*/jpeg_compressibility, /colorfulness"):
        RemoteReward(f"{server.url}/beauty")
    body = request_body(ImageBatch(IMAGES), PROMPTS).replace(b'"png"', b'"gif"')
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/colorfulness", body, headers)
    with pytest.raises(urllib.error.HTTPError, match="400") as refused:
        urllib.request.urlopen(request)
    assert "encoding: expected 'png', got 'gif'" in error_text(refused.value.read())
    with pytest.raises(UserError, match="did you mean 'colorfulness'"):
        make_scorers(["colourfulness"], make_settings().rewards)


def test_a_port_that_is_taken_is_a_message(server):
    port = server.url.rpartition(":")[2]
    with pytest.raises(SystemExit, match=rf"cannot listen on 127\.0\.0\.1, port {port}: "):
        reward_server.main(["brightness", "--port", port])


def test_a_failing_reward_is_an_error_of_the_server(server):
    def fails(images, prompts):
        raise ValueError("out of judges")

    server.scorers["colorfulness"].rewards["colorfulness"] = fails
    remote = RemoteReward(f"{server.url}/colorfulness", retries=1, first_delay_seconds=0.01)
    with pytest.raises(RemoteError, match=r"in 2 attempts: status 500, .*out of judges"):
        remote(IMAGES, PROMPTS)


class Script(ThreadingHTTPServer):
    """A server that answers GET properly and POST by the next of its actions."""

    daemon_threads = True

    def __init__(self, *actions):
        super().__init__(("127.0.0.1", 0), Handler)
        self.actions = list(actions)
        self.is_over = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/r"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        answer(self, HELLO)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        with contextlib.suppress(OSError):  # the client may have hung up
            self.server.actions.pop(0)(self)

    def log_message(self, *args):
        pass


def answer(handler, body, status=200, length=None):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def scores(*values):
    return lambda handler: answer(handler, json.dumps({"scores": values}).encode())


def status(code, body=b'{"error": "busy"}'):
    return lambda handler: answer(handler, body, code)


def text(body):
    return lambda handler: answer(handler, body)


def hang(handler):
    handler.server.is_over.wait(10)


def drip(handler):
    """A byte of the answer now and then: each byte in time, but never the whole answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    while not handler.server.is_over.wait(0.02):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def drip_header(handler):
    while not handler.server.is_over.wait(0.02):
        handler.wfile.write(b"H")
        handler.wfile.flush()


def cut(handler):
    answer(handler, b'{"scores": [1', length=1000)


def reset(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def scripted(*actions, **changes):
    """A remote reward, quick to give up, of a server that follows the script."""
    server = Script(*actions)
    with serving(server):
        limits = {"attempt_seconds": 0.3, "retries": 3, "first_delay_seconds": 0.01, **changes}
        try:
            yield RemoteReward(server.url, **limits)
        finally:
            server.is_over.set()


GOOD = scores(1, 2.5, None)


@pytest.mark.parametrize(
    "faults",
    [
        [status(500), status(503, b"<html>"), status(429)],
        [hang],
        [drip],
        [drip_header],
        [cut],
        [reset],
    ],
    ids=["500, 503, 429", "hang", "slow drip", "slow header", "cut off", "reset"],
)
def test_what_may_pass_is_tried_again(faults):
    with scripted(*faults, GOOD) as remote:
        torch.testing.assert_close(
            remote(IMAGES, PROMPTS), torch.tensor([1, 2.5, torch.nan]), equal_nan=True
        )


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (text(b"surprise"), WireError, "expected JSON, got b'surprise'"),
        (text(b"[1, 2, 3]"), WireError, "expected a JSON object"),
        (text(b"{}"), WireError, "expected {\"scores\": \\[...\\]}, got b'{}'"),
        (text(b"[" * 100_000), WireError, "expected JSON, got"),
        (text(b'{"scores": [' + b"9" * 5000 + b", 1, 1]}"), WireError, "expected"),
        (scores(1, 2), WireError, "expected 3, one per picture, got 2"),
        (scores(1, 2, "3"), WireError, "expected numbers or null, got '3'"),
        (scores(1, 2, True), WireError, "expected numbers or null, got True"),
        (text(b" " * (1 << 20) + b"{}"), RemoteError, "larger than 1048576 bytes"),
        (status(400), RemoteError, "status 400, busy"),
        (status(301), RemoteError, "status 301"),
    ],
    ids=[
        "garbage", "list", "empty", "deep", "huge number", "short", "text", "bool", "huge body",
        "400", "redirect",
    ],
)  # fmt: skip
def test_failures_that_will_not_pass_end_the_call_immediately(action, error, message):
    with scripted(action, GOOD) as remote, pytest.raises(error, match=message):
        remote(IMAGES, PROMPTS)


def test_nan_and_infinity_become_missing_scores():
    with scripted(text(b'{"scores": [NaN, Infinity, 1e999]}')) as remote:
        scorer = Scorer({"r": remote})
        rewards = scorer.gather([scorer.submit(IMAGES, PROMPTS)], 1)
        assert rewards.values.isnan().all()


def test_the_whole_call_has_a_deadline():
    with (
        scripted(*[status(500)] * 50, retries=40, total_seconds=0.2) as remote,
        pytest.raises(RemoteError, match=r"gave no answer in [2-9] attempts"),
    ):
        remote(IMAGES, PROMPTS)


def test_a_remote_that_stays_away_is_skipped_or_ends_the_run():
    with scripted(*[status(500)] * 3, retries=0) as remote:
        kept = Scorer({"r": remote}, on_error="skip")
        rewards = kept.gather([kept.submit(IMAGES, PROMPTS)], 1)
        assert rewards.metrics() == {
            "reward/r/invalid": 3,
            "cost/reward_seconds_per_image/r": pytest.approx(0, abs=10),
        }
        strict = Scorer({"r": remote})
        with pytest.raises(RewardError, match=r"'r' failed on 3 images: .*status 500, busy"):
            strict.gather([strict.submit(IMAGES, PROMPTS)], 1)


def test_nobody_there_is_an_error_at_start_with_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RemoteError, match=r"refused; is a server running there\? See docs"):
        RemoteReward(f"http://127.0.0.1:{port}/r", retries=1, first_delay_seconds=0.01)


def test_another_service_is_not_taken_for_a_reward():
    server = Script()
    server.RequestHandlerClass = type("H", (Handler,), {"do_GET": lambda self: answer(self, b"hi")})
    with serving(server), pytest.raises(RemoteError, match=r"expected JSON, got b'hi'; is a"):
        RemoteReward(server.url)


def test_a_unit_cannot_bring_control_characters_or_a_novel():
    hello = json.dumps({"format": 1, "name": "r", "unit": "k\x1b[31mB\n" + "x" * 500}).encode()
    server = Script()
    server.RequestHandlerClass = type("H", (Handler,), {"do_GET": lambda s: answer(s, hello)})
    with serving(server):
        unit = RemoteReward(server.url).unit
    assert unit.startswith("k[31mBx")
    assert len(unit) == 80


def test_a_request_brings_the_pictures_back_exactly():
    images, prompts = read_request(request_body(ImageBatch(IMAGES), PROMPTS))
    assert torch.equal(images, ImageBatch(IMAGES).images)
    assert prompts == PROMPTS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format: expected 1, got 2"),
        ({"encoding": "jpeg"}, "encoding: expected 'png', got 'jpeg'"),
        ({"prompts": ["a"]}, "the same length"),
        ({"images": [], "prompts": []}, "the same length, above 0"),
        ({"images": "abc"}, "images: expected a list of texts"),
        ({"images": ["!"], "prompts": ["a"]}, "not a png picture"),
        ({"images": [base64.b64encode(b"GIF89a").decode()], "prompts": ["a"]}, "not a png picture"),
    ],
)
def test_a_wrong_request_is_refused(changes, message):
    body = json.loads(request_body(ImageBatch(IMAGES), PROMPTS))
    with pytest.raises(WireError, match=message):
        read_request(json.dumps({**body, **changes}).encode())


def test_an_answer_is_numbers_only():
    assert read_answer(b'{"scores": [1, 2.5], "code": "ignored"}', 2).tolist() == [1, 2.5]


@pytest.mark.parametrize(
    "remote",
    [
        "nowhere",
        "a=ftp://x/y",
        "a=http://",
        "a b=http://x",
        "=http://x",
        "../a=http://x",
        "a=http://[x",
    ],
)
def test_a_wrong_url_is_a_wrong_setting(remote):
    with pytest.raises(ConfigError, match=r"rewards\.remotes: .* must look like name=http"):
        read_settings([f"--config.rewards.remotes={remote}"])
    with pytest.raises(ConfigError, match="must not give a name twice"):
        read_settings(["--config.rewards.remotes=a=http://x/y,a=http://x/z"])
