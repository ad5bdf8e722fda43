"""Distils the embedded model into a LoRA that draws in four steps without guidance.

    python -m tools.distil_emoji_sd --work /tmp/emoji-lcm

A consistency model (Song et al. 2023) jumps from any point of a trajectory to its end. A latent
consistency model (Luo et al. 2023) has guidance folded in and draws by `LCMScheduler`: jump to the
picture, add noise again, jump again. Four jumps are enough, so it is taught at their four
timesteps. `python -m tools.measure_emoji_sd --name emoji` measures it.

Training has rounds. In each, the student draws. From every point that it passes, the teacher then
draws to the end, by guided DDIM without noise. The student then learns to jump there from all
points recorded so far. So it learns to correct its own errors, and no data are needed.

The command may be stopped at any time; with the same `--work` it resumes. Everything is seeded.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.func import functional_call
from tqdm import tqdm

from config.settings.files import path
from ddpo.agents.adapter import Adapter
from ddpo.assets import ASSETS
from ddpo.ddim import denoise, guide
from tools.emoji_names import REPORT_CAPTIONS, TRAIN_CAPTIONS
from tools.emoji_text import prompt_table, tokenize
from tools.emoji_training import Course, TrainingRun, channels_last, save_state

RANK = 8
GUIDANCE = 3.0
STUDENT_STEPS, TEACHER_STEPS = 4, 8
ROUNDS, ROUND_STEPS, BATCH = 4, 75, 64
ROUND_PICTURES = 128
RATE = 2e-3


class LowRankUpdate(nn.Module):
    """A LoRA on every linear layer and convolution of a network, added to its weights.

    To add it to weights rather than to activations costs next to nothing for a whole batch.

    Args:
        network: The network, which stays as it is.
        rank: Of each update.
    """

    def __init__(self, network: nn.Module, rank: int) -> None:
        super().__init__()
        self.rank = rank
        layers = {
            name: layer
            for name, layer in network.named_modules()
            if isinstance(layer, (nn.Linear, nn.Conv2d))
        }
        self.weights = {name: layer.weight.detach() for name, layer in layers.items()}
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name, weight in self.weights.items():
            down = torch.empty(rank, *weight.shape[1:])
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            self.down[_key(name)] = nn.Parameter(down)
            self.up[_key(name)] = nn.Parameter(torch.zeros(len(weight), rank))

    def changed(self) -> dict[str, torch.Tensor]:
        """Returns the changed weights by their names in the network."""
        changed = {}
        for name, weight in self.weights.items():
            update = self.up[_key(name)] @ self.down[_key(name)].flatten(1)
            changed[f"{name}.weight"] = weight + update.view_as(weight)
        return changed

    def adapter(self) -> Adapter:
        """Returns the update as a LoRA in float16."""
        matrices = {}
        for name, weight in self.weights.items():
            up = self.up[_key(name)].detach()
            up = up.view(*up.shape, *[1] * (weight.dim() - 2))
            matrices[name] = (self.down[_key(name)].detach().half(), up.half())
        return Adapter(
            matrices=matrices,
            rank=self.rank,
            alpha=float(self.rank),
            target_modules=tuple(self.weights),
        )


def _key(name: str) -> str:
    """Returns a layer's name without the dots that names of parameters must not have."""
    return name.replace(".", "-")


class Points(NamedTuple):
    """Points of trajectories, and where the teacher arrives from them.

    Attributes:
        noisy: (rows, 4, 8, 8) latents.
        timesteps: (rows,) of the latents.
        tokens: (rows, length) of the prompts.
        final: (rows, 4, 8, 8) latents of the teacher's pictures.
    """

    noisy: torch.Tensor
    timesteps: torch.Tensor
    tokens: torch.Tensor
    final: torch.Tensor

    @classmethod
    def joined(cls, parts: list[Points]) -> Points:
        """Returns all points of the parts, in order."""
        return cls(*map(torch.cat, zip(*parts, strict=True)))

    def rows(self, which: torch.Tensor) -> Points:
        """Returns some of the points."""
        return Points(*(values[which] for values in self))


