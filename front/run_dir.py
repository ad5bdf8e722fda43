"""The run directory: what a run leaves on disk, written as it goes."""

from __future__ import annotations

import json
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.errors import UserError
from front.checkpoint import CheckpointStore
from front.export import save_adapter
from front.files import write_json
from front.samples import write_samples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from config.schema import Settings
    from ddpo.agents import Agents, Policy
    from ddpo.evaluation import Evaluation
    from morl.types import PolicyId


_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "numpy", "moocore")


def open_run_dir(settings: Settings) -> RunDir:
    """The run directory to write to: that of `resume_from`, or a new one in `logdir`.

    Raises:
        UserError: if there is nothing to continue, or something would be overwritten.
    """
    if settings.resume_from:
        path = Path(settings.resume_from)
        if not (path / "config.json").is_file():
            raise UserError(f"resume_from={path} is not a run directory: it has no config.json")
        return RunDir(path)
    path = Path(settings.logdir) / (settings.run_name or time.strftime("%Y-%m-%d_%H-%M-%S"))
    if (path / "config.json").exists():
        raise UserError(
            f"{path} holds a run already; choose another run_name, or continue it with "
            f"--config.resume_from={path}"
        )
    return RunDir(path)


class RunDir:
    """One run's folder: `config.json`, `metrics.jsonl`, `history.json`, adapters, checkpoints.

    Args:
        path: the folder; made if absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.store = CheckpointStore(path)
        self._metrics = path / "metrics.jsonl"
        self._started = time.time()

    def adapter_folder(self, identifier: str) -> Path:
        """Where the adapter of an archive member lies."""
        return self.path / "adapters" / identifier

    def write_config(self, settings: Settings, device: str) -> None:
        """Write `config.json`: resolved settings, seed, device, package versions."""
        record = {
            "format": 1,
            "settings": settings.to_json(),
            "seed": settings.seed,
            "device": device,
            "python": platform.python_version(),
            "packages": {name: version(name) for name in _PACKAGES},
        }
        self.write_json("config.json", record)

    def write_json(self, name: str, value: Any) -> None:
        """Write one of the run's JSON records, atomically."""
        write_json(self.path / name, value)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line to `metrics.jsonl`.

        Args:
            step: images sampled for training so far.
            metrics: `area/name` -> value.
        """
        line = {"step": step, "seconds": round(time.time() - self._started, 3), **metrics}
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def metrics_bytes(self) -> int:
        """Length of `metrics.jsonl`, remembered by checkpoints."""
        return self._metrics.stat().st_size if self._metrics.exists() else 0

    def truncate_metrics(self, length: int) -> None:
        """Drop the lines of a generation that was not finished."""
        if self.metrics_bytes() > length:
            with self._metrics.open("r+b") as file:
                file.truncate(length)

    def write_samples(self, which: str, evaluations: Mapping[PolicyId, Evaluation]) -> None:
        """Store the pictures that evaluations kept.

        Args:
            which: "report" or "selection", the evaluation set.
            evaluations: by policy.
        """
        for identifier, evaluation in evaluations.items():
            write_samples(self.path, which, identifier, evaluation.images)

    def write_adapters(self, agents: Agents, archive: Mapping[PolicyId, Policy]) -> None:
        """Export every archive member's adapter; remove those that have left the archive."""
        for identifier, policy in archive.items():
            if not self.adapter_folder(identifier).exists():
                save_adapter(agents, policy, self.adapter_folder(identifier))
        for folder in (self.path / "adapters").glob("*"):
            if folder.name not in archive:
                shutil.rmtree(folder)
