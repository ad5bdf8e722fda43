"""Costs of a computation: rows, kept bytes, footprints."""

from __future__ import annotations

import torch

from ddpo.cost.footprint import measure_footprint
from tests.support.rig import make_settings


def count_rows(trainer):
    """A list that will hold the number of rows of every UNet pass from now on."""
    rows = []
    trainer.model.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


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
