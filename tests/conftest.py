"""Shared fixtures: a random Stable Diffusion of the real classes, small enough for tests."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from config import base
from config.settings import schema
from config.settings.parse import parse
from tests.tiny import LETTERS, draw_with_diffusers, make_tiny_pipe, of_8_bits, sd_scheduler

if TYPE_CHECKING:
    from collections.abc import Callable

SMOKE = Path(__file__).parents[1] / "config" / "smoke.py"

__all__ = ["draw_with_diffusers", "make_tiny_pipe", "sd_scheduler"]  # see tests/tiny.py


def pytest_configure(config: pytest.Config) -> None:
    """Where gradio is installed, its server leaves sockets and event loops to the collector."""
    if importlib.util.find_spec("gradio") is not None:
        for kind in ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning"):
            config.addinivalue_line("filterwarnings", f"default::{kind}")


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


def make_settings(**changes: dict[str, Any]) -> schema.Settings:
    """Default settings with sections changed: make_settings(sample={"num_steps": 4})."""
    config = base.get_config()
    # One kind of step and one kind of start, unless a test says otherwise.
    config.sample.num_steps = 10
    config.evaluation.num_steps = 0
    config.evolution.start = "even_weights"
    config.evolution.warmup_generations = config.evolution.evolutionary_generations = 3
    for section, values in changes.items():
        config[section].update(values)
    return parse(config, {})


@pytest.fixture(name="settings")
def _settings() -> Callable[..., schema.Settings]:
    return make_settings


@pytest.fixture(name="rounded_as_diffusers")
def _rounded_as_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would round otherwise is as in diffusers and peft: pictures compare to the bit."""
    from diffusers.models.transformers.transformer_2d import Transformer2DModel
    from diffusers.models.upsampling import Upsample2D

    from ddpo import frozen, lora

    for kind in (Transformer2DModel, Upsample2D):
        monkeypatch.delitem(frozen._FROZEN, kind)
    monkeypatch.setattr(lora, "_merges", lambda *_: False)


@pytest.fixture(name="tiny_pipe")
def _tiny_pipe() -> Any:
    return make_tiny_pipe()


def small_world(folder: Path) -> list[str]:
    """A tiny model and prompt files in `folder`; the words that run the smoke recipe on them."""
    make_tiny_pipe().save_pretrained(folder / "model")
    return world_around(folder)


def report_colorfulness(pipe: Any, guidance_scale: float = 1.0) -> float:
    """How colourful the report set of `world_around` is, drawn by diffusers with a pipeline."""
    from ddpo.evaluation import EvaluationSet
    from ddpo.rewards.colorfulness import colorfulness

    on = EvaluationSet.make("report", ["e", "f"], 16, run_seed=0)
    images = draw_with_diffusers(pipe, on.prompts, on.seeds, guidance_scale=guidance_scale)
    return colorfulness(of_8_bits(images), on.prompts).mean().item()


def world_around(folder: Path) -> list[str]:
    """Prompt files beside the model in `folder`; the words that run the smoke recipe on them."""
    (folder / "train.txt").write_text("a\nb\nc\nd\n")
    (folder / "report.txt").write_text("e\nf\n")
    return [
        f"--config={SMOKE}",
        f"--config.pretrained.model={folder / 'model'}",
        f"--config.prompts.train={folder / 'train.txt'}",
        f"--config.prompts.report={folder / 'report.txt'}",
        "--config.rewards.names=colorfulness,jpeg_compressibility",
        "--config.num_threads=1",
        "--config.train.learning_rate=0.1",
        f"--config.logdir={folder / 'logs'}",
    ]


def timeless_metrics(text: str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl without what a clock has measured."""
    timed = ("seconds", "overhead")
    return [
        {name: value for name, value in line.items() if not any(word in name for word in timed)}
        for line in map(json.loads, text.splitlines())
    ]


@dataclasses.dataclass
class Rig:
    """The parts of DDPO around a tiny model."""

    settings: schema.Settings
    model: Any
    agents: Any
    sampler: Any
    updater: Any

    def batch(self, num_agents: int, samples: int, first_agent: int = 0) -> Any:
        """A prompt batch whose seeds depend on (agent, sample) only."""
        from ddpo.seeding import keyed_seed

        texts = [LETTERS[i % 3] for _ in range(num_agents) for i in range(samples)]
        seeds = [
            keyed_seed(7, first_agent + k, i) for k in range(num_agents) for i in range(samples)
        ]
        return self.sampler.prompt_batch(texts, seeds, num_agents)

    def rollout(self, batch: Any) -> Any:
        from ddpo.types import Rollout

        return Rollout.join(batch, list(self.sampler.chunks(self.agents, batch)))

    def perturb(self) -> None:
        """Give every agent another, non-zero adapter."""
        generator = torch.Generator().manual_seed(1)
        for slot in range(self.agents.num_agents):
            policy = self.agents.snapshot(slot)
            noise = 0.05 * torch.randn(policy.adapter.shape, generator=generator)
            self.agents.load(slot, dataclasses.replace(policy, adapter=policy.adapter + noise))


def make_rig(
    num_agents: int = 3, pipe: Any = None, device: str = "cpu", **changes: dict[str, Any]
) -> Rig:
    """Model, agents, sampler and updater with settings changed by section."""
    from ddpo.agents.conditioned import make_agents
    from ddpo.model.stable_diffusion import FrozenDiffusion
    from ddpo.processes import Processes
    from ddpo.sampler import Sampler
    from ddpo.update import Updater

    sample = {
        "num_steps": 4,
        "guidance_scale": 5.0,
        "prompts_per_iteration": 8,
        "rows_per_pass": 64,
        **changes.pop("sample", {}),
    }
    train = {
        "learning_rate": 1e-2,
        "updates_per_epoch": 2,
        "skip_last_steps": 0,
        "rows_per_pass": 64,
        **changes.pop("train", {}),
    }
    settings = make_settings(sample=sample, train=train, **changes)
    model = FrozenDiffusion(pipe or make_tiny_pipe(), device)
    agents = make_agents(model.unet, num_agents, settings, Processes.alone())
    sampler = Sampler(model, settings.sample)
    return Rig(settings, model, agents, sampler, Updater(sampler, settings))


@pytest.fixture(name="rig")
def _rig() -> Callable[..., Rig]:
    return make_rig
