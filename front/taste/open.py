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
    out: Path, source: Callable[[], Source], *, clip: str = "", seed: int = 0, device: str = ""
) -> Quiz:
    """A quiz that continues the answers of a folder.

    Args:
        out: the folder.
        source: opens what draws the pictures, after all else was found to be right.
        clip: that the taste is learnt on; if empty, the CLIP of the answers, or the embedded one.
        seed: of what is drawn by chance.
        device: where the CLIP runs; empty for a GPU if there is one.

    Raises:
        UserError: if the answers, the CLIP or the source cannot be used.
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
    return Quiz(out, tower, clip, source().draw, seed)


def ask(
    source: str,
    out: Path,
    *,
    clip: str = "",
    seed: int = 0,
    device: str = "",
    port: int = 0,
    browse: bool = False,
    say: Callable[[str], object] = print,
    **options: Any,
) -> None:
    """Serve the page of a quiz until somebody interrupts.

    Args:
        source: run directory or model, see `Source.open`, as are the options.
        out: see `open_quiz`.
        clip: see above.
        seed: see above.
        device: where CLIP and model run; empty for a GPU if there is one.
        port: to listen on; 0 takes a free one.
        browse: whether to open a browser.
        say: shows a line.
        options: see above.

    Raises:
        UserError: if something cannot be used, or the port is taken.
    """
    quiz = open_quiz(
        out,
        lambda: Source.open(source, device=device, **options),
        clip=clip,
        seed=seed,
        device=device,
    )
    page = Page(quiz, port)
    try:
        say(f"asking on {page.address} (Ctrl+C ends); the answers are in {out}")
        if browse:
            webbrowser.open(page.address)
        page.wait()
    finally:
        page.close()
