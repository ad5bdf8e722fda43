"""Checkpoints: a generation is the unit of resume.

A policy never changes, so it is stored once, as `policies/<id>.safetensors`. A checkpoint is one
JSON file that holds everything else and names the policies it needs with their SHA-256. Policies
are written first and the checkpoint last, each atomically: a checkpoint that can be seen is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save

from config.errors import UserError
from ddpo.advantages import PromptStatistics
from ddpo.agents import Policy
from front.files import sync_folder, write_atomic, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

FORMAT = 1
_KEPT = 2


class CheckpointError(UserError):
    """No whole checkpoint, or a file that is not what its checkpoint says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything a run needs to go on, apart from the policies' tensors.

    Attributes:
        generation: index of the last finished generation; -1 is the evaluated base model.
        evolution: state of the search.
        policies: policy id -> SHA-256 of its file.
        record: what else the main script keeps (counters, calibration, settings).
    """

    generation: int
    evolution: dict[str, Any]
    policies: dict[str, str]
    record: dict[str, Any]


class CheckpointStore:
    """The `policies/` and `checkpoints/` folders of a run.

    Args:
        root: the run directory.
    """

    def __init__(self, root: Path) -> None:
        self.policies = root / "policies"
        self.checkpoints = root / "checkpoints"
        self._digests: dict[str, str] = {}

    def save_policy(self, identifier: str, policy: Policy) -> None:
        """Store a policy, if it is not stored yet."""
        if identifier in self._digests:
            return
        tensors = {
            "adapter": policy.adapter,
            "exp_avg": policy.exp_avg,
            "exp_avg_sq": policy.exp_avg_sq,
        }
        record = {
            "format": FORMAT,
            "step": policy.step,
            "statistics": policy.statistics.buffers,
        }
        data = save(tensors, {"policy": json.dumps(record)})  # one key: the bytes are repeatable
        write_atomic(self._policy_path(identifier), data)
        self._digests[identifier] = hashlib.sha256(data).hexdigest()

    def load_policy(self, identifier: str) -> Policy:
        """Read a policy.

        Raises:
            CheckpointError: if the file is missing, damaged, or of another format.
        """
        path = self._policy_path(identifier)
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads((file.metadata() or {})["policy"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            _check_format(path, record)
            buffers = {
                prompt: tuple(tuple(row) for row in rows)
                for prompt, rows in record["statistics"].items()
            }
            return Policy(**tensors, step=record["step"], statistics=PromptStatistics(buffers))
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read: {error!r}") from error

    def commit(
        self,
        generation: int,
        evolution: Mapping[str, Any],
        live: Iterable[str],
        record: Mapping[str, Any],
    ) -> None:
        """Write a checkpoint and drop what no kept checkpoint needs.

        Args:
            generation: index of the finished generation.
            evolution: state of the search.
            live: ids of the policies it needs; all are stored already.
            record: what else to keep, as JSON.
        """
        content = {
            "format": FORMAT,
            "generation": generation,
            "evolution": evolution,
            "policies": {identifier: self._digests[identifier] for identifier in sorted(live)},
            "record": record,
        }
        write_json(self._checkpoint_path(generation), content)
        self._prune()

    def latest(self) -> Checkpoint:
        """The newest checkpoint that is whole, with every policy file it names.

        Raises:
            CheckpointError: if there is none; the message says what is wrong with each.
        """
        problems = []
        for path in sorted(self.checkpoints.glob("*.json"), reverse=True):
            try:
                checkpoint = self._read(path)
            except CheckpointError as error:
                problems.append(str(error))
                logger.warning("skipping a checkpoint: %s", error)
            else:
                self._digests = dict(checkpoint.policies)
                return checkpoint
        raise CheckpointError(
            f"no whole checkpoint in {self.checkpoints}"
            + "".join(f"\n  - {problem}" for problem in problems)
        )

    def _read(self, path: Path) -> Checkpoint:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            _check_format(path, content)
            checkpoint = Checkpoint(
                generation=content["generation"],
                evolution=content["evolution"],
                policies=content["policies"],
                record=content["record"],
            )
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read: {error!r}") from error
        for identifier, digest in checkpoint.policies.items():
            file = self._policy_path(identifier)
            if not file.is_file():
                raise CheckpointError(f"{path} needs {file}, which is missing")
            if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
                raise CheckpointError(f"{path} needs {file}, which is damaged")
        return checkpoint

    def _prune(self) -> None:
        """Keep the last checkpoints and the policies that they name."""
        paths = sorted(self.checkpoints.glob("*.json"))
        needed: set[str] = set()
        for path in paths[-_KEPT:]:
            needed |= set(json.loads(path.read_text(encoding="utf-8"))["policies"])
        for path in paths[:-_KEPT]:
            path.unlink()
        sync_folder(self.checkpoints)
        for path in self.policies.glob("*.safetensors"):
            if path.stem not in needed:
                path.unlink()
                self._digests.pop(path.stem, None)

    def _policy_path(self, identifier: str) -> Path:
        return self.policies / f"{identifier}.safetensors"

    def _checkpoint_path(self, generation: int) -> Path:
        return self.checkpoints / f"{generation + 1:05d}.json"


def _check_format(path: Path, content: Mapping[str, Any]) -> None:
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {content['format']}; this program reads format {FORMAT}"
        )
