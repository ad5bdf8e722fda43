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
    "soak": {
        "generations",
        "generation_seconds",
        "saving_seconds",
        "megabytes",
        "policies",
        "checkpoint_kilobytes",
    },
}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.parametrize("name", HEADLINES)
def test_the_quick_form_ends_with_its_headline(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--quick"])
    importlib.import_module(f"benchmarks.{name}").main()
    headline = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(headline) == HEADLINES[name]
