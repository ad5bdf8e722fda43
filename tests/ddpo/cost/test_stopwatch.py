"""What counts as work, and what is left."""

from __future__ import annotations

import pytest

from ddpo.cost import stopwatch


def test_only_time_inside_is_work(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 5.0, 6.0, 10.0])  # made, in, out, in, out, asked
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clock))
    watch = stopwatch.Stopwatch()
    for _ in range(2):
        with watch:
            pass
    assert watch.overhead_fraction == pytest.approx(0.6)


def test_work_that_fails_counts(monkeypatch):
    clock = iter([0.0, 0.0, 1.0, 4.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clock))
    watch = stopwatch.Stopwatch()
    with pytest.raises(RuntimeError), watch:
        raise RuntimeError
    assert watch.overhead_fraction == pytest.approx(0.75)
