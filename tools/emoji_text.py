"""The captions as phrases and tokens, and the text encoder of the embedded model."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

import torch
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.emoji_names import CAPTIONS, GROUNDS, with_article

CONTEXT_LENGTH = 16
WIDTH = 96
START, END = "<|startoftext|>", "<|endoftext|>"

# {} is the bare word, twice since prompt sets use it; {a} has its article.
TEMPLATES = ("{}", "{}", "{a}", "a picture of {a}", "an emoji of {a}", "a photo of {a}")
GROUND_TEMPLATES = (
    "{} on a {g} ground",
    "{a} on a {g} ground",
    "{a} on a {g} background",
    "a picture of {a} on a {g} ground",
)
OTHER_WORDS = "a an the of and with on in picture photo image emoji drawing small big animal"
GROUND_WORDS = "ground background"


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Returns byte-pair merges, in order, that make one token of each word.

    The commonest pair of neighbours is merged first, ties in alphabetical order (the tokenizers
    library breaks ties differently from run to run).

    Example:
        >>> learn_merges(["bat", "cat"])
        [('a', 't</w>'), ('b', 'at</w>'), ('c', 'at</w>')]
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while counts := Counter(pair for word in pieces for pair in itertools.pairwise(word)):
        left, right = best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word in pieces:
            index = 0
            while index < len(word) - 1:
                if (word[index], word[index + 1]) == best:
                    word[index : index + 2] = [left + right]
                index += 1
    return merges


def build_tokenizer() -> CLIPTokenizer:
    """Returns a CLIP tokenizer in which each word of a caption is one token.

    Other words fall to pieces. Every byte has a token, alone and at the end of a word, so that any
    text can be encoded.
    """
    phrases = [*CAPTIONS, *GROUNDS, OTHER_WORDS, GROUND_WORDS]
    words = {word for phrase in phrases for word in phrase.split()}
    merges = learn_merges(sorted(words))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    tokens = list(dict.fromkeys([*tokens, *("".join(pair) for pair in merges), START, END]))
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT_LENGTH,
    )


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Returns token ids (texts, CONTEXT_LENGTH)."""
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return torch.as_tensor(tokens.input_ids)


def phrases_of(caption: str, ground: str | None = None) -> list[str]:
    """Returns the phrases that name a caption, and the colour of its ground where one is given.

    Example:
        >>> phrases_of("owl")[2], phrases_of("cat", "green")[1]
        ('an owl', 'a cat on a green ground')
    """
    templates = TEMPLATES if ground is None else GROUND_TEMPLATES
    phrases = [t.format(caption, a=with_article(caption), g=ground) for t in templates]
    return [phrase.replace("a orange", "an orange") for phrase in phrases]


def prompt_table(tokenizer: CLIPTokenizer, captions: Iterable[str] = CAPTIONS) -> torch.Tensor:
    """Returns token ids (captions, templates, length) of every caption in every template."""
    texts = [phrase for caption in captions for phrase in phrases_of(caption)]
    return tokenize(tokenizer, texts).view(-1, len(TEMPLATES), CONTEXT_LENGTH)


def ground_table(tokenizer: CLIPTokenizer) -> torch.Tensor:
    """Returns token ids (captions, grounds, templates, length) of captions on named grounds."""
    pairs = itertools.product(CAPTIONS, GROUNDS)
    texts = [phrase for caption, ground in pairs for phrase in phrases_of(caption, ground)]
    shape = (len(CAPTIONS), len(GROUNDS), len(GROUND_TEMPLATES), CONTEXT_LENGTH)
    return tokenize(tokenizer, texts).view(shape)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Returns an untrained text encoder (0.25 M parameters)."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT_LENGTH,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)
