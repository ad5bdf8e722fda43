"""The settings as they are declared, and the recipes that change them."""

from __future__ import annotations

import doctest

import pytest

from config import base
from config.settings import declared, derived, flat
from config.settings.declared import OnResume, declared_in, defaults_of
from run.command_line import read_settings
from tests.support.paths import ROOT


def test_the_examples_of_the_docstrings_hold():
    results = [doctest.testmod(module) for module in (declared, derived, flat)]
    assert sum(result.attempted for result in results) >= 3
    assert not any(result.failed for result in results)


def test_a_declaration_says_type_limit_default_and_what_a_resumed_run_may_do():
    rows = declared_in(base.Settings)["sample.rows_per_pass"]
    assert (rows.kind, rows.default, rows.on_resume) == (int, 128, OnResume.ROUNDING)
    assert rows.limits[0].problem("rows", 0) == "rows=0 must be at least 1"
    assert declared_in(base.Settings)["seed"].on_resume is OnResume.FORCED
    assert "evolution.seed" not in defaults_of(base.Settings)  # a copy of the run's


def test_the_defaults_are_those_of_the_configuration_and_typed_as_declared():
    settings, defaults = read_settings([]), defaults_of(base.Settings)
    assert dict(flat.flatten(base.get_config().to_dict())) == defaults
    typed = settings.flat()
    assert typed.pop("evolution.seed") == settings.seed
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in typed.items()} == defaults


@pytest.mark.parametrize(
    "recipe",
    [path for path in sorted((ROOT / "config").glob("*.py")) if "def get_" in path.read_text()],
    ids=lambda path: path.stem,
)
def test_every_recipe_is_valid(recipe):
    settings = read_settings([f"--config={recipe}"])
    assert settings.evolution.num_generations > 0


def test_there_are_at_most_85_settings():
    assert len(defaults_of(base.Settings)) <= 85
