"""The `taste` command: a quiz on a run's or a model's pictures, and the page that asks it."""

from __future__ import annotations

import webbrowser
from typing import TYPE_CHECKING, Any

from ddpo.files import check_writable
from ddpo.rewards import EMOJI_CLIP
from ddpo.rewards.clip import load_clip
from front.errors import ChoiceError, FrontError
from front.settings import device_of
from front.taste.page import Page
from front.taste.quiz import Quiz, read_answers
from front.taste.source import Source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def open_quiz(
    source: str,
    out: Path,
    *,
    prompts: str = "",
    clip: str = "",
    seed: int = 0,
    model: str = "",
    device: str = "",
    rows_per_pass: int = 0,
    changes: dict[str, Any] | None = None,
) -> Quiz:
    """A quiz that continues the answers of a folder.

    Args:
        source: run directory or model, see `Source.open`, as are the others.
        out: the folder.
        prompts: see above.
        clip: that the taste is learnt on; if empty, the CLIP of the answers, or the embedded one.
        seed: of what is drawn by chance.
        model: see above.
        device: see above.
        rows_per_pass: see above.
        changes: see above.

    Raises:
        UserError: if the answers, the model or the CLIP cannot be used.
    """
    clip = clip or read_answers(out).clip or EMOJI_CLIP.source
    try:
        check_writable(out)
    except OSError as error:
        raise FrontError(f"{out} cannot be written to: {error}") from error
    try:
        tower = load_clip(clip, device_of(device), "float32")
    except (OSError, ValueError) as error:
        raise ChoiceError(f"--clip={clip} cannot be loaded: {error}") from error
    pictures = Source.open(
        source, prompts, model=model, device=device, rows_per_pass=rows_per_pass, changes=changes
    )
    return Quiz(out, tower, clip, pictures.draw, seed)


def ask(
    source: str,
    out: Path,
    *,
    port: int = 0,
    browse: bool = False,
    say: Callable[[str], object] = print,
    **options: Any,
) -> None:
    """Serve the page of a quiz until somebody interrupts.

    Args:
        source: see `open_quiz`, as are the options.
        out: see above.
        port: to listen on; 0 takes a free one.
        browse: whether to open a browser.
        say: shows a line.
        options: see above.

    Raises:
        UserError: if something cannot be used, or the port is taken.
    """
    page = Page(open_quiz(source, out, **options), port)
    try:
        say(f"asking on {page.address} (Ctrl+C ends); the answers are in {out}")
        if browse:
            webbrowser.open(page.address)
        page.wait()
    finally:
        page.close()
