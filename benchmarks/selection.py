"""How long does it take to choose the next tasks? CPU time against morl-baselines 1.3.0.

    python -m benchmarks.selection           # peer with 12 and 50 policies; about 4 minutes
    python -m benchmarks.selection --full    # also with 200; about 15 minutes more
    python -m benchmarks.selection --quick   # 12 policies and no peer

Both choose six tasks for the same search. Its policies were improved from one another on an
analytic problem (a sphere in the positive orthant), and all are in the population. The peer runs
unchanged in its own virtual environment, which the script makes.

Predictions are compared in two ways. With the distance weights of both switched off, this project's
`authors_prediction` must repeat the peer's fit. The default predictors of both are compared with
the true answers of the analytic problem.

The last line is JSON: `seconds` for six tasks from 200 policies, by number of objectives, and
`speedup` with the peer's largest number of policies.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks import authors_prediction as authors
from benchmarks import common
from benchmarks.worker import Worker, virtual_environment
from config import ddpo
from config.base import EvolutionSettings
from config.settings.files import path
from config.settings.parse import parse
from morl.history import History, Improvement
from morl.objectives import from_z, to_z
from morl.pareto import ParetoArchive
from morl.prediction import predict_changes, saturating
from morl.selection import SelectionContext, prediction_guided
from morl.types import BASE_POLICY, Objective, Offspring, policy_id

PACKAGES = ("torch==2.13.0", "morl-baselines==1.3.0")
NUM_TASKS = 6
NUM_POLICIES = 200
STEP = 0.15  # length of an improvement's step towards the sphere
NOISE = 0.01
SCALE = 100.0  # raw returns are z times this: the peer's constants expect returns of hundreds
ALL_ALIKE = 1e9  # width of a Gaussian that weights all neighbours equally


def improved(z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The position (M,) after training a policy at `z` (M,) along `weights` (M,), without noise."""
    way = weights / np.linalg.norm(weights) - z
    distance = np.linalg.norm(way)
    return np.asarray(z + way * STEP * np.tanh(distance / STEP) / max(distance, 1e-12))


