"""The bank of training pictures, and the latents that a fixed linear map makes of them.

Latents are the leading principal components of the pictures' 8 x 8 patches, so they are known
before anything is trained: denoiser, decoder and encoder learn independently, at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from tools import emoji_data

PATCH = 8
LATENT_CHANNELS = 12
# A component is scaled up by at most this, relative to the first. Details stay smaller than shapes,
# so the denoiser learns shapes first; with 4 it spent most of its loss on details.
LARGEST_BOOST = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """Random pictures: (rows, H, W, 3) bytes, caption indices (rows,), ground indices (rows,)."""

    pictures: torch.Tensor
    captions: torch.Tensor
    grounds: torch.Tensor


def load_bank(sprites: dict[str, Image.Image], path: Path, variants: int, seed: int) -> Bank:
    """Returns `variants` random pictures of each caption; kept in `path`."""
    if not path.exists():
        bank = emoji_data.render_bank(sprites, variants, seed)
        rows = list(tqdm(bank, total=len(sprites) * variants, desc="render"))
        temporary = path.with_suffix(".tmp.npz")
        np.savez(
            temporary,
            pictures=np.stack([row.picture for row in rows]),
            captions=np.array([row.caption for row in rows]),
            grounds=np.array([row.ground for row in rows]),
        )
        temporary.replace(path)
    with np.load(path) as arrays:
        names = ("pictures", "captions", "grounds")
        return Bank(*(torch.from_numpy(arrays[name]) for name in names))


def to_unit(pictures: torch.Tensor) -> torch.Tensor:
    """Returns bytes (rows, H, W, 3) as floats (rows, 3, H, W) in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float().div(127.5).sub(1)


@dataclass(frozen=True, slots=True, eq=False)
class PatchComponents:
    """The linear map from pictures to latents: principal components of patches, scaled.

    Attributes:
        mean: (192,), of the patches.
        basis: (192, LATENT_CHANNELS), its columns are divided by `scale`.
        factor: Brings latents to a standard deviation of 1.
    """

    mean: torch.Tensor
    basis: torch.Tensor
    factor: float

    @classmethod
    def of(cls, pictures: torch.Tensor) -> PatchComponents:
        """Returns the components of pictures (rows, H, W, 3) in bytes."""
        patches = _patches(to_unit(pictures)).reshape(-1, 3 * PATCH**2)
        mean = patches.mean(0)
        variances, directions = torch.linalg.eigh(torch.cov((patches - mean).T))
        scale = variances[-LATENT_CHANNELS:].sqrt()
        signs = directions[:, -LATENT_CHANNELS:].sum(0).sign()  # eigh leaves them open
        basis = signs * directions[:, -LATENT_CHANNELS:]
        basis = basis / scale.clamp(min=scale.max().item() / LARGEST_BOOST)
        return cls(mean, basis, 1 / ((patches - mean) @ basis).std().item())

    def project(self, images: torch.Tensor) -> torch.Tensor:
        """Returns latents (rows, LATENT_CHANNELS, H / 8, W / 8) of images in [-1, 1]."""
        components: torch.Tensor = (_patches(images) - self.mean) @ self.basis
        return components.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def save(self, path: Path) -> None:
        """Writes the map."""
        torch.save({"mean": self.mean, "basis": self.basis, "factor": self.factor}, path)

    @classmethod
    def load(cls, path: Path) -> PatchComponents:
        """Reads the map."""
        state = torch.load(path, weights_only=True)
        return cls(state["mean"], state["basis"], state["factor"])


def _patches(images: torch.Tensor) -> torch.Tensor:
    return F.pixel_unshuffle(images, PATCH).permute(0, 2, 3, 1)


def components_of(bank: Bank, path: Path) -> PatchComponents:
    """Returns the components of every twentieth picture of the bank; kept in `path`."""
    if not path.exists():
        PatchComponents.of(bank.pictures[::20]).save(path)
    return PatchComponents.load(path)


@torch.no_grad()
def encode_bank(bank: Bank, components: PatchComponents, path: Path) -> torch.Tensor:
    """Returns the latents of all pictures, standard deviation 1; kept in `path` in float16."""
    if not path.exists():
        parts = tqdm(bank.pictures.split(512), desc="encode")
        latents = [components.factor * components.project(to_unit(part)) for part in parts]
        torch.save({"latents": torch.cat([part.half() for part in latents])}, path)
    return torch.as_tensor(torch.load(path, weights_only=True)["latents"])
