"""A batch of pictures for all rewards, converted, resized and embedded only once."""

from __future__ import annotations

import io
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image

from ddpo.devices import at_least_float32

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

T = TypeVar("T")

JPEG_QUALITY = 95


class ImageBatch:
    """Pictures as they would be saved, with 8 bits per channel, and results computed from them.

    Every reward sees the same 8-bit values, on every device, in this process or behind a remote
    judge. A result that one reward computes through `shared` is there for the others.

    Args:
        images: (rows, 3, H, W) in [0, 1].
        device: where rewards run; by default where the images are.
        keep_graph: let gradients flow from rewards through the attribute `images` to the pictures
            given. Rewards still see 8-bit values: rounding passes gradients straight through,
            limiting to [0, 1] does not.

    Attributes:
        device: where rewards run.
        keep_graph: see above.
    """

    def __init__(
        self, images: torch.Tensor, device: torch.device | None = None, *, keep_graph: bool = False
    ) -> None:
        self._images = images.detach()
        self._with_graph = images if keep_graph else None
        self.keep_graph = keep_graph
        self.device = device or images.device
        self._lock = threading.Lock()
        self._cells: dict[Hashable, _Cell] = {}

    def __len__(self) -> int:
        return len(self._images)

    def shared(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The result of `compute`, computed once per key and batch; safe across threads."""
        with self._lock:
            cell = self._cells.setdefault(key, _Cell())
        value: T = cell.get(compute)
        return value

    @property
    def is_whole(self) -> torch.Tensor:
        """(rows,) bool on the CPU: False for pictures with NaN or infinity."""
        return self.shared("is_whole", lambda: self._images.isfinite().flatten(1).all(dim=1).cpu())

    @property
    def pixels(self) -> torch.Tensor:
        """(rows, 3, H, W) uint8 on the rewards' device, rounded to nearest."""

        def convert() -> torch.Tensor:
            clean = self._images.float().clamp(0, 1)
            if not self.is_whole.all():
                clean.nan_to_num_(0)  # such pictures get no score, see `Scorer`
            return clean.mul_(255).round_().to(torch.uint8).to(self.device)

        return self.shared("pixels", convert)

    @property
    def images(self) -> torch.Tensor:
        """(rows, 3, H, W) float32 in [0, 1] on the rewards' device: `pixels` / 255.

        A new tensor every time: a reward that works in place spoils only its own. With a graph,
        float64 pictures stay float64.
        """
        if self._with_graph is None:
            return self.pixels.float().div(255)
        smooth = at_least_float32(self._with_graph.to(self.device)).clamp(0, 1)
        return with_gradient_of(smooth, self.pixels.to(smooth.dtype).div(255))

    @property
    def pil(self) -> list[Image.Image]:
        """One RGB picture per row."""

        def convert() -> list[Image.Image]:
            arrays = self.pixels.permute(0, 2, 3, 1).cpu().numpy()
            return [Image.fromarray(array) for array in arrays]

        return self.shared("pil", convert)

    def encoded(self, file_format: str) -> list[bytes]:
        """Each picture as a file: lossless "png", or "jpeg" of quality 95."""

        def encode() -> list[bytes]:
            return [in_memory(picture, file_format).getvalue() for picture in self.pil]

        return self.shared(("encoded", file_format), encode)


def in_memory(picture: Image.Image, file_format: str) -> io.BytesIO:
    """A picture as a file, see `ImageBatch.encoded`."""
    file = io.BytesIO()
    picture.save(file, format=file_format.upper(), quality=JPEG_QUALITY)
    return file


def with_gradient_of(smooth: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The value, with the gradient of a smooth function in its place: a straight-through estimator.

    Source: Bengio et al. 2013, section 4 (arXiv 1308.3432).
    """
    return value + (smooth - smooth.detach())


class _Cell:
    """One value: the first thread that asks computes it, the others wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value: tuple[Any, ...] = ()

    def get(self, compute: Callable[[], Any]) -> Any:
        with self._lock:
            if not self._value:
                self._value = (compute(),)
            return self._value[0]


class BatchReward(ABC):
    """A reward that shares work with others through an `ImageBatch`."""

    @abstractmethod
    def score(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:
        """Scores (rows,), larger is better, one prompt per row."""

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """The prompts whose ends this reward does not read."""
        del prompts
        return []

    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Scores (rows,) of images (rows, 3, H, W) in [0, 1], one prompt per row."""
        return self.score(ImageBatch(images), prompts)
