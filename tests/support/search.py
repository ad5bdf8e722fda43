"""An analytic problem: policies are points below the unit sphere, training moves them towards it.

The front is the part of the sphere in the positive orthant. It is concave, so weighted sums reach
all of its points. Training along w moves z towards w / |w|, where w . z is largest, by at most
`STEP`; near the front the step shrinks. Evaluation adds noise. Raw returns are affine functions of
z.
"""

import numpy as np

from config.base import EvolutionSettings
from morl.objectives import from_z
from morl.types import BASE_POLICY, Objective, Offspring, policy_id

STEP = 0.15
NOISE = 0.01


def make_settings(**changes) -> EvolutionSettings:
    values = {
        "num_agents": 6,
        "start": "even_weights",
        "strategy": "prediction_guided",
        "warmup_generations": 3,
        "evolutionary_generations": 8,
        "iterations_per_generation": 5,
        "num_weight_candidates": 7,
        "sparsity_coef": 0.1,
        "seed": 0,
    }
    return EvolutionSettings(**(values | changes))


def make_objectives(num: int) -> tuple[Objective, ...]:
    """Objectives with very different units: a score, negative kilobytes, and so on."""
    points = [(0.0, 1.0), (-120.0, -20.0), (3.0, 5.0), (-1e-3, 0.0), (200.0, 900.0)]
    return tuple(
        Objective(name=f"f{i}", unit="u", reference=r, ideal=s)
        for i, (r, s) in enumerate(points[:num])
    )


def make_base(objectives, z=0.15, noise=NOISE) -> Offspring:
    num = len(objectives)
    return make_offspring(objectives, BASE_POLICY, np.full(num, z), noise=noise)


def make_offspring(objectives, policy, z, *, parent=None, weights=None, noise=0.0, generation=-1):
    num = len(objectives)
    scale = np.array([o.ideal - o.reference for o in objectives])
    return Offspring(
        policy=policy,
        parent=parent,
        weights=np.full(num, 1 / num) if weights is None else weights,
        returns=from_z(z, objectives),
        std_error=noise * scale,
        generation=generation,
    )


class Toy:
    """Trains tasks of an `Evolution` on the sphere; noise is keyed by (seed, generation, slot)."""

    def __init__(self, objectives, seed=0, noise=NOISE, base_z=0.15):
        self.objectives, self.seed, self.noise = objectives, seed, noise
        self.true_z = {BASE_POLICY: np.full(len(objectives), base_z)}

    def train(self, generation, evolution=None) -> list[Offspring]:
        offspring = []
        for slot, task in enumerate(generation.tasks):
            rng = np.random.default_rng([self.seed, generation.index, slot])
            parts = evolution.ingredients(generation)[slot] if evolution else {task.policy: 1.0}
            z = sum(share * self.true_z[name] for name, share in parts.items())
            way = task.weights / np.linalg.norm(task.weights) - z
            distance = np.linalg.norm(way)
            if generation.num_iterations > 0:
                z = z + way * STEP * np.tanh(distance / STEP) / max(distance, 1e-12)
            policy = policy_id(generation.index, slot)
            self.true_z[policy] = z
            noisy = z + self.noise * rng.normal(size=z.size)
            offspring.append(
                make_offspring(
                    self.objectives,
                    policy,
                    noisy,
                    parent=task.policy,
                    weights=task.weights,
                    noise=self.noise,
                    generation=generation.index,
                )
            )
        return offspring

    def true_archive_z(self, evolution) -> np.ndarray:
        return np.array([self.true_z[member.policy] for member in evolution.archive])


def run(evolution, toy):
    """Runs to the end; yields after each generation."""
    while (generation := evolution.ask()) is not None:
        evolution.tell(toy.train(generation, evolution))
        yield generation
