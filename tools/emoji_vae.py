"""The autoencoder of the embedded model: 64 x 64 pictures <-> 8 x 8 x 12 latents.

Its latents are fixed from the start (`emoji_bank.PatchComponents`). The decoder learns to draw the
picture that belongs to them, first by distance, then also against a critic that looks for blurred
edges. The encoder learns to give the latents.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from tools import emoji_data
from tools.emoji_bank import LATENT_CHANNELS, PatchComponents, to_unit
from tools.emoji_training import Course, TrainingRun, channels_last, fallen

DECODER_NOISE = 0.1  # at most; the latents that the diffusion model draws are a little off
SHARPNESS_WEIGHTS = (1.0, 6.0)  # at first, and at the end, when the learning rate falls
STAGE_STEPS = (500, 900, 1300)  # when the second, third and last stage join


def build_vae() -> AutoencoderKL:
    """Returns an untrained autoencoder (2.8 M parameters), with little posterior noise."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        sample_size=emoji_data.RESOLUTION,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        norm_num_groups=8,
    )
    with torch.no_grad():
        vae.quant_conv.bias[LATENT_CHANNELS:] = -8
        vae.quant_conv.weight[LATENT_CHANNELS:] *= 0.01
    return vae


def laplacian(images: torch.Tensor) -> torch.Tensor:
    """Returns the sum of the four differences to neighbours, of grey values; H and W lose 2."""
    grey = images.mean(1, keepdim=True)
    inner = grey[..., 1:-1, 1:-1]
    across = grey[..., 1:-1, :-2] + grey[..., 1:-1, 2:]
    return across + grey[..., :-2, 1:-1] + grey[..., 2:, 1:-1] - 4 * inner


def sharpness_loss(output: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Returns the error of the strength of edges, place by place, so that it cannot average out.

    Weak edges cost twice what strong ones cost: where a decoder cannot know how sharp an edge is,
    it should not guess the softer one.
    """

    def strength(batch: torch.Tensor) -> torch.Tensor:
        return (F.avg_pool2d(laplacian(batch).square(), 6, 4) + 1e-4).sqrt()

    missing = strength(images) - strength(output)
    return torch.maximum(2 * missing, -missing).mean()


def reconstruction_loss(
    output: torch.Tensor, images: torch.Tensor, sharpness_weight: float
) -> torch.Tensor:
    """Returns L1 + L2 + half the L1 distance of neighbouring differences + sharpness."""
    error = output - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    distance = error.abs().mean() + error.square().mean() + 0.5 * edges
    return distance + sharpness_weight * sharpness_loss(output, images)


def noisy_latents(
    images: torch.Tensor, components: PatchComponents, generator: torch.Generator
) -> torch.Tensor:
    """Returns latents of images in [-1, 1] with random errors."""
    latents = components.project(images)
    noise = torch.randn(latents.shape, generator=generator)
    amount = DECODER_NOISE / components.factor * torch.rand(len(images), generator=generator)
    noisy = latents + amount.view(-1, 1, 1, 1) * noise
    return noisy.contiguous(memory_format=torch.channels_last)


class GrowingDecoder(nn.Module):
    """The decoder of an autoencoder, with a rough answer at every resolution.

    From random weights, a deep decoder takes thousands of steps to pass on more than mean colours.
    Here every stage also answers by itself, by a linear map to the pixels of its cells. So cheap
    stages are trained before expensive ones, and the first layers learn as fast as the last.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.enter = nn.Sequential(vae.post_quant_conv, vae.decoder.conv_in, vae.decoder.mid_block)
        self.stages = vae.decoder.up_blocks
        self.leave = nn.Sequential(
            vae.decoder.conv_norm_out, vae.decoder.conv_act, vae.decoder.conv_out
        )
        widths = [self.enter[1].out_channels, *(s.resnets[-1].out_channels for s in self.stages)]
        self.cells = (8, 4, 2)
        self.heads = nn.ModuleList(
            nn.Conv2d(width, 3 * cell**2, 1)
            for width, cell in zip(widths, self.cells, strict=False)
        )

    def forward(self, latents: torch.Tensor, stages: int) -> list[torch.Tensor]:
        """Returns the answers of the first `stages` stages of four, images (rows, 3, H, W)."""
        features = self.enter(latents)
        answers = []
        for index in range(stages):
            if index == len(self.cells):
                break
            answers.append(F.pixel_shuffle(self.heads[index](features), self.cells[index]))
            if index + 1 < stages:
                features = self.stages[index](features)
        if stages > len(self.cells):
            answers.append(self.leave(self.stages[-1](features)))
        return answers


def train_decoder(
    vae: AutoencoderKL,
    components: PatchComponents,
    pictures: torch.Tensor,
    course: Course,
) -> None:
    """Trains the decoder of `vae`, in place, on pictures (rows, H, W, 3) in bytes."""
    decoder = channels_last(GrowingDecoder(vae)).to(course.device)
    run = TrainingRun("decoder", decoder, course, peak=1.5e-3, weight_decay=1e-4)
    for generator in run:
        stages = 1 + sum(run.step >= start for start in STAGE_STEPS)
        size = course.batch * (2 if stages == 1 else 1)
        rows = torch.randint(len(pictures), (size,), generator=generator)
        images = to_unit(pictures[rows])
        latents = noisy_latents(images, components, generator).to(course.device)
        images = images.to(course.device)
        answers = decoder(latents, stages)
        error = (answers[-1] - images).square().mean().item()
        sharper = laplacian(answers[-1].detach()).var() / laplacian(images).var()
        first, last = SHARPNESS_WEIGHTS
        weight = first + (last - first) * fallen(run.progress)
        loss = reconstruction_loss(answers[-1], images, weight)
        for answer in answers[:-1]:
            loss = loss + 0.2 * F.l1_loss(answer, images)
        run.update(loss, mse=error, sharpness=sharper.item(), stages=stages)
    decoder.cpu().load_state_dict(run.averaged())


def train_encoder(
    vae: AutoencoderKL,
    components: PatchComponents,
    pictures: torch.Tensor,
    course: Course,
) -> None:
    """Trains the encoder of `vae`, in place, to give the latents of pictures in bytes."""
    encoder = channels_last(nn.Sequential(vae.encoder, vae.quant_conv)).to(course.device)
    run = TrainingRun("encoder", encoder, course, peak=2e-3, weight_decay=1e-4)
    for generator in run:
        rows = torch.randint(len(pictures), (course.batch,), generator=generator)
        images = to_unit(pictures[rows])
        mean, log_variance = encoder(images.to(course.device)).chunk(2, dim=1)
        loss = F.mse_loss(mean, components.project(images).to(course.device))
        run.update(loss + 1e-3 * (log_variance + 8).square().mean())
    encoder.cpu().load_state_dict(run.averaged())
