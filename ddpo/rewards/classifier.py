"""`classifier:PATH_OR_ID#LABEL`: how sure an image classifier of transformers is of a label.

The score is the log-odds of the label, log(p / (1 - p)), for the p of transformers' pipeline. With
a softmax, it is the label's logit minus the logsumexp of all others. With independent labels, it is
the logit itself. The probability p would have almost no gradient where the classifier is sure.
"""

from __future__ import annotations

import difflib
import json
import threading
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch.nn import functional as F

from config.settings.errors import UserError
from config.settings.files import exists, is_file
from ddpo.devices import DTYPES, at_least_float32
from ddpo.rewards import Part, RewardEntry
from ddpo.rewards.image_batch import BatchReward, ImageBatch, with_gradient_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_USAGE = "must look like classifier:FOLDER#LABEL or classifier:OWNER/MODEL#LABEL"
_RESAMPLE = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # Pillow's number -> torch's name
_TOLERANCE = 0.02  # of the range from black to white, between the processor and its smooth twin


class Network:
    """A frozen image classifier with its picture processor; labels of one model share it.

    Args:
        source: folder or hub id; the weights are safetensors.
        device: where it runs.
        dtype: of its weights and activations.

    Raises:
        OSError, ValueError: if there is no such model.
    """

    def __init__(self, source: str, device: torch.device, dtype: str) -> None:
        from transformers import (  # noqa: PLC0415 - see `ddpo.rewards`
            AutoImageProcessor,
            AutoModelForImageClassification,
        )

        # Pillow's resize is the same on every device, see `clip_pixels`.
        self._processor: Any = AutoImageProcessor.from_pretrained(source, backend="pil")
        model = AutoModelForImageClassification.from_pretrained(
            source, use_safetensors=True, dtype=DTYPES[dtype]
        )
        self._model = model.requires_grad_(False).eval().to(device)
        self._lock = threading.Lock()  # two labels have two threads
        self.device = device
        self.labels: dict[int, str] = dict(model.config.id2label)
        kind = model.config.problem_type
        self.is_exclusive = kind != "multi_label_classification" and len(self.labels) > 1
        if kind == "regression":
            raise ValueError(f"{source} predicts a number, and has no labels")

    def logits(self, batch: ImageBatch) -> torch.Tensor:
        """(rows, labels), at least float32; computed once per batch, whoever asks."""

        def compute() -> torch.Tensor:
            pixels = self._pixels(batch).to(self.device, self._model.dtype)
            with self._lock, torch.set_grad_enabled(batch.keep_graph):
                return at_least_float32(self._model(pixel_values=pixels).logits)

        return batch.shared(("classifier", id(self)), compute)

    def _pixels(self, batch: ImageBatch) -> torch.Tensor:
        """The classifier's input; with a graph, its gradient is the gradient of `_smooth`.

        Raises:
            ValueError: if a gradient is wanted and the processor differs from `_smooth`.
        """
        pixels: torch.Tensor = self._processor(images=batch.pil, return_tensors="pt").pixel_values
        if not batch.keep_graph:
            return pixels
        smooth = self._smooth(batch.images).to(pixels.device)
        black, white = self._smooth(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 8, 8))
        limit = _TOLERANCE * float((white - black).abs().max())
        error = torch.inf
        if smooth.shape == pixels.shape:
            error = float((smooth.detach() - pixels).abs().mean())
        if error > limit:
            kind = type(self._processor).__name__
            raise ValueError(f"{kind} prepares pictures in a way that has no gradient here")
        return with_gradient_of(smooth, pixels.to(smooth.dtype))

    def _smooth(self, images: torch.Tensor) -> torch.Tensor:
        """Resize, crop and normalise (rows, 3, H, W) in [0, 1] as most processors do, unrounded."""
        does, height, width = self._processor, images.shape[2], images.shape[3]
        if does.do_resize:
            size, filters = does.size, _RESAMPLE.get(int(does.resample), "bicubic")
            if size.get("shortest_edge"):
                edge, short = size["shortest_edge"], min(height, width)
                shape = (int(edge * height / short), int(edge * width / short))
            else:
                shape = (size["height"], size["width"])
            smooth = {} if filters == "nearest-exact" else {"antialias": True}
            images = F.interpolate(images, shape, mode=filters, **smooth)
        if getattr(does, "do_center_crop", False):
            high, wide = does.crop_size["height"], does.crop_size["width"]
            top, left = (images.shape[2] - high) // 2, (images.shape[3] - wide) // 2
            bottom, right = images.shape[2] - high - top, images.shape[3] - wide - left
            images = F.pad(images, (-left, -right, -top, -bottom))
        images = images * (255 * (does.rescale_factor if does.do_rescale else 1))
        if does.do_normalize:
            mean, std = (images.new_tensor(each) for each in (does.image_mean, does.image_std))
            images = (images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        return images


class LabelOdds(BatchReward):
    """The log-odds of one label.

    Args:
        network: the classifier.
        indices: of the label; several, if the classifier has it more than once.
    """

    def __init__(self, network: Network, indices: Sequence[int]) -> None:
        self._network = network
        self._indices = list(indices)
        self._others = [index for index in network.labels if index not in self._indices]

    def score(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:  # noqa: ARG002
        """See `BatchReward`; the prompts do not matter."""
        logits = self._network.logits(batch)
        own = logits[:, self._indices].logsumexp(dim=1)
        if not self._network.is_exclusive:
            return own
        return own - logits[:, self._others].logsumexp(dim=1)


def indices_of(label: str, labels: Mapping[int, str]) -> list[int]:
    """The indices of a label, given by its whole name or by one of its names between commas.

    Raises:
        UserError: naming labels that are like it, if there is none.

    Example:
        >>> indices_of("tabby", {0: "lynx", 1: "tabby, tabby cat"})
        [1]
    """
    exact = [index for index, name in labels.items() if name == label]
    parts = {index: [part.strip() for part in name.split(",")] for index, name in labels.items()}
    found = exact or [index for index, names in parts.items() if label in names]
    if not found or len(found) == len(labels) > 1:
        known = list(dict.fromkeys(labels.values()))
        close = difflib.get_close_matches(label, [*known, *chain(*parts.values())], n=3)
        hint = ", ".join(map(repr, close or known[:8]))
        more = f" and {len(known) - 8} more" if not close and len(known) > 8 else ""
        raise UserError(f"{label!r} is not one of its {len(known)} labels: {hint}{more}")
    return found


def problem(argument: str) -> str | None:
    """The problem with the argument of a classifier, or None; no model is loaded."""
    source, _, label = argument.partition("#")
    if not source or not label.strip():
        return _USAGE
    folder = Path(source)
    if not exists(folder):
        is_hub_id = source.count("/") <= 1 and not source.startswith((".", "/"))
        return None if is_hub_id else f"names a folder that does not exist: {source}"
    for file in ("config.json", "preprocessor_config.json"):
        if not is_file(folder / file):
            return f"names a folder without {file}, which a classifier of transformers has"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(2)}
        indices_of(label, {int(index): str(name) for index, name in names.items()})
    except (OSError, ValueError, AttributeError) as error:
        return f"has a config.json that cannot be read: {error}"
    except UserError as error:
        return f"names a label that the classifier does not have: {error}"
    return None


_networks: WeakValueDictionary[tuple[str, str, str], Network] = WeakValueDictionary()


def entry_of(argument: str) -> RewardEntry:
    """See `KINDS`."""
    source, _, label = argument.partition("#")

    def build(sources: Mapping[str, str], device: torch.device, dtype: str) -> LabelOdds:
        key = (sources["model"], str(device), dtype)
        network = _networks.get(key) or Network(sources["model"], device, dtype)
        _networks[key] = network
        return LabelOdds(network, indices_of(label, network.labels))

    return RewardEntry(
        unit="log-odds",
        meaning=f"a classifier of images is sure of {label!r}",
        parts={"model": Part(source=source)},
        is_differentiable=True,
        build=build,
    )
