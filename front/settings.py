"""The typed settings of a finished run, read back from its `config.json`, and where to run it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from ml_collections import ConfigDict

from config.settings.errors import ConfigError
from config.settings.parse import parse
from config.settings.resume import completed
from ddpo.processes import own_device
from ddpo.rewards.lookup import reward_problems
from front.errors import ChoiceError, FrontError

if TYPE_CHECKING:
    from config.base import Settings
    from front.front import Front


def settings_of(
    front: Front, model: str = "", rows_per_pass: int = 0, *, with_rewards: bool = False
) -> Settings:
    """The settings a run was made with.

    Settings that are newer than the run get the values that describe what it did. Nothing is
    compiled for a few pictures: `speed` is "layers" where the run had "fused".

    Args:
        front: of the run.
        model: where its base model is now; empty where it was then.
        rows_per_pass: UNet rows at a time in sampling; 0 as many as then.
        with_rewards: check that the rewards can be found, too.

    Raises:
        FrontError: if this program cannot read them.
    """
    try:
        values = completed(front.settings, is_finished=True)
        if model:
            values["pretrained"]["model"] = model
        settings = parse(ConfigDict(values), {}, [reward_problems] if with_rewards else [])
    except ConfigError as error:
        raise FrontError(f"the settings in {front.path / 'config.json'}: {error}") from error
    if settings.speed == "fused":
        settings = dataclasses.replace(settings, speed="layers")
    if not rows_per_pass:
        return settings
    sample = dataclasses.replace(settings.sample, rows_per_pass=rows_per_pass)
    return dataclasses.replace(settings, sample=sample)


def device_of(name: str) -> torch.device:
    """The device of this name; if empty, the one for training, see `own_device`.

    Raises:
        ChoiceError: if there is no such device.
    """
    if not name:
        return own_device()
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ChoiceError(f"--device={name} cannot be used: {error}") from error
