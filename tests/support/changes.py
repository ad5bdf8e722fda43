"""Histories of a known response, and predictions from them."""

import numpy as np

from morl.history import Changes


def changes_of(function, weights, before=None, noise=0.0):
    rng = np.random.default_rng(0)
    before = np.full(weights.shape, 0.5) if before is None else before
    change = function(weights) + noise * rng.normal(size=weights.shape)
    return Changes(before=before, weights=weights, change=change)


def predict(predictor, history, queries, parent=0.5, num_neighbours=50):
    parents = np.full((1, queries.shape[1]), parent)
    owner = np.zeros(len(queries), dtype=np.intp)
    return predictor(history, parents, owner, queries, num_neighbours)
