"""Real wandb with no key, and with a server that never answers: the run ends well all the same."""

from __future__ import annotations

import socket

import pytest

pytest.importorskip("wandb")

SHORT = ("evolution.warmup_generations=1", "evolution.evolutionary_generations=0")


def test_wandb_without_a_key_is_a_warning(program, tmp_path):
    code, output = program.run(
        "run_name=no-key", "trackers=wandb", *SHORT, environment=nowhere(tmp_path)
    )
    assert code == 0, output
    assert "a tracker could not be started (No API key configured" in output
    assert (program.folder / "logs" / "no-key" / "front.json").exists()


def test_a_wandb_server_that_never_answers_is_a_warning(program, tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        code, output = program.run(
            "run_name=silent",
            "trackers=wandb",
            *SHORT,
            fault="impatient_with_trackers",
            environment={**nowhere(tmp_path), "WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": url},
        )
    assert code == 0, output
    assert "a tracker could not be started (no answer within 1 s)" in output
    assert (program.folder / "logs" / "silent" / "front.json").exists()


def nowhere(folder):
    """Without the key and the settings of the person who runs the tests."""
    return {"WANDB_DIR": str(folder), "HOME": str(folder), "NETRC": str(folder / "netrc")}
