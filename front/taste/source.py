"""The pictures asked about: of a run, by its policies and its base model, or of a model alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.base import get_config
from config.settings.files import exists, is_file
from config.settings.parse import parse
from config.settings.runs import named_run
from ddpo.prompts import load_prompts, split_prompts
from ddpo.rewards.answers import Shown
from front.errors import ChoiceError
from front.front import Front
from front.pictures.generate import to_picture
from front.pictures.painter import Painter
from morl.types import BASE_POLICY

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from PIL import Image

    from front.member import FrontPolicy

# Of a model alone, unless it is the embedded one, which has the default settings.
_STEPS, _GUIDANCE = 30, 7.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """A picture, and where it comes from."""

    shown: Shown
    picture: Image.Image


class Source:
    """Draws pictures by the base model and the policies of a run, mixed.

    Args:
        painter: draws.
        members: who draws; None is the base model.
        prompts: what to draw.
        model: name of the base model.
        run: name of the run; empty for a model alone.
        changes: to the painter's sampler settings, under diffusers' names.
    """

    def __init__(
        self,
        painter: Painter,
        members: Sequence[FrontPolicy | None],
        prompts: Sequence[str],
        *,
        model: str,
        run: str = "",
        changes: dict[str, Any] | None = None,
    ) -> None:
        self._painter, self._changes = painter, changes or {}
        self._members, self._prompts = tuple(members), tuple(prompts)
        self._model, self._run = model, run

    @classmethod
    def open(
        cls,
        run_or_model: str,
        prompts: str = "",
        *,
        model: str = "",
        device: str = "",
        rows_per_pass: int = 0,
        changes: dict[str, Any] | None = None,
    ) -> Source:
        """The source that a command line names.

        Args:
            run_or_model: run directory; or folder, file or hub id of a model.
            prompts: set or file; empty for the run's training prompts, or animals.
            model: where the run's base model is now; empty where it was.
            device: see `Painter`.
            rows_per_pass: UNet rows at a time; 0 as many as in the run.
            changes: to the sampler settings, under diffusers' names.

        Raises:
            UserError: if the run, the model or the prompts cannot be used.
        """
        path, changes = named_run(Path(run_or_model)), dict(changes or {})
        try:
            given = load_prompts(prompts) if prompts else None
        except ValueError as error:
            raise ChoiceError(f"--prompts={prompts}: {error}") from error
        if path.is_dir() and not is_file(path / "model_index.json"):
            front = Front.load(path)
            painter = Painter(front, model, device, rows_per_pass)
            return cls.of_front(front, painter, given, changes=changes)
        if path.is_absolute() and not exists(path):
            raise ChoiceError(f"{path} is neither a run directory nor a model")
        config = get_config()
        if run_or_model != config.pretrained.model:
            changes = {"num_inference_steps": _STEPS, "guidance_scale": _GUIDANCE, **changes}
        config.pretrained.model = run_or_model
        config.sample.rows_per_pass = rows_per_pass or config.sample.rows_per_pass
        settings = parse(config, {})
        given = given or split_prompts(settings.prompts).train
        painter = Painter.of_model(settings, device)
        name = settings.pretrained.model
        return cls(painter, [None], given, model=name, changes=changes)

    @classmethod
    def of_front(
        cls,
        front: Front,
        painter: Painter,
        prompts: Sequence[str] | None = None,
        *,
        changes: dict[str, Any] | None = None,
    ) -> Source:
        """The base model and all policies of a front.

        Args:
            front: of a run.
            painter: of the same run.
            prompts: what to draw; None for what the run was trained on.
            changes: see `open`.
        """
        return cls(
            painter,
            [None, *front.policies],
            prompts or split_prompts(painter.settings.prompts).train,
            model=painter.settings.pretrained.model,
            run=str(front.path),
            changes=changes,
        )

    def draw(self, rng: np.random.Generator, num_prompts: int, per_prompt: int) -> list[Drawn]:
        """Pictures of some prompts, each drawn by another member while there are others.

        Args:
            rng: chooses prompts, members and seeds.
            num_prompts: how many, at most.
            per_prompt: pictures of each.
        """
        num_prompts = min(num_prompts, len(self._prompts))
        asked: list[tuple[int, str, int]] = []  # member, prompt, seed
        for index in rng.permutation(len(self._prompts))[:num_prompts]:
            order = rng.permutation(len(self._members))
            for place in range(per_prompt):
                who = int(order[place % len(order)])
                asked.append((who, self._prompts[index], int(rng.integers(2**32))))
        out = []
        for who, member in enumerate(self._members):
            own = [(prompt, seed) for each, prompt, seed in asked if each == who]
            if own:
                texts, seeds = zip(*own, strict=True)
                images = self._painter.draw(member, texts, seeds, **self._changes)
                out += [
                    Drawn(shown=self._shown(member, *each), picture=to_picture(image))
                    for each, image in zip(own, images, strict=True)
                ]
        return out

    def _shown(self, member: FrontPolicy | None, prompt: str, seed: int) -> Shown:
        policy = BASE_POLICY if member is None else member.id
        origin = (self._model, self._run, policy, prompt, seed)
        digest = hashlib.sha256(repr(origin).encode()).hexdigest()[:12]
        return Shown(
            file=f"{policy}-{digest}.png",
            model=self._model,
            run=self._run,
            policy=policy,
            prompt=str(prompt),
            seed=seed,
            sampler={**self._painter.sampler, **self._changes},
        )
