"""People with a hidden taste who answer `mo_front.py taste`, to see whether it is learnt.

    python -m tools.simulated_people ada emoji-sd --out ada_likes --num_answers 100

The tastes of ada and grace are linear in emoji-clip's embedding, in random directions. Learning
sees only their choices. The same directions are rewards as well, to check what was learnt:
`--config.guards.names=tools/simulated_people.py:ada`.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import expit

from config.settings.files import path
from ddpo.rewards.answers import LEFT, RIGHT
from ddpo.rewards.clip import load_clip
from ddpo.rewards.image_batch import BatchReward
from ddpo.rewards.taste import learn
from front.taste.open import open_quiz
from front.taste.source import Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddpo.rewards.image_batch import ImageBatch
    from front.taste.quiz import Quiz

_CLIP = "emoji-clip"
_STRENGTH = 30.0  # logits per unit of the embedding: pictures of a pair differ by some of them


class Person(BatchReward):
    """The hidden taste of one person, in logits.

    Args:
        seed: of its direction.
        device: where it runs.
    """

    unit = "logit"

    def __init__(self, seed: int, device: torch.device) -> None:
        self._clip = load_clip(_CLIP, device, "float32")
        direction = np.random.default_rng(seed).normal(size=self._clip.model.config.projection_dim)
        self.direction = _STRENGTH * direction / np.linalg.norm(direction)
        self._rng = np.random.default_rng([seed, 1])

    def score(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:  # noqa: ARG002
        """See `BatchReward`; the prompts do not matter."""
        embeds = self._clip.embed_images(batch)
        return embeds @ torch.from_numpy(self.direction).to(embeds)

    def answer(self, quiz: Quiz, num_answers: int) -> None:
        """Answer a quiz as people do: the closer the pictures, the more often by whim."""
        for _ in range(num_answers):
            if quiz.is_short:
                quiz.fill()
            pair = quiz.pair()
            logit = (pair.left.embed - pair.right.embed) @ self.direction
            choice = LEFT if self._rng.random() < expit(logit) else RIGHT
            quiz.answer(len(quiz.answers.answers), choice)


def ada(device: torch.device) -> Person:
    """What ada likes."""
    return Person(1, device)


def grace(device: torch.device) -> Person:
    """What grace likes."""
    return Person(2, device)


def main(arguments: Sequence[str]) -> None:
    """Answer, and print what the answers teach."""
    people = {"ada": ada, "grace": grace}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=people)
    parser.add_argument("source", metavar="RUN_OR_MODEL")
    parser.add_argument("--out", type=path, required=True)
    parser.add_argument("--num_answers", type=int, default=100)
    args = parser.parse_args(arguments)
    quiz = open_quiz(args.out, lambda: Source.open(args.source))
    people[args.name](torch.device("cpu")).answer(quiz, args.num_answers)
    learnt = learn(quiz.answers, quiz.embeds)
    sys.stdout.write(f"{len(quiz.answers.answers)} answers: the taste {learnt.text}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
