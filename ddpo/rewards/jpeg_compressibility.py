"""Small files as a reward: DDPO's compressibility (Black et al. 2024, 5.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ddpo.rewards import RewardEntry
from ddpo.rewards.image_batch import BatchReward
from ddpo.rewards.jpeg_bits import jpeg_bits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddpo.rewards.image_batch import ImageBatch

_BYTES_PER_KB = 1000


class JpegSize(BatchReward):
    """Signed JPEG file size at quality 95, in kB of 1000 bytes.

    Args:
        sign: -1 rewards small files (values are negative), +1 rewards large ones.
    """

    def __init__(self, sign: int) -> None:
        self.sign = sign

    def score(self, batch: ImageBatch, prompts: Sequence[str]) -> torch.Tensor:  # noqa: ARG002
        """See `BatchReward`; the prompts do not matter."""
        sizes = [len(file) / _BYTES_PER_KB for file in batch.encoded("jpeg")]
        return self.sign * torch.tensor(sizes, dtype=torch.float32)


REWARD = RewardEntry(
    unit="-kB",
    meaning="small files: negated size as JPEG of quality 95",
    published="DDPO 5.1 (Black et al. 2024)",
    companion=jpeg_bits,
    build=lambda *_: JpegSize(sign=-1),
)
