"""The stopwatch: work and overhead, seconds per picture, and the time left."""

from __future__ import annotations

import pytest

from ddpo.cost import stopwatch


@pytest.fixture(name="clock")
def _clock(monkeypatch):
    """Sets the time: clock(3.0)."""
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, seconds)


def test_only_time_inside_of_a_part_is_work(clock):
    watch = stopwatch.Stopwatch()
    for begin, end in ((1.0, 4.0), (5.0, 6.0)):
        clock(begin)
        with watch.part("sampling", 1):
            clock(end)
    clock(10.0)
    assert watch.rest == pytest.approx(6.0)
    assert watch.overhead_fraction == pytest.approx(0.6)


def test_work_that_fails_counts(clock):
    watch = stopwatch.Stopwatch()

    def fail():
        with watch.part("sampling", 1):
            clock(1.0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    clock(4.0)
    assert watch.overhead_fraction == pytest.approx(0.75)


def test_a_picture_takes_what_the_last_parts_took(clock):
    watch = stopwatch.Stopwatch()
    assert watch.seconds_per_image("sampling") is None
    with watch.part("sampling", 10):
        clock(20.0)
    assert watch.seconds_per_image("sampling") == pytest.approx(2.0)
    for begin in range(20, 420, 10):
        clock(begin)
        with watch.part("sampling", 10):
            clock(begin + 10.0)
    assert watch.seconds_per_image("sampling") == pytest.approx(1.0, rel=1e-3)
    assert watch.images("sampling") == 410
    assert watch.images("updating") == 0


def test_a_part_that_runs_counts_as_far_as_it_is_done(clock):
    watch = stopwatch.Stopwatch()
    with watch.part("evaluating", 100):
        clock(30.0)
        assert watch.images("evaluating", 0.5) == 50
        assert watch.seconds_per_image("evaluating", 0.5) == pytest.approx(0.6)
        assert watch.images("sampling", 0.5) == 0
        assert watch.rest == pytest.approx(0.0)
