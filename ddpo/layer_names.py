"""The original names of a UNet's layers, from their names in diffusers.

The authors of Stable Diffusion gave them. Single-file checkpoints, kohya's LoRAs for SDXL and some
other LoRAs use them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_PLACE = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)")


def original_names(layers: Iterable[str], layers_per_block: int = 1) -> dict[str, str]:
    """The original name of every layer of a UNet, by its name in diffusers.

    Args:
        layers: of a whole UNet, or at least all attention layers of some of its blocks.
        layers_per_block: a lower bound. The number is read from the names; give this if the names
            may not show it.

    Returns:
        diffusers' name -> original name.

    Example:
        >>> original_names(["down_blocks.1.attentions.1.proj_in"])
        {'down_blocks.1.attentions.1.proj_in': 'input_blocks.5.1.proj_in'}
    """
    # Read the names: layers per block, and which blocks have attention.
    places = {layer: found for layer in layers if (found := _PLACE.fullmatch(layer))}
    with_attention = set()
    for found in places.values():
        where, block, kind, index, _ = found.groups()
        if kind in {"attentions", "resnets"} and where != "mid":  # up blocks have one more
            layers_per_block = max(layers_per_block, int(index) + (where == "down"))
        if kind == "attentions":
            with_attention.add((where, block))
    # Number each block's layers as the original does, in one list per side of the UNet.
    names = {}
    for layer in layers:
        if layer not in places:
            names[layer] = _ENDS.get(layer, layer)
            continue
        where, block, kind, index, rest = places[layer].groups()
        first = int(block or 0) * (layers_per_block + 1)
        place = first + int(index)
        if kind == "resnets":
            rest = _RESNET.get(rest, rest)
        if where == "mid":
            names[layer] = f"middle_block.{2 * int(index) if kind == 'resnets' else 1}.{rest}"
        elif kind == "downsamplers":
            names[layer] = f"input_blocks.{first + layers_per_block + 1}.0.op"
        elif kind == "upsamplers":
            part = 2 if (where, block) in with_attention else 1
            names[layer] = f"output_blocks.{first + layers_per_block}.{part}.{rest}"
        else:
            side, offset = ("input", 1) if where == "down" else ("output", 0)
            part = 0 if kind == "resnets" else 1
            names[layer] = f"{side}_blocks.{offset + place}.{part}.{rest}"
    return names


def is_sdxl(layers: Iterable[str]) -> bool:
    """Whether a UNet is SDXL's, the only family with several transformer blocks per attention."""
    return any(".transformer_blocks.1." in layer for layer in layers)
