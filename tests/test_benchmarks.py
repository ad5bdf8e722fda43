"""Every benchmark still runs in its `--quick` form and ends with its line of JSON."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

HEADLINES = {
    "peers": {"small"},
    "agents": {"small"},
    "selection": {"seconds"},
    "costs": {"base"},
    "soak": {
        "generations",
        "generation_seconds",
        "saving_seconds",
        "megabytes",
        "policies",
        "checkpoint_kilobytes",
    },
    "processes": {"speedup", "speedup_cpu", "max_difference"},
    "gpu": {
        "ceiling_tflops",
        "layers",
        "fused",
        "ready_after_seconds",
        "grouped_sample_speedup",
        "grouped_train_speedup",
        "memory_gb",
        "within_10_gb",
        "within_24_gb",
        "reward_gradients",
    },
}


SLOW = ("agents", "processes", "peers", "soak", "gpu")  # what they run is tried by other tests too


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in HEADLINES],
)
def test_the_quick_form_ends_with_its_headline(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--quick"])
    # Compiling takes a minute of a CPU, and has tests of its own.
    monkeypatch.setattr("ddpo.speed.can_fuse", lambda _: False)
    importlib.import_module(f"benchmarks.{name}").main()
    headline = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(headline) == HEADLINES[name]
