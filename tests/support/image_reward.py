"""A random ImageReward in its published naming, and a tokenizer of letters."""

from __future__ import annotations

import torch

from tests.support.pipelines import LETTERS

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
PIXELS, PATCH, SEEN, READ, LAYERS = 28, 14, 128, 64, 2  # picture; widths of picture and text


def random_state():
    """Tensors under the names and in the layout of ImageReward.pt, of a small model."""
    generator, state = torch.Generator().manual_seed(0), {}

    def add(name, *shape):
        state[name] = torch.randn(shape, generator=generator) / max(shape[-1], 4) ** 0.5

    def linear(name, n_in, n_out):
        add(f"{name}.weight", n_out, n_in)
        add(f"{name}.bias", n_out)

    def norm(name, width):
        add(f"{name}.weight", width)
        add(f"{name}.bias", width)

    eye = "blip.visual_encoder."
    add(f"{eye}cls_token", 1, 1, SEEN)
    add(f"{eye}pos_embed", 1, 1 + (PIXELS // PATCH) ** 2, SEEN)
    add(f"{eye}patch_embed.proj.weight", SEEN, 3, PATCH, PATCH)
    add(f"{eye}patch_embed.proj.bias", SEEN)
    norm(f"{eye}norm", SEEN)
    for i in range(LAYERS):
        norm(f"{eye}blocks.{i}.norm1", SEEN)
        norm(f"{eye}blocks.{i}.norm2", SEEN)
        linear(f"{eye}blocks.{i}.attn.qkv", SEEN, 3 * SEEN)
        linear(f"{eye}blocks.{i}.attn.proj", SEEN, SEEN)
        linear(f"{eye}blocks.{i}.mlp.fc1", SEEN, 2 * SEEN)
        linear(f"{eye}blocks.{i}.mlp.fc2", 2 * SEEN, SEEN)
    text = "blip.text_encoder."
    state[f"{text}embeddings.position_ids"] = torch.arange(40)[None]
    add(f"{text}embeddings.word_embeddings.weight", len(WORDS), READ)
    add(f"{text}embeddings.position_embeddings.weight", 40, READ)
    norm(f"{text}embeddings.LayerNorm", READ)
    for i in range(LAYERS):
        for block, width in (("attention", READ), ("crossattention", SEEN)):
            layer = f"{text}encoder.layer.{i}.{block}."
            linear(f"{layer}self.query", READ, READ)
            linear(f"{layer}self.key", width, READ)
            linear(f"{layer}self.value", width, READ)
            linear(f"{layer}output.dense", READ, READ)
            norm(f"{layer}output.LayerNorm", READ)
        linear(f"{text}encoder.layer.{i}.intermediate.dense", READ, 2 * READ)
        linear(f"{text}encoder.layer.{i}.output.dense", 2 * READ, READ)
        norm(f"{text}encoder.layer.{i}.output.LayerNorm", READ)
    linear("blip.vision_proj", SEEN, 8)
    linear("blip.text_proj", READ, 8)
    widths = (READ, 1024, 128, 64, 16, 1)
    for index, n_in, n_out in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        linear(f"mlp.layers.{index}", n_in, n_out)
    return state


def save_letter_tokenizer(folder):
    """A BERT tokenizer whose words are letters."""
    from transformers import BertTokenizer

    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