def make_search(num_policies: int, num_objectives: int, seed: int = 0) -> SelectionContext:
    """A search in which every policy so far is in the population."""
    rng = np.random.default_rng([seed, num_objectives])
    objectives = tuple(
        Objective(name=f"f{j}", unit="", reference=0.0, ideal=SCALE) for j in range(num_objectives)
    )
    start = Offspring(
        policy=BASE_POLICY,
        parent=None,
        weights=np.full(num_objectives, 1 / num_objectives),
        returns=np.full(num_objectives, 0.15 * SCALE),
        std_error=np.full(num_objectives, NOISE * SCALE),
        generation=-1,
    )
    history, archive, members = History(start), ParetoArchive(objectives), [start]
    for index in range(num_policies):
        parent = members[rng.integers(max(0, len(members) - 20), len(members))]
        weights = rng.dirichlet(np.ones(num_objectives))
        z = improved(to_z(parent.returns, objectives), weights)
        child = Offspring(
            policy=policy_id(index // NUM_TASKS, index % NUM_TASKS),
            parent=parent.policy,
            weights=weights,
            returns=from_z(z + NOISE * rng.normal(size=num_objectives), objectives),
            std_error=start.std_error,
            generation=index // NUM_TASKS,
        )
        history.add(
            Improvement(
                parent=parent.policy,
                child=child.policy,
                weights=weights,
                before=parent.returns,
                after=child.returns,
                horizon=_settings().iterations_per_generation,
                generation=child.generation,
            )
        )
        archive.add([child])
        members.append(child)
    return SelectionContext(
        settings=_settings(),
        objectives=objectives,
        population=tuple(members[1:]),
        archive=archive.members,
        current=tuple(members[-NUM_TASKS:]),
        history=history,
    )


def _settings() -> EvolutionSettings:
    config = ddpo.get_config()
    config.evolution.num_agents = NUM_TASKS
    return parse(config, {}).evolution


def select(context: SelectionContext) -> None:
    """The measured call: choose six tasks."""
    prediction_guided(context, np.random.default_rng(0))


def problem(context: SelectionContext) -> dict[str, Any]:
    """The search for the peer's worker: raw returns as nested lists."""
    records = list(context.history)
    return {
        "num_tasks": NUM_TASKS,
        "population": [policy.returns.tolist() for policy in context.population],
        "archive": [policy.returns.tolist() for policy in context.archive],
        "before": [record.before.tolist() for record in records],
        "after": [record.after.tolist() for record in records],
        "weights": [record.weights.tolist() for record in records],
    }


def compare_fits(worker: Worker, context: SelectionContext) -> float:
    """Largest difference between the two fits on the same neighbours, relative to the changes."""
    changes = context.history.changes(
        context.objectives, context.settings.iterations_per_generation
    )
    raw = type(changes)(
        before=changes.before * SCALE, weights=changes.weights, change=changes.change * SCALE
    )
    worst = 0.0
    for policy, other in zip(context.population[:5], context.population[-5:], strict=True):
        found = authors.neighbours(raw, policy.returns)
        if found is None:
            continue
        rows, closeness = found
        ours = [
            saturating(
                np.array([other.weights[j]]),
                authors.fit(raw.weights[rows, j], raw.change[rows, j], np.ones_like(closeness)),
            )[0]
            for j in range(len(context.objectives))
        ]
        answer = worker.ask(
            "predict",
            **problem(context),
            sigma=ALL_ALIKE,
            pairs=[[other.weights.tolist(), policy.returns.tolist()]],
        )
        gap = np.abs(np.array(answer["changes"][0]) - ours).max()
        worst = max(worst, float(gap / np.abs(raw.change[rows]).max()))
    return worst


def compare_errors(worker: Worker, context: SelectionContext, pairs: int) -> dict[str, float]:
    """Mean absolute error of predicted returns in z, with each project's defaults."""
    rng = np.random.default_rng(1)
    parents = [context.population[i] for i in rng.integers(len(context.population), size=pairs)]
    weights = rng.dirichlet(np.ones(len(context.objectives)), size=pairs)
    z = np.array([to_z(parent.returns, context.objectives) for parent in parents])
    truth = np.array([improved(a, w) for a, w in zip(z, weights, strict=True)])
    history = context.history.changes(
        context.objectives, context.settings.iterations_per_generation
    )
    ours = predict_changes(history, z, np.arange(pairs), weights)
    answer = worker.ask(
        "predict",
        **problem(context),
        pairs=[[w.tolist(), p.returns.tolist()] for w, p in zip(weights, parents, strict=True)],
    )
    theirs = np.array(answer["changes"]) / SCALE
    return {
        "ours": float(np.abs(z + ours.changes - truth).mean()),
        "morl-baselines": float(np.abs(z + theirs - truth).mean()),
        "no change": float(np.abs(z - truth).mean()),
    }


def main() -> None:
    """Print the tables and the headline."""
    parser = common.parser(__doc__, rounds=7)
    parser.add_argument("--full", action="store_true", help="give the peer 200 policies, too")
    parser.add_argument("--cache", type=path, default=common.CACHE, help="for the peer's packages")
    arguments = parser.parse_args()
    common.pin_to_one_thread()
    common.print_header("Selection of six tasks")
    rounds = 1 if arguments.quick else arguments.rounds
    counts = (12,) if arguments.quick else (12, 50, NUM_POLICIES)
    searches = {(n, m): make_search(n, m) for n in counts for m in (2, 3, 4)}
    measured = common.interleaved(
        {str(key): partial(select, context) for key, context in searches.items()},
        rounds,
    )
    ours = {key: measured[str(key)].median for key in searches}
    common.print_table(
        ["policies", "M = 2 [ms]", "M = 3 [ms]", "M = 4 [ms]"],
        [[n, *(1000 * ours[n, m] for m in (2, 3, 4))] for n in counts],
    )
    headline: dict[str, Any] = {"seconds": {str(m): ours[counts[-1], m] for m in (2, 3, 4)}}
    if not arguments.quick:
        python = virtual_environment("morl-baselines", PACKAGES, arguments.cache)
        with Worker(python, "morl_baselines_worker.py") as worker:
            rows = []
            for n in counts if arguments.full else counts[:-1]:
                seconds = worker.ask("select", **problem(searches[n, 2]))["seconds"]
                headline["speedup"] = seconds / ours[n, 2]
                rows.append([n, seconds, ours[n, 2], headline["speedup"]])
            common.say("## M = 2, against morl-baselines 1.3.0\n")
            common.print_table(
                ["policies", "morl-baselines [s]", "this project [s]", "ratio"], rows
            )
            headline["fit_difference"] = compare_fits(worker, searches[50, 2])
            headline["prediction_error"] = compare_errors(worker, searches[50, 2], pairs=40)
        common.say("## Predictions\n")
        common.print_table(
            ["mean absolute error [z]", ""],
            [[name, error] for name, error in headline["prediction_error"].items()],
        )
        common.say(f"Same neighbours: the fits differ by {headline['fit_difference']:.2g} at most")
    common.print_headline(headline)


if __name__ == "__main__":
    main()
