"""People with a hidden taste: linear in CLIP's embedding, and asked about pictures of colours."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ddpo.rewards.answers import CHANCE, LEFT, RIGHT, Answer, Answers, Shown


def hidden_taste(seed, dimensions=64):
    """A direction of length 1."""
    weights = np.random.default_rng(seed).normal(size=dimensions)
    return weights / np.linalg.norm(weights)


def colourful(num_pictures, seed=0, size=16):
    """Pictures of four blobs of colour, which CLIP tells apart."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (num_pictures, 2, 2, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC) for each in coarse]


def shown(index, prompt="cat"):
    return Shown(
        file=f"{index:04d}.png",
        model="emoji-sd",
        run="",
        policy="base",
        prompt=prompt,
        seed=index,
        sampler={"num_inference_steps": 4},
    )


def ask(folder, prefers, num_answers, seed=0, clip="emoji-clip"):
    """A folder with the answers of a person to pairs of pictures of colours.

    Args:
        folder: to write to.
        prefers: (embeddings (n, D)) -> (n,) how much the person likes each picture.
        num_answers: to give.
        seed: of the pictures.
        clip: that the taste is learnt on.
    """
    import torch

    from ddpo.rewards.clip import load_clip
    from ddpo.rewards.taste import embed

    pictures = colourful(2 * num_answers, seed)
    likes = prefers(embed(load_clip(clip, torch.device("cpu"), "float32"), pictures))
    (folder / "pictures").mkdir(parents=True)
    answers = []
    for left in range(0, len(pictures), 2):
        for index in (left, left + 1):
            pictures[index].save(folder / "pictures" / shown(index).file)
        choice = LEFT if likes[left] > likes[left + 1] else RIGHT
        answers.append(
            Answer(left=shown(left), right=shown(left + 1), choice=choice, asked_by=CHANCE)
        )
    Answers(clip=clip, answers=tuple(answers)).write(folder)
    return folder
