"""A tracker may fail in any way: the run reports it once and continues."""

from __future__ import annotations

import threading

import pytest

from run import trackers
from run.trackers import Trackers, installed_trackers, wandb_options


class FakeAccelerator:
    """Records what trackers get; misbehaves on demand: {"log": ConnectionError("gone")}."""

    def __init__(self, **faults):
        self.faults, self.calls, self.released = faults, [], threading.Event()

    def _do(self, name, *content):
        self.calls.append((name, *content))
        fault = self.faults.get(name)
        if fault == "hang":
            self.released.wait(10)
        elif fault is not None:
            raise fault

    def init_trackers(self, project, config, init_kwargs):  # noqa: ARG002
        self._do("init", project, config)

    def log(self, values, step):
        self._do("log", values, step)

    def end_training(self):
        self._do("end")


@pytest.fixture(autouse=True)
def _impatience(monkeypatch):
    monkeypatch.setattr(trackers, "PATIENCE", 0.3)


@pytest.fixture(name="run")
def _run(tmp_path):
    """Start, log five times, close."""

    def run(accelerator, names=("tensorboard",), resumed_at=None):
        settings = {"seed": 1, "names": ("a", "b")}
        tracker = Trackers(accelerator, names, tmp_path, settings, resumed_at)
        for step in range(5):
            tracker.log({"x": float(step)}, step)
        tracker.close()
        accelerator.released.set()

    return run


def test_trackers_get_settings_and_metrics_in_order(run, caplog):
    accelerator = FakeAccelerator()
    run(accelerator)
    assert accelerator.calls == [
        ("init", "mo-ddpo", {"seed": 1, "names": "('a', 'b')"}),
        *(("log", {"x": float(step)}, step) for step in range(5)),
        ("end",),
    ]
    assert not caplog.records


@pytest.mark.parametrize("fault", [ConnectionError("no network"), SystemExit("no key"), "hang"])
@pytest.mark.parametrize(
    ("where", "words", "calls"),
    [("init", "started", 1), ("log", "written to", 2), ("end", "closed", 7)],
)
def test_a_tracker_that_raises_or_hangs_is_left_out_with_one_warning(
    run, where, words, calls, fault, caplog
):
    accelerator = FakeAccelerator(**{where: fault})
    run(accelerator)
    expected = "no answer within 0.3 s" if fault == "hang" else str(fault)
    assert [record.message for record in caplog.records] == [
        f"a tracker could not be {words} ({expected}); continuing without it, "
        "metrics.jsonl has everything"
    ]
    assert len(accelerator.calls) == calls


def test_a_tracker_that_is_too_slow_to_keep_up_is_left_out(run, monkeypatch, caplog):
    monkeypatch.setattr(trackers, "BACKLOG", 3)
    accelerator = FakeAccelerator(init="hang")
    run(accelerator)
    assert "3 calls wait for it" in caplog.text


def test_without_trackers_nothing_is_sent(run, tmp_path):
    accelerator = FakeAccelerator()
    run(accelerator, names=())
    assert accelerator.calls == []
    assert not any(tmp_path.iterdir())


def test_a_run_that_goes_on_goes_on_in_its_trackers(run, monkeypatch):
    """One run in wandb by its id; tensorboard's folder stays, and forgets what is done again."""
    monkeypatch.setattr(trackers, "PATIENCE", 15.0)  # wandb's import takes a while
    seen = []

    class Accelerator(FakeAccelerator):
        def init_trackers(self, project, config, init_kwargs):  # noqa: ARG002
            seen.append((config, init_kwargs))

    settings = {"seed": 1, "names": "('a', 'b')"}
    for names, resumed_at in (("wandb",), None), (("wandb",), 64), (("wandb", "tensorboard"), 96):
        run(Accelerator(), names, resumed_at)
    run(Accelerator(), ("wandb", "tensorboard"), 128)
    run(Accelerator(), ("wandb",), None)  # died before its first checkpoint: another run
    assert [config for config, _ in seen] == [settings, None, settings, None, settings]
    assert [each["wandb"]["resume"] for _, each in seen] == ["never", *["allow"] * 3, "never"]
    first, *again, fresh = [each["wandb"]["id"] for _, each in seen]
    assert set(again) == {first} != {fresh}
    assert [each.get("tensorboard") for _, each in seen[1:4]] == [
        None,
        {"purge_step": 97},
        {"purge_step": 129},
    ]


def test_a_tracker_that_is_not_installed_is_named(caplog):
    assert installed_trackers(["json", "no_such_tracker"]) == ["json"]
    assert "tracker 'no_such_tracker' is not installed" in caplog.text


def test_wandb_may_not_wait_for_ever():
    options = wandb_options("my_run", "abc", None)
    assert options["name"] == "my_run"
    assert options["settings"].init_timeout <= trackers.PATIENCE
    assert options["settings"].login_timeout <= trackers.PATIENCE
