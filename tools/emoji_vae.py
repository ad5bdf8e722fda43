"""The autoencoder of the embedded model: 32 x 32 pictures <-> 8 x 8 x 4 latents.

It is trained in two parts:

1. Encoder and decoder together. For the first few hundred steps the encoder must also give the
   principal components of the 4 x 4 patches. From random weights alone, it would take thousands of
   steps to learn more than the mean colour.
2. The decoder alone, on the latents that the diffusion model will learn. The latents stay as they
   are while the pictures become sharper.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn
from tqdm import tqdm

from tools import emoji_data
from tools.emoji_training import Budget, TrainingRun, channels_last

LATENT_NOISE = 0.08  # while the encoder is guided
DECODER_NOISE = 0.03  # because the diffusion model's latents are slightly off
KL_WEIGHT = 1e-5


def build_vae() -> AutoencoderKL:
    """Returns an untrained autoencoder (0.8 M parameters), with little posterior noise."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=emoji_data.RESOLUTION,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 64),
        layers_per_block=1,
        norm_num_groups=16,
    )
    with torch.no_grad():
        vae.quant_conv.bias[4:] = -5
        vae.quant_conv.weight[4:] *= 0.1
    return vae


def to_unit(pictures: torch.Tensor) -> torch.Tensor:
    """Turns bytes (rows, H, W, 3) into floats (rows, 3, H, W) in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def principal_latents(pictures: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns the map from images to the four principal components of their 4 x 4 patches."""
    patches = F.pixel_unshuffle(to_unit(pictures[::20]), 4).permute(0, 2, 3, 1).reshape(-1, 48)
    mean = patches.mean(0)
    variances, directions = torch.linalg.eigh(torch.cov((patches - mean).T))
    scale = variances[-4:].sqrt()
    basis = directions[:, -4:] / scale.clamp(min=scale.max().item() / 4)

    def project(images: torch.Tensor) -> torch.Tensor:
        patches = F.pixel_unshuffle(images, 4).permute(0, 2, 3, 1)
        components: torch.Tensor = (patches - mean) @ basis
        return components.permute(0, 3, 1, 2)

    return project


def reconstruction_loss(output: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Returns L1 + L2 + half the L1 error of differences between neighbours, to keep edges."""
    error = output - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.5 * edges


def train_vae(
    pictures: torch.Tensor, path: Path, budget: Budget, seed: int, batch: int, guided_steps: int
) -> AutoencoderKL:
    """Trains encoder and decoder on pictures (rows, H, W, 3) in bytes; returns them."""
    torch.manual_seed(seed)
    vae = channels_last(build_vae())
    project = principal_latents(pictures)
    run = TrainingRun("vae", vae, path, budget, peak=1e-3, seed=seed, weight_decay=1e-4)
    for generator in run:
        rows = torch.randint(len(pictures), (batch,), generator=generator)
        images = to_unit(pictures[rows]).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(images).latent_dist
        latents = posterior.sample(generator)
        loss = KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        if run.step < guided_steps:
            target = project(images)
            loss = loss + F.mse_loss(posterior.mean, target)
            latents = target + LATENT_NOISE * torch.randn(target.shape, generator=generator)
        run.update(loss + reconstruction_loss(vae.decode(latents).sample, images))
    vae.load_state_dict(run.averaged())
    return vae.eval()


@torch.no_grad()
def encode_bank(vae: AutoencoderKL, pictures: torch.Tensor, path: Path) -> torch.Tensor:
    """Returns the latents (rows, 4, 8, 8) of all pictures, and keeps them in `path`."""
    if not path.exists():
        parts = tqdm(pictures.split(256), desc="encode")
        latents = torch.cat([vae.encode(to_unit(part)).latent_dist.mean for part in parts])
        torch.save({"latents": latents}, path)
    return torch.as_tensor(torch.load(path, weights_only=True)["latents"])


def train_decoder(
    vae: AutoencoderKL,
    latents: torch.Tensor,
    pictures: torch.Tensor,
    path: Path,
    budget: Budget,
    seed: int,
    batch: int,
) -> None:
    """Trains the decoder of `vae`, in place, on fixed latents and their pictures."""
    decoder = channels_last(nn.Sequential(vae.post_quant_conv, vae.decoder))
    run = TrainingRun("decoder", decoder, path, budget, peak=1.5e-3, seed=seed, weight_decay=1e-4)
    for generator in run:
        rows = torch.randint(len(pictures), (batch,), generator=generator)
        noise = torch.randn(latents[rows].shape, generator=generator)
        noisy = (latents[rows] + DECODER_NOISE * noise).contiguous(
            memory_format=torch.channels_last
        )
        run.update(reconstruction_loss(decoder(noisy), to_unit(pictures[rows])))
    decoder.load_state_dict(run.averaged())
