"""ImageReward from its published names, against BLIP and its head restated on plain tensors."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from config.settings.errors import UserError
from tests.support.image_reward import (
    LAYERS,
    PATCH,
    PIXELS,
    WORDS,
    random_state,
    save_letter_tokenizer,
)
from tests.support.pipelines import of_8_bits
from tests.support.rewards import build

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
PUBLISHED_MEAN, PUBLISHED_STD = 0.16717362830052426, 1.0333394966054072


def restated(state, images, tokens, mask):
    """The score of pictures (rows, 3, 28, 28) and tokens (rows, L), from the tensors alone."""

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name, eps):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def attend(q, k, v, bias=0.0):
        q, k, v = (x.unflatten(-1, (-1, 64)).transpose(1, 2) for x in (q, k, v))
        weights = (q @ k.transpose(-1, -2) / 8 + bias).softmax(dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    eye = "blip.visual_encoder."
    kernel, bias = (state[f"{eye}patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
    patches = F.conv2d((images - MEAN) / STD, kernel, bias, stride=PATCH).flatten(2)
    first = state[f"{eye}cls_token"].expand(len(images), -1, -1)
    x = torch.cat([first, patches.transpose(1, 2)], dim=1) + state[f"{eye}pos_embed"]
    for i in range(LAYERS):
        block = f"{eye}blocks.{i}."
        parts = linear(norm(x, f"{block}norm1", 1e-6), f"{block}attn.qkv").chunk(3, dim=-1)
        x = x + linear(attend(*parts), f"{block}attn.proj")
        h = F.gelu(linear(norm(x, f"{block}norm2", 1e-6), f"{block}mlp.fc1"))
        x = x + linear(h, f"{block}mlp.fc2")
    seen = norm(x, f"{eye}norm", 1e-6)

    text = "blip.text_encoder."
    y = state[f"{text}embeddings.word_embeddings.weight"][tokens]
    y = y + state[f"{text}embeddings.position_embeddings.weight"][: tokens.shape[1]]
    y = norm(y, f"{text}embeddings.LayerNorm", 1e-12)
    hidden = torch.where(mask.bool(), 0.0, -torch.inf)[:, None, None]
    for i in range(LAYERS):
        for name, source, bias in (("attention", None, hidden), ("crossattention", seen, 0.0)):
            block = f"{text}encoder.layer.{i}.{name}."
            other = y if source is None else source
            keys, values = linear(other, f"{block}self.key"), linear(other, f"{block}self.value")
            mixed = attend(linear(y, f"{block}self.query"), keys, values, bias)
            y = norm(linear(mixed, f"{block}output.dense") + y, f"{block}output.LayerNorm", 1e-12)
        layer = f"{text}encoder.layer.{i}."
        h = linear(F.gelu(linear(y, f"{layer}intermediate.dense")), f"{layer}output.dense")
        y = norm(h + y, f"{layer}output.LayerNorm", 1e-12)
    out = y[:, 0]
    for index in (0, 2, 4, 6, 7):
        out = linear(out, f"mlp.layers.{index}")
    return (out.squeeze(-1) - PUBLISHED_MEAN) / PUBLISHED_STD


@pytest.fixture(scope="module", name="tokenizer_folder")
def _tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    save_letter_tokenizer(folder)
    return str(folder)


def test_image_reward_is_blip_and_its_head_from_the_published_names(tmp_path, tokenizer_folder):
    state = random_state()
    torch.save(state, tmp_path / "ImageReward.pt")
    reward = build("image_reward", model=tmp_path / "ImageReward.pt", tokenizer=tokenizer_folder)
    images = torch.rand(3, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(1))
    images = of_8_bits(images)
    prompts = ["A b c", "z", "b " * 50]  # lower-cased; short; cut at 35 tokens
    tokens = torch.zeros(3, 35, dtype=torch.long)
    for row, ids in enumerate(("a b c", "z", "b " * 33)):
        words = ["[CLS]", *ids.split(), "[SEP]"]
        tokens[row, : len(words)] = torch.tensor([WORDS.index(word) for word in words])
    expected = restated(state, images, tokens, tokens != 0)
    scores = reward(images, prompts)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    assert (scores[0] - reward(images[1:2], prompts[:1])).abs() > 1e-3  # it looks at the picture
    assert (scores[0] - reward(images[:1], prompts[1:2])).abs() > 1e-3  # and reads the prompt


def test_other_weights_are_refused(tmp_path, tokenizer_folder):
    state = random_state()
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"image_reward\.model=.* is not ImageReward"):
        build("image_reward", model=tmp_path / "other.pt", tokenizer=tokenizer_folder)
    del state["blip.visual_encoder.blocks.1.attn.proj.bias"]
    torch.save(state, tmp_path / "torn.pt")
    with pytest.raises(UserError, match=r"(?s)holds other tensors.*1\.self_attn\.projection\.bias"):
        build("image_reward", model=tmp_path / "torn.pt", tokenizer=tokenizer_folder)
