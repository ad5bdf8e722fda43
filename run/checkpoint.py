"""Checkpoints: a generation is a commit.

    policies/<id>.safetensors      adapter, Adam's moments, step count, prompt statistics
    checkpoints/<number>/search.json    state of the search: all generations so far
    checkpoints/<number>/run.json       what else the run needs, see `run.state`
    checkpoints/<number>/manifest.json  size and SHA-256 of these and of the policies needed

A policy never changes, so it is stored once. Policies are written first, each atomically. Then the
other files are written into a temporary folder, the manifest last. They are flushed to the disk and
the folder is renamed, so every checkpoint that has its name is whole. Nothing is a pickle, so no
code can run when a file is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from config.settings.errors import UserError
from ddpo.files import new_folder, plain_name, remove, sweep, write_atomic, write_durable
from ddpo.types import Policy, PromptStatistics
from morl.types import PolicyId
from run.state import RunState
from run.versions import Versions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

FORMAT = 1
NUM_KEPT = 2  # the one before the last remains when the last turns out damaged
_MANIFEST, _SEARCH, _RUN = "manifest.json", "search.json", "run.json"


class CheckpointError(UserError):
    """No whole checkpoint, or a file that is not what its checkpoint says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Everything a run needs to resume, verified and read.

    Attributes:
        generation: index of the last finished generation; -1 is the evaluated base model.
        search: `Evolution.state()`.
        policies: the ones that the search may still ask for.
        state: what else the run needs.
        versions: of the program that wrote it.
        num_processes: of the run that wrote it.
    """

    generation: int
    search: Mapping[str, Any]
    policies: Mapping[PolicyId, Policy]
    state: RunState
    versions: Versions
    num_processes: int = 1


class CheckpointStore:
    """The `policies/` and `checkpoints/` folders of a run.

    Args:
        root: the run directory.
    """

    def __init__(self, root: Path) -> None:
        self.policies = root / "policies"
        self.checkpoints = root / "checkpoints"
        self.last_generation: int | None = None  # of the checkpoint written or read last
        self._stored: dict[str, dict[str, Any]] = {}  # policy id -> its manifest entry

    def save_policy(self, identifier: str, policy: Policy) -> None:
        """Store a policy, if it is not stored yet.

        Raises:
            OSError: if the disk does not take it; no part of it is left behind.
        """
        if identifier in self._stored:
            return
        data = _policy_bytes(policy)
        write_atomic(self._policy_path(identifier), data)
        self._stored[identifier] = _entry(data)

    def load_policy(self, identifier: str) -> Policy:
        """Read a policy.

        Raises:
            CheckpointError: if the file is missing, damaged, or of another format.
        """
        path = self._policy_path(identifier)
        return _parse_policy(path, _read(path))

    def commit(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, its policies first, and remove what no kept checkpoint needs.

        Raises:
            OSError: if the disk does not take it; the checkpoints before stay as they are.
        """
        for identifier, policy in checkpoint.policies.items():
            self.save_policy(identifier, policy)
        generation = checkpoint.generation
        files = {
            _SEARCH: _json_bytes(checkpoint.search),
            _RUN: _json_bytes(checkpoint.state.to_json()),
        }
        written_by = {**checkpoint.versions.to_json(), "num_processes": checkpoint.num_processes}
        manifest = {
            "format": FORMAT,
            "generation": generation,
            "files": {name: _entry(data) for name, data in files.items()},
            "policies": {name: self._stored[name] for name in sorted(checkpoint.policies)},
            "written_by": written_by,
        }
        with new_folder(self.checkpoints / f"{generation + 1:05d}") as folder:
            for name, data in files.items():
                write_durable(folder / name, data)
            write_durable(folder / _MANIFEST, _json_bytes(_sealed(manifest)))
        self.last_generation = generation
        self.prune()

    def latest(self) -> Checkpoint:
        """The newest checkpoint that is whole, with every policy it names.

        Raises:
            CheckpointError: if there is none; the message says what is wrong with each.
        """
        problems = []
        for folder in reversed(self._folders()):
            try:
                checkpoint, stored = self._read_checkpoint(folder)
            except CheckpointError as error:
                problems.append(str(error))
                logger.warning("skipping checkpoint %s: %s", folder.name, error)
            else:
                self._stored = stored
                self.last_generation = checkpoint.generation
                return checkpoint
        raise CheckpointError(
            f"no whole checkpoint in {self.checkpoints}"
            + "".join(f"\n  - {problem}" for problem in problems)
        )

    def _read_checkpoint(self, folder: Path) -> tuple[Checkpoint, dict[str, dict[str, Any]]]:
        """A checkpoint and the manifest's entries of its policies."""
        manifest = _read_manifest(folder)
        try:
            files = {
                name: json.loads(_read(folder / plain_name(name), entry))
                for name, entry in manifest["files"].items()
            }
            policies = {}
            for identifier, entry in manifest["policies"].items():
                path = self._policy_path(identifier)
                policies[PolicyId(identifier)] = _parse_policy(path, _read(path, entry))
            checkpoint = Checkpoint(
                generation=manifest["generation"],
                search=files[_SEARCH],
                policies=policies,
                state=RunState.from_json(files[_RUN]),
                versions=Versions.from_json(manifest["written_by"]),
                num_processes=manifest["written_by"].get("num_processes", 1),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder} cannot be used: {error!r}") from error
        return checkpoint, manifest["policies"]

    def _folders(self) -> list[Path]:
        """The checkpoints, oldest first."""
        found = [path for path in self.checkpoints.glob("*") if path.name.isdecimal()]
        return sorted(found, key=lambda path: int(path.name))

    def prune(self) -> None:
        """Keep the last checkpoints and the policies that they name, and nothing half done."""
        for folder in (self.policies, self.checkpoints):
            sweep(folder)
        folders = self._folders()
        for folder in folders[:-NUM_KEPT]:
            remove(folder)
        needed: set[str] = set()
        for folder in folders[-NUM_KEPT:]:
            try:
                needed |= set(_read_manifest(folder)["policies"])
            except CheckpointError as error:
                logger.warning("an older checkpoint is no longer whole: %s", error)
        for path in self.policies.glob("*.safetensors"):
            if path.stem not in needed:
                path.unlink()
                self._stored.pop(path.stem, None)

    def _policy_path(self, identifier: str) -> Path:
        return self.policies / f"{plain_name(identifier)}.safetensors"


