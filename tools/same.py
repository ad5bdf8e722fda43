"""Checks that a change keeps results bit for bit: compares a commit with the working tree.

    python -m tools.same HEAD~3            # everything; the runs of a commit are done only once
    python -m tools.same HEAD --only smoke # runs with "smoke" in their names

It does these runs, with one thread each:

- seed 0 of every arm and pair of the toy study;
- the smoke recipe in several variants;
- one generation of `config/faithful.py` on the embedded model.

It compares SHA-256 digests of policies, exported adapters, `front.json`, and `metrics.jsonl`
without clock times. The commit is checked out beside the working tree and runs its own program. The
digests of each of its runs are kept in `runs/same/`. The exit status is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from safetensors.numpy import load_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TREE = Path(__file__).resolve().parent.parent
KEPT = TREE / "runs" / "same"
CLOCKS = (
    "seconds",
    "cost/seconds_left",
    "cost/overhead_fraction",
    "cost/reward_seconds_per_image",
)

_COMMON = ("--config.num_threads=1", "--config.run_name=run")
_FAITHFUL = (
    "--config=config/faithful.py",
    "--config.evolution.warmup_generations=1",
    "--config.evolution.evolutionary_generations=0",
    "--config.evolution.iterations_per_generation=2",
    "--config.evaluation.selection_images=32",
    "--config.evaluation.report_images=32",
)
_SMOKE = ("--config=config/smoke.py",)
PROGRAMS: dict[str, tuple[str, ...]] = {
    "faithful": _FAITHFUL,
    "smoke": _SMOKE,
    "smoke_guided": (*_SMOKE, "--config.sample.guidance_scale=3", "--config.train.kl_coef=0.1"),
    "smoke_conditioned": (
        *_SMOKE,
        "--config.agents.kind=conditioned",
        "--config.evolution.strategy=fixed_weights",
    ),
    "smoke_forward": (*_SMOKE, "--config.train.update_rule=awm"),
    "smoke_single_pass": (
        *_SMOKE,
        "--config.train.single_pass=True",
        "--config.train.updates_per_epoch=1",
    ),
    "smoke_guarded": (
        *_SMOKE,
        "--config.guards.names=colorfulness,base_similarity",
        "--config.train.gradient_checkpointing=True",
        "--config.train.timestep_fraction=0.5",
    ),
}
# Runs one arm of the toy study and keeps its folder; it works in every commit.
_TOY = """
import contextlib, sys
from benchmarks.toy import run
from benchmarks.toy.arms import HERE
from benchmarks.toy.sweep import Sweep
pair, arm, folder = sys.argv[1:]
run.TemporaryDirectory = lambda dir=None: contextlib.nullcontext(folder)
rate = Sweep(HERE / "sweep.json").best(pair, arm)
print(run.play(pair, arm, 0, rate, {"run_name": "run"}).hypervolumes()[-1])
"""
_ARMS = """
from benchmarks.toy.arms import ARMS, PAIRS
arms = [name for name, arm in ARMS.items() if not getattr(arm, "measured_at", "")]
print(*(f"{pair}/{arm}" for pair in PAIRS for arm in arms))
"""


def digests(run: Path) -> dict[str, str]:
    """File or metric -> digest, for a run directory."""
    found = {}
    for path in sorted(run.rglob("*.safetensors")):
        found[str(path.relative_to(run))] = _tensors_digest(path)
    front = run / "front.json"
    if front.exists():
        found["front.json"] = _digest(json.loads(front.read_text(encoding="utf-8")))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    columns: dict[str, list[object]] = {}
    for line in map(json.loads, lines):
        for name, value in line.items():
            if not name.startswith(CLOCKS):
                columns.setdefault(name, []).append([line["step"], value])
    return found | {name: _digest(values) for name, values in columns.items()}


def _tensors_digest(path: Path) -> str:
    """A digest of the tensors alone: the order of an adapter's metadata is not fixed."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
    return digest.hexdigest()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def measured(tree: Path, only: str, kept: Path | None = None) -> dict[str, dict[str, str]]:
    """Run name -> digests, for the program in a tree; digests in `kept` are used again."""
    with TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        names = [*PROGRAMS, *_python(tree, "-c", _ARMS).split()]
        chosen = [name for name in names if only in name]

        def one(name: str) -> dict[str, str]:
            file = kept and kept / f"{name}.json"
            if file and file.exists():
                before: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
                return before
            found = _run(tree, name, Path(folder) / name)
            if file:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            return found

        return dict(zip(chosen, pool.map(one, chosen), strict=True))


def _run(tree: Path, name: str, folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True)
    if name in PROGRAMS:
        words = (*PROGRAMS[name], *_COMMON, f"--config.logdir={folder}")
        _python(tree, "mo_train.py", *words)
    else:
        _python(tree, "-c", _TOY, *name.split("/"), str(folder))
    sys.stderr.write(f"{tree.name} {name}\n")
    return digests(folder / "run")


def _python(tree: Path, *words: str) -> str:
    """Run Python in a tree and return the output; exits with the output if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)} in {tree}:\n{done.stdout}{done.stderr}")
    return done.stdout


def of_commit(commit: str, only: str) -> dict[str, dict[str, str]]:
    """The digests of a commit, of runs done before or now."""
    sha = _git("rev-parse", commit)
    with TemporaryDirectory() as folder:
        tree = Path(folder) / sha[:7]
        _git("worktree", "add", "--detach", str(tree), sha)
        try:
            return measured(tree, only, KEPT / sha)
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=TREE, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def differences(
    before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    """One line for each run that differs or exists on one side only."""
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            yield f"{name}: only {'before' if name in before else 'after'}"
            continue
        old, new = before[name], after[name]
        changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        if changed:
            yield f"{name}: {len(changed)} of {len(old)} differ: {', '.join(changed[:6])}"


def main() -> int:
    """Compare, print the differences, and return the exit status."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("commit", help="compared with the working tree")
    arguments.add_argument("--only", default="", help="runs whose name contains this")
    chosen = arguments.parse_args()
    before = of_commit(chosen.commit, chosen.only)
    after = measured(TREE, chosen.only)
    lines = list(differences(before, after))
    same = len({*before} & {*after}) - sum(": only " not in line for line in lines)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.write(f"{same} runs are the same, bit for bit\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
