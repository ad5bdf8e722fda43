"""Opens pages in Debian's Chromium, and fails if a page prints to its console or sends requests."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextlib.contextmanager
def launch() -> Iterator[Any]:
    """A browser; if there is none, the test is skipped with the reason."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip("no Chromium found; on Debian: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_FLAGS))
        yield browser
        browser.close()


@contextlib.contextmanager
def open_page(
    browser: Any, url: str, allowed: tuple[str, ...] = ("file:", "data:", "blob:")
) -> Iterator[Any]:
    """A page in a fresh profile; fails afterwards on console messages and forbidden requests.

    Args:
        browser: from `launch`.
        url: of the page.
        allowed: prefixes of addresses that may be requested.
    """
    problems: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
    page.on("request", lambda request: problems.append(f"request: {request.url}"))
    page.goto(url)
    yield page
    context.close()
    requests = tuple(f"request: {beginning}" for beginning in allowed)
    assert [problem for problem in problems if not problem.startswith(requests)] == []
