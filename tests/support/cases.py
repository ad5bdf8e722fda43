"""Test cases that try the same property, of which a few are enough every day."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def few(cases: Iterable[Any], always: Collection[Any]) -> list[Any]:
    """Parameters for pytest; those not in `always` run with `-m slow` only.

    Args:
        cases: values, or tuples of values.
        always: some of them.
    """
    cases = list(cases)
    assert set(always) <= set(cases)
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if case in always else pytest.mark.slow,
        )
        for case in cases
    ]
