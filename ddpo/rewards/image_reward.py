"""ImageReward (Xu et al. 2023): a BLIP tuned to rankings by annotators.

The score is `(mlp(h) - 0.167) / 1.033`, with the paper's constants. Here h is the first token of
BLIP's text encoder, which attends to the picture. The file has BLIP's own names; they are
translated to transformers' BLIP classes, because the paper's package does not import under
transformers 5. As in the package: 35 tokens of bert-base-uncased, 224 pixels, Pillow's bicubic. The
package runs only in float32.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import torch

from config.settings.errors import UserError
from ddpo.devices import DTYPES, at_least_float32
from ddpo.rewards import Part, RewardEntry
from ddpo.rewards.aesthetic_score import make_head
from ddpo.rewards.clip import clip_pixels
from ddpo.rewards.image_batch import BatchReward
from ddpo.rewards.published import IMAGE_REWARD
from ddpo.rewards.weights import load_into, load_tensors, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    from ddpo.rewards.image_batch import ImageBatch

_MODEL = "image_reward.model"
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072
_MAX_TOKENS = 35
_HEAD_WIDTH = 64  # of every attention head in BLIP, for text and pictures
_VISION = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
)
"""BLIP's names of the parts of its picture encoder -> transformers' names."""


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix) and not name.endswith("position_ids")
    }


def _vision_model(state: Mapping[str, torch.Tensor], source: str) -> BlipVisionModel:
    from transformers import BlipVisionConfig, BlipVisionModel  # noqa: PLC0415 - see `ddpo.rewards`

    renamed = {}
    for name, tensor in _part(state, "blip.visual_encoder.").items():
        for pattern, replacement in _VISION:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901 - step by step
        renamed[name] = tensor
    width, _, patch, _ = renamed["embeddings.patch_embedding.weight"].shape
    patches = renamed["embeddings.position_embedding"].shape[1] - 1
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(renamed["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=_num_layers(renamed),
        num_attention_heads=width // _HEAD_WIDTH,
        image_size=patch * math.isqrt(patches),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    model = BlipVisionModel(config)
    load_into(model, renamed, _MODEL, source)
    return model


def _text_model(state: Mapping[str, torch.Tensor], vision_width: int, source: str) -> BlipTextModel:
    from transformers import BlipTextConfig  # noqa: PLC0415 - see `ddpo.rewards`
    from transformers.models.blip.modeling_blip_text import BlipTextModel  # noqa: PLC0415

    named = _part(state, "blip.text_encoder.")
    num_tokens, width = named["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=num_tokens,
        hidden_size=width,
        encoder_hidden_size=vision_width,
        intermediate_size=len(named["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_num_layers(named),
        num_attention_heads=width // _HEAD_WIDTH,
        max_position_embeddings=len(named["embeddings.position_embeddings.weight"]),
        layer_norm_eps=1e-12,
        is_decoder=True,  # lets its layers attend to the picture
    )
    model = BlipTextModel(config, add_pooling_layer=False)
    load_into(model, named, _MODEL, source)
    return model


def _num_layers(state: Mapping[str, torch.Tensor]) -> int:
    numbers = (re.match(r"encoder\.layers?\.(\d+)\.", name) for name in state)
    return 1 + max(int(number[1]) for number in numbers if number)


class ImageReward(BatchReward):
    """ImageReward, about standard normal over the pictures of its training set.

    Args:
        source: local file, or owner/repository/file of a hub, with BLIP's names.
        tokenizer: folder or hub id of bert-base-uncased's tokenizer.
        device: where it runs.
        dtype: of the encoders' weights and activations.

    Raises:
        UserError: if the file holds another model.
    """

    def __init__(self, source: str, tokenizer: str, device: torch.device, dtype: str) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessorPil  # noqa: PLC0415 - see `ddpo.rewards`

        state = load_tensors(_MODEL, source)
        try:
            vision = _vision_model(state, source)
            text = _text_model(state, vision.config.hidden_size, source)
        except (KeyError, ValueError) as error:
            raise UserError(f"{shown(_MODEL, source)} is not ImageReward: {error!r}") from error
        head = make_head(text.config.hidden_size)
        load_into(head, _part(state, "mlp.layers."), _MODEL, source)
        for module in (vision, text):
            module.to(device, DTYPES[dtype]).requires_grad_(False).eval()
        self._vision, self._text = vision, text
        self._head = head.to(device).requires_grad_(False).eval()
        edge = vision.config.image_size
        self._processor = CLIPImageProcessorPil(  # CLIP and BLIP share mean and standard deviation
            size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge}
        )
        self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self._device = device

    def score(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:
        """See `BatchReward`."""
        pixels = clip_pixels(batch, self._processor).to(self._device, self._vision.dtype)
        tokens = self._tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=_MAX_TOKENS,
            return_tensors="pt",
        ).to(self._device)
        with torch.set_grad_enabled(batch.keep_graph):
            out = self._text(
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask,
                encoder_hidden_states=self._vision(pixel_values=pixels).last_hidden_state,
            )
            first = at_least_float32(out.last_hidden_state[:, 0])
            scores: torch.Tensor = self._head(first).squeeze(-1)
            return (scores - _MEAN) / _STD

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """See `BatchReward`."""
        tokens = self._tokenizer(list(prompts), verbose=False).input_ids
        return [p for p, each in zip(prompts, tokens, strict=True) if len(each) > _MAX_TOKENS]


def build(sources: Mapping[str, str], device: torch.device, dtype: str) -> ImageReward:
    """See `RewardEntry`."""
    return ImageReward(sources["model"], sources["tokenizer"], device, dtype)


REWARD = RewardEntry(
    unit="standard score",
    meaning="which picture do annotators rank higher for this prompt: ImageReward",
    published="Xu et al. 2023",
    parts={
        "model": Part(
            source="THUDM/ImageReward/ImageReward.pt", licence="Apache 2.0", model=IMAGE_REWARD
        ),
        "tokenizer": Part(source="google-bert/bert-base-uncased", licence="Apache 2.0"),
    },
    is_differentiable=True,
    build=build,
)
