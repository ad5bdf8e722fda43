"""A random CLIP of the real classes."""

from __future__ import annotations

import torch

from tests.support.pipelines import LETTERS

WORDS = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(c + "</w>" for c in LETTERS)]


SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def make_clip(folder, seed=22, **changes):
    """Save a random CLIP of the real classes in a folder: 56 px pictures, patches of 14 px."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    torch.manual_seed(seed)
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {"vocab_size": len(WORDS), "max_position_embeddings": 8, **SIZES, **special, **changes}
    vision = {"image_size": 56, "patch_size": 14, **SIZES, **changes}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    with torch.no_grad():
        # Initial weights are tiny and biases zero: outputs would hardly depend on inputs.
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape))
        model.logit_scale.fill_(4.0)
    model.save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=8).save_pretrained(folder)
    crop = {"height": 56, "width": 56}
    CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size=crop).save_pretrained(folder)
    return model.eval()
