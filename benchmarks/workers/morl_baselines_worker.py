"""Answers `benchmarks/selection.py` with morl-baselines' own PGMORL, unchanged.

Only environment and networks are left out: selection does not use them.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from morl_baselines.multi_policy.pgmorl.pgmorl import PGMORL, PerformancePredictor

from benchmarks.workers.protocol import serve

DEFAULT_DELTA_WEIGHT, DEFAULT_SPARSITY_COEF = 0.2, -1.0  # of PGMORL's constructor


def _predictor(
    before: list[Any], after: list[Any], weights: list[Any], sigma: float | None = None
) -> Any:
    predictor = PerformancePredictor() if sigma is None else PerformancePredictor(sigma=sigma)
    for w, old, new in zip(weights, before, after, strict=True):
        predictor.add(np.array(w), np.array(old), np.array(new))
    return predictor


def _agent(index: int) -> SimpleNamespace:
    return SimpleNamespace(global_step=0, id=index, change_weights=lambda _: None)


def select(
    num_tasks: int,
    population: list[Any],
    archive: list[Any],
    before: list[Any],
    after: list[Any],
    weights: list[Any],
) -> dict[str, Any]:
    """Choose tasks."""
    search = PGMORL.__new__(PGMORL)
    search.np_random = np.random.default_rng(0)
    search.log = False
    search.reward_dim = len(population[0])
    search.delta_weight, search.sparsity_coef = DEFAULT_DELTA_WEIGHT, DEFAULT_SPARSITY_COEF
    search.agents = [_agent(i) for i in range(num_tasks)]
    search.archive = SimpleNamespace(evaluations=[np.array(point) for point in archive])
    search.population = SimpleNamespace(
        individuals=[_agent(i) for i in range(len(population))],
        evaluations=[np.array(point) for point in population],
    )
    search.predictor = _predictor(before, after, weights)
    with _silence():
        search._PGMORL__task_weight_selection(ref_point=np.zeros(search.reward_dim))
    return {}


def predict(
    pairs: list[Any],
    before: list[Any],
    after: list[Any],
    weights: list[Any],
    sigma: float | None = None,
    **_: Any,
) -> dict[str, Any]:
    """Predict the changes (C, M) of pairs (weights, returns)."""
    predictor = _predictor(before, after, weights, sigma)
    with _silence():
        changes = [
            predictor.predict_next_evaluation(np.array(w), np.array(z))[0].tolist()
            for w, z in pairs
        ]
    return {"changes": changes}


def _silence() -> contextlib.AbstractContextManager[object]:
    return contextlib.redirect_stdout(Path(os.devnull).open("w", encoding="utf-8"))


if __name__ == "__main__":
    serve({"select": select, "predict": predict})
