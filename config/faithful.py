"""DDPO and PGMORL as published, on the embedded model: what everything else is compared with.

Every denoising step that has noise is trained. Agents learn from pictures of as many steps as they
are judged by. The warm-up trains all agents along even weights. This project's units are kept:
rewards are normalised before they are weighted, and the search works in z. The learning rate is the
best of a sweep; the number of images is as in config/ddpo.py. docs/evidence.md says what each
departure is worth.
"""

import ml_collections

from config import ddpo


def get_config() -> ml_collections.ConfigDict:
    """`clip_alignment` against `jpeg_compressibility`."""
    config = ddpo.get_config()
    config.sample.num_steps = 10
    config.evaluation.num_steps = 0
    config.train.update_rule = "ddpo"
    config.train.max_sensitivity = 0.0
    config.train.learning_rate = 4e-2
    config.advantage.normalisation = "frozen"
    config.agents.kind = "population"
    config.evolution.start = "even_weights"
    config.evolution.strategy = "prediction_guided"
    config.evolution.warmup_generations = 3
    config.evolution.evolutionary_generations = 6
    return config
