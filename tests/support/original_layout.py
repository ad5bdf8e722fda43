"""Weights of a diffusers pipeline under the names of the original, single-file checkpoints."""

from __future__ import annotations

import re
from typing import Any

import torch

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def original_state_dict(pipe: Any) -> dict[str, torch.Tensor]:
    """All weights of a Stable Diffusion (XL) pipeline as one checkpoint in its authors' layout."""
    layers = pipe.unet.config.layers_per_block
    out = {
        f"model.diffusion_model.{unet_name(name, layers)}": value
        for name, value in pipe.unet.state_dict().items()
    }
    num_blocks = len(pipe.vae.config.block_out_channels)
    for name, value in pipe.vae.state_dict().items():
        is_kernel = ".attentions." in name and value.ndim == 2  # a 1x1 convolution there
        new = _vae_name(name, num_blocks)
        out[f"first_stage_model.{new}"] = value[:, :, None, None] if is_kernel else value
    if hasattr(pipe, "text_encoder_2"):
        out |= _clip(pipe.text_encoder, "conditioner.embedders.0.transformer.text_model.")
        out |= _open_clip(pipe.text_encoder_2, "conditioner.embedders.1.model.")
    elif pipe.text_encoder.config.hidden_act == "gelu":
        out |= _open_clip(pipe.text_encoder, "cond_stage_model.model.")
    else:
        out |= _clip(pipe.text_encoder, "cond_stage_model.transformer.text_model.")
    return {name: value.contiguous() for name, value in out.items()}


def in_sgm_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A checkpoint of Stable Diffusion 2.x under the names that SD-Turbo's file has."""
    new = "conditioner.embedders.0.model."
    named = {name.replace("cond_stage_model.model.", new): value for name, value in state.items()}
    width = named[f"{new}positional_embedding"].shape[1]
    return {**named, f"{new}text_projection": torch.ones(width, width)}  # which no one reads


def _replace(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = re.sub(rf"(^|\.){re.escape(old)}\.", rf"\g<1>{new}.", name)
    return name


def unet_name(name: str, layers: int) -> str:
    """The original name of a weight or layer of a UNet with `layers` layers per block."""
    match = re.match(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.*)", name)
    if match is None:
        return _replace(name, _UNET_ENDS)
    place, block, kind, layer, rest = match.groups()
    first = int(block or 0) * (layers + 1)
    index = first + int(layer)
    if kind == "resnets":
        rest = _replace(rest, _RESNET)
    if place == "mid":
        return f"middle_block.{2 * int(layer) if kind == 'resnets' else 1}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{1 + first + layers}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":  # after the attention, if its block has one; here the first block does
        return f"output_blocks.{first + layers}.{2 if first == 0 else 1}.{rest}"
    part = 0 if kind == "resnets" else 1
    if place == "down":
        return f"input_blocks.{1 + index}.{part}.{rest}"
    return f"output_blocks.{index}.{part}.{rest}"


def _vae_name(name: str, num_blocks: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if ".mid_block.attentions.0." in name:
        return _replace(name, _VAE_ATTENTION).replace("mid_block.attentions.0", "mid.attn_1")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{num_blocks - 1 - int(found[1])}", name)
    name = name.replace("resnets", "block").replace("downsamplers.0", "downsample")
    return name.replace("upsamplers.0", "upsample")


def _clip(encoder: Any, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in encoder.state_dict().items()}


def _open_clip(encoder: Any, prefix: str) -> dict[str, torch.Tensor]:
    state = {name.removeprefix("text_model."): v for name, v in encoder.state_dict().items()}
    names = {
        "encoder.layers": "transformer.resblocks",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "fc1": "c_fc",
        "fc2": "c_proj",
        "self_attn": "attn",
        "final_layer_norm": "ln_final",
        "embeddings.token_embedding": "token_embedding",
    }
    out = {}
    for name, value in state.items():
        if name == "embeddings.position_embedding.weight":
            out["positional_embedding"] = value
        elif name == "text_projection.weight":
            out["text_projection"] = value.T
        elif ".q_proj." in name:
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            joined = _replace(name, names).replace(".q_proj.", ".in_proj_")
            out[joined] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            out[_replace(name, names)] = value
    return {prefix + name: value for name, value in out.items()}
