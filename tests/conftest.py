"""Shared fixtures: a random Stable Diffusion of the real classes, small enough for tests."""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from config import base
from tests.support.pipelines import make_tiny_pipe
from tests.support.rig import Rig, make_rig, make_settings

if TYPE_CHECKING:
    from collections.abc import Callable


_HAS_GRADIO = importlib.util.find_spec("gradio") is not None

pytest_plugins = ("tests.support.runs",)  # one small run of the program, shared by tests


def pytest_configure(config: pytest.Config) -> None:
    """Where gradio is installed, its server leaves sockets and event loops to the collector."""
    if _HAS_GRADIO:
        for kind in ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning"):
            config.addinivalue_line("filterwarnings", f"default::{kind}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole programs first, short tests last, so that parallel workers finish together."""
    items.sort(key=_is_short)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`: one worker has all files whose processes are forked from a server.

    To start the server takes seconds.
    """
    from xdist.scheduler import LoadFileScheduling

    class TogetherScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            is_forked = nodeid.startswith(("tests/faults/", "tests/ddpo/test_processes.py"))
            return "forked" if is_forked else super()._split_scope(nodeid)

    return TogetherScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def _is_short(item: pytest.Item) -> bool:
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    return not (folder.startswith("test_") or folder in ("faults", "front", "run"))


def pytest_collection_finish() -> None:
    """Modules stay until the end: collecting garbage, go through young objects only, and seldom."""
    gc.freeze()
    if not _HAS_GRADIO:  # its leavings must not wait for the end
        gc.set_threshold(50_000, 20, 1000)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many browser tests ran, and why others did not."""
    stats = terminalreporter.stats
    ran = [
        report
        for outcome in ("passed", "failed")
        for report in stats.get(outcome, [])
        if "browser" in report.keywords and report.when == "call"
    ]
    skipped = [report for report in stats.get("skipped", []) if "browser" in report.keywords]
    reasons = {report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)}
    if ran or skipped:
        why = f", {len(skipped)} skipped ({'; '.join(sorted(reasons))})" if skipped else ""
        terminalreporter.write_line(f"browser tests: {len(ran)} ran{why}")


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(name="settings")
def _settings() -> Callable[..., base.Settings]:
    return make_settings


@pytest.fixture(name="rounded_as_diffusers")
def _rounded_as_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave layers as in diffusers and peft if ours round differently: pictures are equal."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from diffusers.models.upsampling import Upsample2D

    from ddpo.agents.lora import StackedLoRALinear
    from ddpo.speed.layers import LAYERS

    for kind in (Transformer2DModel, Upsample2D, StackedLoRALinear):
        monkeypatch.delitem(LAYERS, kind)


@pytest.fixture(name="tiny_pipe")
def _tiny_pipe() -> Any:
    return make_tiny_pipe()


@pytest.fixture(name="rig")
def _rig() -> Callable[..., Rig]:
    return make_rig
