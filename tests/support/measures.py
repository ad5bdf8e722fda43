"""Costs of a computation: rows, kept bytes, footprints."""

from __future__ import annotations

import torch

from ddpo.cost.footprint import measure_footprint
from ddpo.cost.plan import Footprint
from tests.support.rig import make_settings


def count_rows(trainer):
    """A list that will hold the number of rows of every UNet pass from now on."""
    rows = []
    trainer.model.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


FOOTPRINT = Footprint(
    unet_parameters=0,
    vae_parameters=0,
    text_parameters=0,
    weight_bytes=1000,
    adapter_parameters=10,
    latent_entries=16,
    image_entries=48,
    sample_flops=100,
    train_flops=220,
    decode_flops=50,
    sample_bytes=3,
    train_bytes=30,
    decode_bytes=7,
    decode_back_flops=150,
    decode_back_bytes=40,
)  # small numbers to count with by hand

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def footprint_of(model, *, speed="layers", **train):
    pretrained = {"model": model, "dtype": "bfloat16"}
    return measure_footprint(make_settings(speed, pretrained=pretrained, train=train))


def kept(function):
    """A function's result, and the bytes that it keeps for its backward pass."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    return result, sum(storages.values())
