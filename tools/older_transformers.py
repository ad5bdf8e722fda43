"""Make a saved pipeline readable for transformers 4: `python -m tools.older_transformers FOLDER`.

Transformers 5 saves a tokenizer as one file, and a text encoder without the level "text_model".
Version 4 needs a vocabulary, merges and that level. Version 5 reads both forms.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from config.settings.files import path

_LEVEL = "text_model."


def adapt(folder: Path) -> None:
    """Add a tokenizer's vocabulary and merges, and give the text encoder's weights older names.

    Args:
        folder: of a Stable Diffusion pipeline, saved by `save_pretrained` of transformers 5.
    """
    tokenizer = folder / "tokenizer"
    model = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False)
    (tokenizer / "vocab.json").write_text(vocabulary + "\n", encoding="utf-8")
    merges = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (tokenizer / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    weights = folder / "text_encoder" / "model.safetensors"
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    renamed = {_LEVEL + name.removeprefix(_LEVEL): tensor for name, tensor in state.items()}
    save_file(renamed, weights, metadata)
    weights.chmod(0o644)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=path)
    adapt(parser.parse_args().folder)
