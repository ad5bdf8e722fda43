"""Human Preference Score v2.1 (Wu et al. 2023): a CLIP-H tuned to human choices between pictures.

The score is 100 cos of the embeddings, as in the paper's tables. The file has open_clip's names;
they are translated to transformers' CLIPModel, so that neither open_clip nor the paper's package is
needed. The package differs in three ways: it returns the cosine, it runs in half precision under
autocast (here `rewards.dtype`), and it pads pictures that are not square (here they are cropped).
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

import torch

from config.settings.errors import UserError
from ddpo.devices import DTYPES
from ddpo.rewards import Part, RewardEntry
from ddpo.rewards.clip import ClipTower
from ddpo.rewards.image_batch import BatchReward
from ddpo.rewards.published import HPS_V2
from ddpo.rewards.weights import load_into, load_tensors, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ddpo.rewards.image_batch import ImageBatch

_MODEL = "hps_v2.model"
_NAMES = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
}
_NORMS = {
    "ln_final": "text_model.final_layer_norm",
    "visual.ln_pre": "vision_model.pre_layrnorm",  # transformers' own spelling
    "visual.ln_post": "vision_model.post_layernorm",
}
_PROJECTIONS = {
    "text_projection": "text_projection.weight",
    "visual.proj": "visual_projection.weight",
}
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def from_open_clip(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of open_clip's CLIP as in transformers' CLIPModel.

    open_clip keeps the projections of query, key and value in one matrix; it is split. Its output
    projections are (in, out); they are transposed.

    Raises:
        KeyError: for a tensor that open_clip's CLIP does not have.
    """
    out: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        layer = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if layer is not None:
            half = "vision_model" if layer[1] else "text_model"
            out |= _layer(f"{half}.encoder.layers.{layer[2]}.", layer[3], tensor)
        elif name in _PROJECTIONS:
            out[_PROJECTIONS[name]] = tensor.T.contiguous()
        elif name in _NAMES:
            out[_NAMES[name]] = tensor
        else:
            stem, _, kind = name.rpartition(".")
            out[f"{_NORMS[stem]}.{kind}"] = tensor
    return out


def _layer(prefix: str, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    if name.startswith("attn.in_proj_"):
        kind = name.removeprefix("attn.in_proj_")
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{prefix}self_attn.{part}_proj.{kind}": rows for part, rows in parts}
    stem, _, kind = name.rpartition(".")
    return {f"{prefix}{_LAYER[stem]}.{kind}": tensor}


def clean(text: str) -> str:
    """Clean a text as open_clip's tokeniser does: repair encodings, resolve HTML entities.

    >>> clean("a  \N{LEFT DOUBLE QUOTATION MARK}cat\N{RIGHT DOUBLE QUOTATION MARK} &amp; fish")
    'a "cat" & fish'
    """
    import ftfy  # noqa: PLC0415 - see `ddpo.rewards`

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


class HpsV2(BatchReward):
    """HPS v2.1 times 100, about 20 to 32.

    Args:
        source: local file, or owner/repository/file of a hub, with open_clip's names.
        processor: folder or hub id of the CLIP with the same configuration and processor.
        device: where it runs.
        dtype: of weights and activations.

    Raises:
        UserError: if the file holds another model.
    """

    def __init__(self, source: str, processor: str, device: torch.device, dtype: str) -> None:
        from transformers import CLIPConfig, CLIPModel  # noqa: PLC0415 - see `ddpo.rewards`

        model = CLIPModel(CLIPConfig.from_pretrained(processor))
        state = load_tensors(_MODEL, source)
        try:
            translated = from_open_clip(state)
        except KeyError as error:
            raise UserError(f"{shown(_MODEL, source)}: CLIP has no tensor {error}") from error
        load_into(model, translated, _MODEL, source)
        self.clip = ClipTower(model.to(DTYPES[dtype]), processor, device)

    def score(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:
        """See `BatchReward`."""
        return 100 * self.clip.cosine(batch, [clean(prompt) for prompt in prompts])

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """See `BatchReward`."""
        return self.clip.cut(prompts)


def build(sources: Mapping[str, str], device: torch.device, dtype: str) -> HpsV2:
    """See `RewardEntry`."""
    return HpsV2(sources["model"], sources["processor"], device, dtype)


REWARD = RewardEntry(
    unit="100 x cosine",
    meaning="which picture do people prefer for this prompt: HPS v2.1",
    published="Wu et al. 2023",
    parts={
        "model": Part(
            source="xswu/HPSv2/HPS_v2.1_compressed.pt", licence="Apache 2.0", model=HPS_V2
        ),
        "processor": Part(source="laion/CLIP-ViT-H-14-laion2B-s32B-b79K", licence="MIT"),
    },
    is_differentiable=True,
    build=build,
)
