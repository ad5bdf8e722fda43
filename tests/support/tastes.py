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


def draw_colours(rng, num_prompts, per_prompt):
    """What a `Source` does, with pictures of colours."""
    from front.taste.source import Drawn

    prompts = [f"prompt {rng.integers(20)}" for _ in range(num_prompts) for _ in range(per_prompt)]
    pictures = colourful(len(prompts), seed=int(rng.integers(2**32)))
    indices = rng.integers(2**32, size=len(prompts))
    return [
        Drawn(shown=shown(int(index), prompt), picture=picture)
        for index, prompt, picture in zip(indices, prompts, pictures, strict=True)
    ]


def click(quiz, prefers, num_answers):
    """Answer as somebody does who likes one picture better.

    Args:
        quiz: that asks; pictures are drawn between its questions.
        prefers: (embedding (D,)) -> how much the person likes the picture.
        num_answers: to give.
    """
    for _ in range(num_answers):
        if quiz.is_short:
            quiz.fill()
        pair = quiz.pair()
        likes_left = prefers(pair.left.embed) > prefers(pair.right.embed)
        quiz.answer(len(quiz.answers.answers), LEFT if likes_left else RIGHT)
