"""Every random draw has a name of its own."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
import pytest

from ddpo import seeding
from ddpo.seeding import Stream
from morl.evolution import Evolution
from tests.support.search import make_base, make_objectives, make_settings


def filled(stream):
    """Small keys of a stream as numpy sees them: zeros at the end are no difference."""
    names = [word for word in stream.value if isinstance(word, str)]
    for values in itertools.product(range(3), repeat=len(names)):
        key = list(stream.key(**dict(zip(names, values, strict=True))))
        while key and key[-1] == 0:
            key.pop()
        yield tuple(key)


# Pictures' seeds are hashes: a small one is as likely as any. Rounds of prompts share keys with the
# noise of the first pictures, which does no harm: only they shuffle indices.
LISTED = [each for each in Stream if each not in {Stream.ADDED_NOISE, Stream.PROMPTS, Stream.SPLIT}]


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(LISTED, 2)))
def test_no_two_streams_share_a_key(one, other):
    assert not set(filled(one)) & set(filled(other))


def test_the_search_draws_from_the_stream_that_is_named_here():
    """`morl/` does not import this list but must follow it."""
    settings = make_settings(strategy="random", warmup_generations=0, seed=5)
    objectives = make_objectives(2)
    evolution = Evolution(settings, objectives, make_base(objectives))
    rng = np.random.default_rng(Stream.SEARCH.key(run_seed=5, generation=0))
    rng.integers(1, size=settings.num_agents)
    expected = rng.dirichlet(np.ones(2), size=settings.num_agents)
    np.testing.assert_allclose([task.weights for task in evolution.ask().tasks], expected)


def test_numpy_fills_short_keys_with_zeros():
    """The reason why streams differ in numbers that are not zero."""
    draws = [np.random.default_rng(key).random() for key in ((1, 2, 3), (1, 2, 3, 0))]
    assert draws[0] == draws[1]


def test_a_missing_or_foreign_word_is_refused():
    with pytest.raises(TypeError, match="NOISE is keyed by"):
        Stream.NOISE.key(run_seed=0, generation=1)
    with pytest.raises(TypeError, match="REPORT is keyed by"):
        Stream.REPORT.seed(run_seed=0, sample=1, agent=2)


def test_the_examples_hold():
    assert doctest.testmod(seeding).failed == 0
