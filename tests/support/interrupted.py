"""Compares an interrupted run with an uninterrupted one."""

from __future__ import annotations

from safetensors.torch import load

from tests.support.worlds import timeless_metrics

_OF_THIS_RUN = {".lock", "config.json", "report.html"}  # they hold its name or process


def content(run):
    """Path -> content, for all content that must not depend on interruptions."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if not path.is_file() or path.suffix == ".png" or name in _OF_THIS_RUN:
            continue
        found[name] = path.read_bytes()
        if name.startswith("adapters/"):  # their metadata has no fixed order
            tensors = load(found[name])
            found[name] = {key: tensor.numpy().tobytes() for key, tensor in tensors.items()}
    found["metrics.jsonl"] = timeless_metrics(found["metrics.jsonl"].decode())
    for name in [name for name in found if name.startswith("checkpoints/")]:
        del found[name]  # they hold lengths of times, and settings such as resume_from
    return found


def differences(run, whole):
    """The differences between a run and one that was never interrupted, one line each."""
    mine, theirs = content(run), content(whole)
    return [
        f"{name}: {_difference(mine.get(name), theirs.get(name))}"
        for name in sorted({*mine, *theirs})
        if mine.get(name) != theirs.get(name)
    ]


def _difference(mine, theirs):
    """The difference in words, with the first place where two files or lists of lines differ."""
    if mine is None or theirs is None:
        return "missing" if mine is None else "one too many"
    if isinstance(mine, dict):
        return f"other tensors: {[key for key in mine if mine[key] != theirs.get(key)]}"
    pairs = enumerate(zip(mine, theirs, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(mine), len(theirs)))
    near = slice(max(0, at - 60), at + 60) if isinstance(mine, bytes) else slice(at, at + 1)
    return f"at {at} of {len(mine)}: {mine[near]!r} instead of {theirs[near]!r}"
