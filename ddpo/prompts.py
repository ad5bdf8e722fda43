"""Prompt sets by name or file, their split into roles, and balanced, keyed draws from them."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config.settings.files import is_file
from ddpo.assets import ASSETS
from ddpo.prompt_files import Prompt, read_prompt_file
from ddpo.seeding import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from config.base import PromptSettings

ROLES = ("train", "selection", "report")
MIN_TO_SPLIT = 64  # smaller sets are not split: their parts would be too small to judge by
_NUM_SHOWN, _MAX_SHOWN = 3, 60  # prompts shown per role, and characters per prompt
_MAX_HELD_OUT = 128  # prompts of the selection part, and of the report part


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSet:
    """A row of the table of prompt sets.

    Attributes:
        prompts: returns them.
        content: a description in a few words.
    """

    prompts: Callable[[], Iterable[str]]
    content: str


def _lines(name: str) -> list[str]:
    return (ASSETS / "prompts" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def _animal_words() -> list[dict[str, str]]:
    """DDPO's animals as noun, article and plural: English has no rule for "an ant", "four deer"."""
    with (ASSETS / "prompts" / "animal_words.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _nouns_activities() -> Iterable[str]:
    activities = _lines("activities")
    return [f"{a['article']} {a['noun']} {does}" for a in _animal_words() for does in activities]


def _counting() -> Iterable[Prompt]:
    for animal in _animal_words():
        plural = animal["plural"]
        for number in ("two", "three", "four", "five", "six", "seven", "eight", "nine"):
            questions = [f"How many {plural} does the image show?", "Which animal does it show?"]
            answers = [number, animal["noun"]]
            yield Prompt(f"{number} {plural}", {"questions": questions, "answers": answers})


def _unseen() -> Iterable[str]:
    """What no policy of the default run learns on; the first prompts are of all kinds."""
    captions = [*_lines("emoji_report"), *_lines("emoji_things")]
    stride = 28  # prime to their number: every caption comes once
    return [captions[stride * index % len(captions)] for index in range(len(captions))]


PROMPT_SETS: dict[str, PromptSet] = {
    "varied": PromptSet(
        prompts=lambda: _lines("varied"),
        content="people, places, things, styles, counts, relations, lettering, ideas",
    ),
    "tags": PromptSet(
        prompts=lambda: _lines("tags"),
        content="tags, the way to prompt models that derive from SDXL",
    ),
    "emoji_animals": PromptSet(
        prompts=lambda: _lines("emoji_animals"), content="animals that the embedded model knows"
    ),
    "emoji_report": PromptSet(
        prompts=lambda: _lines("emoji_report"), content="16 more of these animals, for reports"
    ),
    "emoji_unseen": PromptSet(
        prompts=_unseen,
        content="these 16, and 37 foods, plants, things and faces that emoji64-sd knows",
    ),
    "simple_animals": PromptSet(
        prompts=lambda: _lines("emoji_animals"), content="DDPO's 45 common animals"
    ),
    "other_animals": PromptSet(
        prompts=lambda: _lines("emoji_report"), content="16 animals that are none of the 45"
    ),
    "imagenet_all": PromptSet(
        prompts=lambda: _lines("imagenet_classes"), content="the ImageNet class names"
    ),
    "imagenet_animals": PromptSet(
        prompts=lambda: _lines("imagenet_classes")[:398],
        content="ImageNet's animals, classes 0 to 397",
    ),
    "imagenet_dogs": PromptSet(
        prompts=lambda: _lines("imagenet_classes")[151:269],
        content="ImageNet's dogs, classes 151 to 268",
    ),
    "nouns_activities": PromptSet(
        prompts=_nouns_activities, content='"an ant riding a bike": 45 animals x 3 activities'
    ),
    "counting": PromptSet(
        prompts=_counting,
        content='"two cats": 45 animals x two to nine, with questions and answers',
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSplit:
    """The prompts of a run by role, and what its user should know about them.

    Attributes:
        train: prompts that the agents learn on.
        selection: prompts that the search judges policies on.
        report: prompts that the published front is measured on.
        notes: sentences on roles that share prompts, and on prompts of files that are not used.
    """

    train: tuple[str, ...]
    selection: tuple[str, ...]
    report: tuple[str, ...]
    notes: tuple[str, ...]

    def summary(self) -> list[str]:
        """One line per role: the number of prompts, and the first of them."""
        return [f"{role} prompts: {_shown(getattr(self, role))}" for role in ROLES]

    def digests(self) -> dict[str, str]:
        """SHA-256 of each role's prompts with their metadata, in order."""
        return {role: _digest(getattr(self, role)) for role in ROLES}


def load_prompts(name: str) -> tuple[str, ...]:
    """Distinct prompts of a set that ships with the project, or of a file.

    Raises:
        ValueError: if there is no such set or file, it is empty, or the file is not understood (see
            `read_prompt_file`).
    """
    return _read(name)[0]


def _read(name: str) -> tuple[tuple[str, ...], str]:
    """The distinct prompts of a set, and a sentence on entries of a file that were left out.

    Raises:
        ValueError: see `load_prompts`.
    """
    path = Path(name)
    if name in PROMPT_SETS:
        found = [*PROMPT_SETS[name].prompts()]
    elif is_file(path):
        found = [*read_prompt_file(path)]
    else:
        close = difflib.get_close_matches(name, PROMPT_SETS, n=1)
        hint = f"did you mean {close[0]}? Files" if close else "files"
        raise ValueError(
            f"prompt set {name!r} is neither a file nor one of {', '.join(PROMPT_SETS)}; {hint} "
            f"are looked for from {Path.cwd()}"
        )
    prompts = tuple(dict.fromkeys(prompt for prompt in found if prompt))
    if not prompts:
        raise ValueError(f"prompt set {name!r} holds no prompt; write one per line")
    empty = found.count("")
    counts = {"repeated": len(found) - empty - len(prompts), "empty": empty}
    dropped = ", ".join(f"{count} {why}" for why, count in counts.items() if count)
    is_told = dropped and name not in PROMPT_SETS
    return prompts, f"{name}: left out of {len(found)} prompts: {dropped}" if is_told else ""


def prompt_problems(flat: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each prompt set of flat settings that cannot be loaded."""
    for setting, name in flat.items():
        section, _, role = setting.partition(".")
        if section == "prompts" and (name or role == "train"):  # empty: same as train
            try:
                load_prompts(name)
            except ValueError as error:
                yield f"{setting}: {error}"


def _shown(prompts: Sequence[str]) -> str:
    """The number of prompts and the first of them in quotes, always on one line.

    >>> _shown(["cat", "dog", "fox", "owl"])
    "4, the first 'cat', 'dog', 'fox'"
    """
    first = [
        repr(str(each) if len(each) <= _MAX_SHOWN else f"{each[:_MAX_SHOWN]}...")
        for each in prompts[:_NUM_SHOWN]
    ]
    return f"{len(prompts)}, the first {', '.join(first)}"


def _digest(prompts: Sequence[str]) -> str:
    content = [(prompt, getattr(prompt, "metadata", {})) for prompt in prompts]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def split_prompts(settings: PromptSettings) -> PromptSplit:
    """The prompts of each role; roles that name the same set get disjoint parts of it.

    Each held-out part is an eighth of the set, at most 128 prompts, and the same in every run. A
    set of fewer than 64 prompts is shared instead. The roles then differ only in their noise.

    Raises:
        ValueError: see `load_prompts`.
    """
    names = {role: getattr(settings, role) or settings.train for role in ROLES}
    parts: dict[str, tuple[str, ...]] = {}
    notes = []
    for name in dict.fromkeys(names.values()):
        roles = [role for role in ROLES if names[role] == name]
        prompts, left_out = _read(name)
        notes += [left_out] if left_out else []
        if len(roles) > 1 and len(prompts) < MIN_TO_SPLIT:
            parts |= dict.fromkeys(roles, prompts)
            notes.append(
                f"{' and '.join(roles)} share the {len(prompts)} prompts of {name!r}, too few to "
                f"split (below {MIN_TO_SPLIT}); their noise differs"
            )
        else:
            parts |= _disjoint(prompts, roles)
    seen = set(parts["train"]) & set(parts["report"])
    if seen and names["train"] != names["report"]:
        notes.append(f"{len(seen)} of {len(parts['report'])} report prompts are trained on as well")
    return PromptSplit(**parts, notes=tuple(notes))


def _disjoint(prompts: Sequence[str], roles: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Disjoint parts of a set, each in the set's order; the first role gets the rest."""
    size = min(_MAX_HELD_OUT, len(prompts) // 8)
    order = np.random.default_rng(Stream.SPLIT.key()).permutation(len(prompts))
    cuts = [len(prompts) - size * held_out for held_out in range(len(roles) - 1, 0, -1)]
    return {
        role: tuple(prompts[i] for i in sorted(part))
        for role, part in zip(roles, np.split(order, cuts), strict=True)
    }


def spread(prompts: Sequence[str], count: int) -> Sequence[str]:
    """At most `count` prompts, evenly spaced over the set, since neighbours are often alike.

    >>> spread("abcdefg", 3)
    ('a', 'c', 'e')
    """
    if count >= len(prompts):
        return prompts
    return tuple(prompts[i * len(prompts) // count] for i in range(count))


def draw_prompts(prompts: Sequence[str], num_prompts: int, draw: int, seed: int) -> list[str]:
    """The prompts of iteration `draw`, taken one after another from shuffled rounds of the set.

    Every prompt comes once per round, so all prompts are trained on equally often.

    Args:
        prompts: the set.
        num_prompts: how many to draw.
        draw: index of the iteration.
        seed: keys the shuffles.
    """
    out: list[str] = []
    position = draw * num_prompts
    while len(out) < num_prompts:
        number, start = divmod(position + len(out), len(prompts))
        key = Stream.PROMPTS.key(run_seed=seed, round=number)
        order = np.random.default_rng(key).permutation(len(prompts))
        out += [prompts[i] for i in order[start : start + num_prompts - len(out)]]
    return out