def _policy_bytes(policy: Policy) -> bytes:
    tensors = {
        "adapter": policy.adapter,
        "exp_avg": policy.exp_avg,
        "exp_avg_sq": policy.exp_avg_sq,
    }
    record = {"format": FORMAT, "step": policy.step, "statistics": policy.statistics.buffers}
    # one metadata key: the bytes are repeatable
    data: bytes = save_tensors(tensors, {"policy": json.dumps(record)})
    return data


def _parse_policy(path: Path, data: bytes) -> Policy:
    """A policy from the bytes of its file.

    Raises:
        CheckpointError: if it is of another format, not a policy, or not finite.
    """
    try:
        tensors = load_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        record = json.loads(header["__metadata__"]["policy"])
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


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, verified against the digest it carries of itself."""
    path = folder / _MANIFEST
    data = _read(path)
    try:
        manifest: dict[str, Any] = json.loads(data)
        _check_format(path, manifest)
        is_intact = manifest == _sealed({k: v for k, v in manifest.items() if k != "sha256"})
        number = manifest["generation"] + 1
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error
    if not is_intact or number != int(folder.name):
        raise CheckpointError(f"{path} is damaged: it does not match its own SHA-256")
    return manifest


def _read(path: Path, entry: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of a file, compared with its manifest's entry.

    Raises:
        CheckpointError: if it is missing, a link to elsewhere, or not what the entry says.
    """
    if path.is_symlink() or path.parent.is_symlink():
        raise CheckpointError(f"{path} is reached by a symbolic link; checkpoints hold files only")
    try:
        data: bytes = path.read_bytes()
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"is unreadable: {error}"
        raise CheckpointError(f"{path} {reason}") from error
    if entry is not None and len(data) != entry["bytes"]:
        raise CheckpointError(f"{path} is damaged: {len(data)} bytes instead of {entry['bytes']}")
    if entry is not None and hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is another")
    return data


def _entry(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the SHA-256 of its own content."""
    content = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    return {**manifest, "sha256": hashlib.sha256(content).hexdigest()}


def _json_bytes(value: object) -> bytes:
    """Compact JSON, which C code writes; NaN and infinity are refused with a ValueError."""
    return (json.dumps(value, allow_nan=False) + "\n").encode()


def _check_format(path: Path, content: Mapping[str, Any]) -> None:
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {content['format']}; this program reads format {FORMAT}"
        )
