"""Asks which of two pictures somebody likes better, and learns while it asks.

Two pictures of one prompt are asked about, each picture once. The first pairs, and every third one
after them, are drawn by chance: they show how good the taste is on any pair. The others are those
of which most is learnt (`information`).
"""

from __future__ import annotations

import io
import math
import threading
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from config.settings.errors import UserError
from ddpo.files import make_folder, write_atomic
from ddpo.rewards.answers import CHANCE, CHOICES, PICTURES, UNCERTAINTY, Answer, Answers, Shown
from ddpo.rewards.preferences import fit, information
from ddpo.rewards.taste import as_numbers, embed, embed_answers, learn
from front.errors import ChoiceError, FrontError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ddpo.rewards.clip import ClipTower
    from ddpo.rewards.preferences import Array
    from ddpo.rewards.taste import Learnt
    from front.taste.source import Drawn

PROMPTS_PER_DRAW, PICTURES_PER_PROMPT = 4, 4
_POOL = 64  # pictures to choose pairs from; older ones make room
_REFILL = 48  # fewer, and more are drawn
_BY_CHANCE_FIRST, _BY_CHANCE_EVERY = 10, 3
_CHECK_EVERY = 10  # answers, from the sixtieth on
_FEW, _MANY = 60, 400  # answers that are asked for, at least and at most
_Z = 2.5  # standard errors above chance that the accuracy should have


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """A picture that may be asked about: as a PNG file, with its embedding (D,)."""

    shown: Shown
    png: bytes
    embed: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """A question."""

    left: Candidate
    right: Candidate
    asked_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How much has been learnt.

    Attributes:
        num_answers: so far.
        num_wanted: about how many are enough.
        accuracy: part of the choices that fits of the others predict; None while it is too early.
        by_chance: the same over the pairs drawn by chance.
        confidence: how sure these predictions were, on average.
        is_ready: whether the taste is better than chance, and so can be trained towards.
    """

    num_answers: int
    num_wanted: int
    accuracy: float | None
    by_chance: float | None
    confidence: float | None
    is_ready: bool


class Quiz:
    """One person's questions and answers; safe to use from several threads.

    Args:
        folder: of the answers; made with the first of them, continued if it is there.
        clip: that embeds pictures.
        clip_source: where it comes from, as the answers record it.
        draw: more pictures.
        seed: of what is chosen by chance.

    Raises:
        UserError: if the folder has answers that cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        clip: ClipTower,
        clip_source: str,
        draw: Callable[[np.random.Generator, int, int], list[Drawn]],
        seed: int = 0,
    ) -> None:
        self.folder = folder
        answers = read_answers(folder)
        self.answers = replace(answers, clip=clip_source)
        self._clip, self._draw = clip, draw
        self.embeds = embed_answers(folder, self.answers, clip)
        self._rng = np.random.default_rng([seed, len(self.answers.answers)])
        self._draw_rng = np.random.default_rng([seed, len(self.answers.answers), 1])
        self._pool: list[Candidate] = []
        self._pair: Pair | None = None
        self._undone: list[Pair] = []
        self._learnt: Learnt | None = None
        self._problem = ""
        self._is_closed = False
        self._changed = threading.Condition()
        self._learn()

    def pair(self) -> Pair:
        """The question; waits while no pictures are there.

        Raises:
            FrontError: if drawing has failed, or the quiz has ended.
        """
        with self._changed:
            while self._pair is None:
                self._pair = self._undone.pop() if self._undone else self._choose()
                if self._pair is None:
                    if self._problem or self._is_closed:
                        raise FrontError(self._problem or "the quiz has ended")
                    self._changed.wait()
            return self._pair

    def answer(self, number: int, choice: str) -> None:
        """Take an answer and save it.

        Args:
            number: of answers that were there when the question was shown: an answer that comes
                twice counts once.
            choice: "left", "right" or "neither".

        Raises:
            ChoiceError: if there is no such choice.
            FrontError: if it cannot be saved.
        """
        if choice not in CHOICES:
            raise ChoiceError(f"{choice!r} is not {', '.join(CHOICES)}")
        with self._changed:
            pair = self._pair
            if pair is None or number != len(self.answers.answers):
                return
            answer = Answer(
                left=pair.left.shown,
                right=pair.right.shown,
                choice=choice,
                asked_by=pair.asked_by,
            )
            answers = replace(self.answers, answers=(*self.answers.answers, answer))
            try:
                make_folder(self.folder / PICTURES)
                for each in (pair.left, pair.right):
                    write_atomic(self.folder / PICTURES / each.shown.file, each.png)
                answers.write(self.folder)
            except OSError as error:
                raise FrontError(f"{self.folder} cannot be written to: {error}") from error
            self.answers, self._pair = answers, None
            self.embeds |= {each.shown.file: each.embed for each in (pair.left, pair.right)}
            self._learn()
            self._changed.notify_all()

    def undo(self) -> None:
        """Take the last answer back and ask again.

        Raises:
            FrontError: if that cannot be saved.
        """
        with self._changed:
            if not self.answers.answers:
                return
            *rest, last = self.answers.answers
            files = [self.folder / PICTURES / each.file for each in (last.left, last.right)]
            try:
                left, right = (
                    Candidate(shown=shown, png=file.read_bytes(), embed=self.embeds[shown.file])
                    for shown, file in zip((last.left, last.right), files, strict=True)
                )
                answers = replace(self.answers, answers=tuple(rest))
                answers.write(self.folder)
                if not {last.left.file, last.right.file} & {
                    shown.file for each in rest for shown in (each.left, each.right)
                }:
                    for file in files:
                        file.unlink()
            except OSError as error:
                raise FrontError(f"{self.folder} cannot be changed: {error}") from error
            if self._pair is not None:
                self._undone.append(self._pair)
            self._pair = Pair(left=left, right=right, asked_by=last.asked_by)
            self.answers = answers
            self._learn()

    def progress(self) -> Progress:
        """How much has been learnt."""
        with self._changed:
            return progress(self.answers, self._learnt)

    @property
    def is_short(self) -> bool:
        """Whether more pictures should be drawn."""
        return len(self._pool) < _REFILL

    def fill(self) -> None:
        """Draw more pictures to ask about."""
        drawn = self._draw(self._draw_rng, PROMPTS_PER_DRAW, PICTURES_PER_PROMPT)
        embeds = embed(self._clip, [each.picture for each in drawn])
        new = [
            Candidate(shown=each.shown, png=_png(each), embed=row)
            for each, row in zip(drawn, embeds, strict=True)
        ]
        with self._changed:
            self._pool = [*self._pool, *new][-_POOL:]
            self._changed.notify_all()

    def keep_filled(self) -> None:
        """Draw whenever pictures run short, until `close`; for a thread of its own."""
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_closed or self.is_short)
                    if self._is_closed:
                        return
                self.fill()
        except Exception as error:
            with self._changed:
                known = isinstance(error, UserError)
                self._problem = str(error) if known else f"drawing failed: {error!r}"
                self._changed.notify_all()
            if not known:
                raise

    def close(self) -> None:
        """End `keep_filled` and whoever waits for a pair."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _choose(self) -> Pair | None:
        """The next question, whose pictures leave the pool; None if the pool has no two alike."""
        pairs = [
            pair
            for pair in combinations(self._pool, 2)
            if pair[0].shown.prompt == pair[1].shown.prompt
        ]
        if not pairs:
            return None
        number = len(self.answers.answers)
        is_chance = (
            self._learnt is None
            or number < _BY_CHANCE_FIRST
            or (number - _BY_CHANCE_FIRST) % _BY_CHANCE_EVERY == 0
        )
        if is_chance or self._learnt is None:
            index = int(self._rng.integers(len(pairs)))
        else:
            differences = np.stack([left.embed - right.embed for left, right in pairs])
            index = int(information(self._learnt.fit, differences).argmax())
        left, right = (pairs[index][i] for i in self._rng.permutation(2))
        self._pool = [each for each in self._pool if each is not left and each is not right]
        self._changed.notify_all()
        return Pair(left=left, right=right, asked_by=CHANCE if is_chance else UNCERTAINTY)

    def _learn(self) -> None:
        """Fit again; how good the fit is takes longer, and is measured less often later on."""
        number = len(self.answers.answers)
        if not self.answers.num_choices:
            self._learnt = None
        elif self._learnt is None or number < _FEW or number % _CHECK_EVERY == 0:
            self._learnt = learn(self.answers, self.embeds)
        else:
            self._learnt = replace(self._learnt, fit=fit(*as_numbers(self.answers, self.embeds)))


def read_answers(folder: Path) -> Answers:
    """The answers of a folder; none if it is not there yet.

    Raises:
        UserError: if it holds something else, or answers that cannot be read.
    """
    if not folder.exists():
        return Answers(clip="")
    if folder.is_dir() and not any(folder.iterdir()):
        return Answers(clip="")
    return Answers.read(folder)


def progress(answers: Answers, learnt: Learnt | None) -> Progress:
    """See `Progress`."""
    is_early = learnt is None or answers.num_choices < _BY_CHANCE_FIRST
    checked = None if learnt is None or is_early else learnt.checked
    return Progress(
        num_answers=len(answers.answers),
        num_wanted=num_wanted(checked.accuracy if checked else None),
        accuracy=checked.accuracy if checked else None,
        by_chance=learnt.by_chance.accuracy if learnt and checked else None,
        confidence=checked.confidence if checked else None,
        is_ready=learnt is not None and learnt.is_better_than_chance,
    )


def num_wanted(accuracy: float | None) -> int:
    """About how many answers make an accuracy clearly better than chance: in tens, 60 to 400.

    n with (accuracy - 1/2) = 2.5 sqrt(1/4 / n).

    >>> num_wanted(None), num_wanted(0.9), num_wanted(0.6), num_wanted(0.4)
    (60, 60, 160, 400)
    """
    if accuracy is None:
        return _FEW
    if accuracy <= 0.5:
        return _MANY
    needed = (_Z / 2 / (accuracy - 0.5)) ** 2
    return min(_MANY, max(_FEW, 10 * math.ceil(needed / 10)))


def _png(drawn: Drawn) -> bytes:
    file = io.BytesIO()
    drawn.picture.save(file, format="png")
    return file.getvalue()


def as_state(quiz: Quiz) -> dict[str, Any]:
    """The question and the progress, as the page shows them."""
    pair, known = quiz.pair(), quiz.progress()
    return {
        "number": known.num_answers,
        "prompt": pair.left.shown.prompt,
        "left": pair.left.shown.file,
        "right": pair.right.shown.file,
        "asked_by": pair.asked_by,
        "wanted": known.num_wanted,
        "accuracy": known.accuracy,
        "by_chance": known.by_chance,
        "confidence": known.confidence,
        "is_ready": known.is_ready,
    }
