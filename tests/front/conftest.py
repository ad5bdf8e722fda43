"""A browser for the tests of pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.browser import launch

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", name="browser")
def _browser() -> Iterator[Any]:
    """A headless Chromium."""
    with launch() as browser:
        yield browser
