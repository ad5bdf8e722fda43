"""The tables in the documentation are made from the code."""

from __future__ import annotations

import pytest

from tests.support.paths import ROOT
from tools.doc_tables import PAGES, with_tables


@pytest.mark.slow  # it measures SDXL, operation by operation
def test_the_tables_in_the_documentation_are_those_of_the_code():
    """Mend them with `python -m tools.doc_tables`. In one process: pages share what is measured."""
    for page in PAGES:
        assert with_tables(page) == (ROOT / page).read_text(), page