class Distillation:
    """Teacher, student and their schedules.

    Args:
        pipeline: The teacher.
        seed: Of the student's first factors.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, seed: int) -> None:
        self.unet: UNet2DConditionModel = channels_last(pipeline.unet.requires_grad_(False).eval())
        self.encoder = pipeline.text_encoder.requires_grad_(False).eval()
        self.table = prompt_table(pipeline.tokenizer, [*TRAIN_CAPTIONS, *REPORT_CAPTIONS]).flatten(
            0, 1
        )
        self.empty = self.states(tokenize(pipeline.tokenizer, [""]))
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        torch.manual_seed(seed)
        self.student = LowRankUpdate(self.unet, RANK)

    def states(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns the text encoder's states of the prompts."""
        states: torch.Tensor = self.encoder(tokens).last_hidden_state
        return states

    def alpha_bar(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Returns cumulative alphas, broadcastable to latents."""
        alphas: torch.Tensor = self.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alphas

    def predicted(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor
    ) -> torch.Tensor:
        """Returns the student's prediction of the noise."""
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        inputs = (noisy, timesteps, states)
        predicted: torch.Tensor = functional_call(
            self.unet, self.student.changed(), inputs, {"return_dict": False}
        )[0]
        return predicted

    def finish(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor
    ) -> torch.Tensor:
        """Returns the picture's latents as the teacher draws them, by guided DDIM.

        Args:
            noisy: (rows, 4, 8, 8) latents at the first timestep.
            timesteps: Of the steps, falling.
            states: Of the prompts.
        """
        both = torch.cat([self.empty.expand_as(states), states])
        ends = [*self.alpha_bar(timesteps[1:]), self.scheduler.final_alpha_cumprod]
        for timestep, end in zip(timesteps, ends, strict=True):
            pair = noisy.repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)
            empty, prompted = self.unet(pair, timestep, both).sample.chunk(2)
            guided = guide(empty, prompted, GUIDANCE)
            final, noise = denoise(guided, noisy, self.alpha_bar(timestep[None]))
            noisy = end.sqrt() * final + (1 - end).sqrt() * noise
        return final

    @torch.no_grad()
    def record(self, seed: int, pictures: int) -> Points:
        """Returns the points of pictures that the student draws.

        Args:
            seed: Of prompts and noise.
            pictures: How many are drawn.
        """
        generator = torch.Generator().manual_seed(seed)
        scheduler = LCMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(TEACHER_STEPS)
        fine = scheduler.timesteps
        scheduler.set_timesteps(STUDENT_STEPS)
        points = []
        for start in tqdm(range(0, pictures, BATCH), desc="record"):
            rows = min(BATCH, pictures - start)
            tokens = self.table[torch.randint(len(self.table), (rows,), generator=generator)]
            states = self.states(tokens)
            noisy = torch.randn((rows, 4, 8, 8), generator=generator)
            for timestep in scheduler.timesteps:
                final = self.finish(noisy, fine[fine <= timestep], states)
                points.append(Points(noisy, timestep.expand(rows), tokens, final))
                predicted = self.predicted(noisy, timestep.expand(rows), states)
                noisy = scheduler.step(predicted, timestep, noisy, generator=generator).prev_sample
        return Points.joined(points)

    def loss(self, points: Points) -> torch.Tensor:
        """Returns the mean length of the student's error, as seen in the predicted noise.

        It is a length because squares would ignore all but the largest errors. It is measured in
        the noise because an error of the picture counts less where more noise will be added.
        """
        alpha_bar = self.alpha_bar(points.timesteps)
        wanted = (points.noisy - alpha_bar.sqrt() * points.final) / (1 - alpha_bar).sqrt()
        predicted = self.predicted(points.noisy, points.timesteps, self.states(points.tokens))
        error: torch.Tensor = (predicted - wanted).flatten(1).norm(dim=1).mean()
        return error

    def train(self, work: Path, scale: float, seed: int) -> None:
        """Trains the student; leaves it with its averaged weights.

        Args:
            work: Folder of the state and of the recorded points.
            scale: Times all numbers of steps and pictures.
            seed: Of everything that is drawn.
        """
        round_steps = math.ceil(scale * ROUND_STEPS)
        run = TrainingRun(
            "student",
            self.student,
            Course(path=work / "student.pt", steps=ROUNDS * round_steps, seed=seed, batch=BATCH),
            peak=RATE,
            decay=0.99,
            warmup=min(50, round_steps),
            weight_decay=0.0,
        )
        rounds: list[Points] = []
        for generator in run:
            while len(rounds) <= run.step // round_steps:
                file = work / f"points_{len(rounds)}.pt"
                if not file.exists():
                    pictures = math.ceil(scale * ROUND_PICTURES)
                    points = self.record(seed * 1009 + len(rounds), pictures)
                    save_state(file, points._asdict())
                rounds.append(Points(**torch.load(file, weights_only=True)))
                points = Points.joined(rounds)
            which = torch.randint(len(points.noisy), (BATCH,), generator=generator)
            run.update(self.loss(points.rows(which)))
        self.student.load_state_dict(run.averaged())


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=path, required=True, help="folder for states; resumed from")
    parser.add_argument("--teacher", type=path, default=ASSETS / "emoji-sd")
    parser.add_argument("--output", type=path, default=ASSETS / "emoji-lcm", help="gets the LoRA")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="times steps and pictures")
    parser.add_argument("--threads", type=int, help="CPU threads [all]")
    return parser.parse_args()


def main() -> None:
    """Trains the student and writes it."""
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.teacher, local_files_only=True)
    distillation = Distillation(pipeline, arguments.seed)
    distillation.train(arguments.work, arguments.scale, arguments.seed)
    distillation.student.adapter().save(arguments.output)


if __name__ == "__main__":
    main()
