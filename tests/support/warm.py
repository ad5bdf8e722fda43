"""Imported by the server that forks the processes of tests, so that none of them has to warm up.

Importing torch, diffusers and transformers takes seconds. So does what they and Pillow put off
until their first use. The server does both once.
"""

from __future__ import annotations

import gc
import importlib
import tempfile
from pathlib import Path

import torch
from PIL import Image

from tests.support.pipelines import draw_with_diffusers, load_plain, make_tiny_pipe


def _use_everything() -> None:
    """Draw once. No backward pass: torch refuses one after a fork from a first one."""
    for module in ("run.session", "front.publish", "tests.support.processes"):
        importlib.import_module(module)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_tiny_pipe().save_pretrained(folder)
        draw_with_diffusers(load_plain(Path(folder)), ["a"], [0])
    Image.init()


_use_everything()
gc.freeze()  # collections in a fork would copy the server's memory
