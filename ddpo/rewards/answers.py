"""The answers of one person: a folder with `taste.json` and the pictures that were compared.

`taste.json` has every answer, in the order in which they were given, with the sources of both
pictures. `pictures/` has the pictures as they were shown.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from config.settings.errors import UserError
from ddpo.files import plain_name, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILE, PICTURES = "taste.json", "pictures"
LEFT, RIGHT, NEITHER = "left", "right", "neither"
CHOICES = {LEFT: 1.0, RIGHT: 0.0, NEITHER: 0.5}  # as `ddpo/rewards/preferences.py` counts them
CHANCE, UNCERTAINTY = "chance", "uncertainty"
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A picture that was shown, and its source.

    Attributes:
        file: its name in `pictures/`.
        model: the base model: hub id, folder or name.
        run: the run of the policy; empty for pictures of a model alone.
        policy: the policy that drew it; "base" for the base model.
        prompt: the prompt that it was drawn for.
        seed: of its noise.
        sampler: settings, under diffusers' names.
    """

    file: str
    model: str
    run: str
    policy: str
    prompt: str
    seed: int
    sampler: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A choice between two pictures of one prompt.

    Attributes:
        left: the picture on the left.
        right: the picture on the right.
        choice: "left", "right" or "neither".
        asked_by: "chance", or "uncertainty" for a pair chosen because its answer would teach much.
    """

    left: Shown
    right: Shown
    choice: str
    asked_by: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Answer:
        """An answer as `taste.json` has it.

        Raises:
            KeyError, TypeError, ValueError: if something is missing or wrong.
        """
        left, right = (Shown(**data[side]) for side in (LEFT, RIGHT))
        plain_name(left.file)
        plain_name(right.file)
        if data["choice"] not in CHOICES:
            raise ValueError(f"choice={data['choice']!r} must be {', '.join(CHOICES)}")
        return cls(
            left=left, right=right, choice=data["choice"], asked_by=data.get("asked_by", CHANCE)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """All answers of one person.

    Attributes:
        clip: whose embeddings the taste is a function of, see `load_clip`.
        answers: in the order in which they were given.
    """

    clip: str
    answers: tuple[Answer, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Answers:
        """Read the answers in a folder.

        Raises:
            UserError: if the file is missing or damaged, naming what is wrong.
        """
        path = folder / FILE
        try:
            return cls._of(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"no entry {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path} is damaged: {what}") from error

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> Answers:
        if data["format"] != _FORMAT:
            raise ValueError(f"format {data['format']!r} is not {_FORMAT}")
        answers = tuple(Answer.from_json(each) for each in data["answers"])
        return cls(clip=str(data["clip"]), answers=answers)

    def write(self, folder: Path) -> None:
        """Write them as the folder's `taste.json`.

        Raises:
            OSError: if that is impossible.
        """
        answers = [dataclasses.asdict(answer) for answer in self.answers]
        write_json(folder / FILE, {"format": _FORMAT, "clip": self.clip, "answers": answers})

    @property
    def num_choices(self) -> int:
        """How many are left or right."""
        return sum(answer.choice != NEITHER for answer in self.answers)

    @property
    def groups(self) -> list[int]:
        """A group number per answer: the same for answers linked by a chain of shared pictures."""
        places: dict[str, int] = {}
        pairs = [
            [places.setdefault(shown.file, len(places)) for shown in (each.left, each.right)]
            for each in self.answers
        ]
        left, right = np.array(pairs, dtype=int).reshape(-1, 2).T
        links = coo_array((np.ones(len(left)), (left, right)), shape=(len(places), len(places)))
        labels = connected_components(links, directed=False)[1] if places else np.empty(0)
        return [int(label) for label in labels[left]]
