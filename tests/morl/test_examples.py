import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "module", ["indicators", "objectives", "pareto", "prediction", "selection", "types", "weights"]
)
def test_the_examples_of_the_docstrings_hold(module):
    result = doctest.testmod(importlib.import_module(f"morl.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
