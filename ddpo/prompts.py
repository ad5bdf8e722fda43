"""Prompt sets, and the balanced, keyed draws from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ddpo.assets import ASSETS

if TYPE_CHECKING:
    from collections.abc import Sequence

PROMPT_SETS: dict[str, Path] = {
    path.stem: path for path in sorted((ASSETS / "prompts").glob("*.txt"))
}


def load_prompts(name: str) -> tuple[str, ...]:
    """Prompts of a set that ships with the project, or of a text file with one prompt a line.

    Raises:
        ValueError: if there is no such set or file, or it holds no prompt.
    """
    path = PROMPT_SETS.get(name, Path(name))
    if not path.is_file():
        raise ValueError(
            f"prompt set {name!r} is neither a file nor one of {', '.join(PROMPT_SETS)}"
        )
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    prompts = tuple(dict.fromkeys(line for line in lines if line))
    if not prompts:
        raise ValueError(f"prompt set {name!r} holds no prompt; write one a line")
    return prompts


def draw_prompts(prompts: Sequence[str], num_prompts: int, draw: int, seed: int) -> list[str]:
    """The prompts of the draw-th iteration: a walk through endless shuffled rounds of the set.

    Within a round every prompt comes once, so all prompts are trained on equally often.

    Args:
        prompts: the set.
        num_prompts: how many to draw.
        draw: index of the iteration.
        seed: keys the shuffles.
    """
    out: list[str] = []
    position = draw * num_prompts
    while len(out) < num_prompts:
        shuffle, start = divmod(position + len(out), len(prompts))
        order = np.random.default_rng([seed, shuffle]).permutation(len(prompts))
        out += [prompts[i] for i in order[start : start + num_prompts - len(out)]]
    return out
