"""Large files as a reward: DDPO's incompressibility (Black et al. 2024, 5.1)."""

from __future__ import annotations

from ddpo.rewards import RewardEntry
from ddpo.rewards.jpeg_bits import jpeg_bits
from ddpo.rewards.jpeg_compressibility import JpegSize

REWARD = RewardEntry(
    unit="kB",
    meaning="large files: size as JPEG of quality 95",
    published="DDPO 5.1 (Black et al. 2024)",
    companion=jpeg_bits,
    build=lambda *_: JpegSize(sign=1),
)
