"""Settings that earlier versions had, and what becomes of a run that was made with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

LAST_VERSION = "commit 7aaf014"  # that has the settings below


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """One setting that is gone.

    Attributes:
        was: the value at which a run did what every run does now.
        instead: what to do without it.
        is_harmless: whether any other value changed nothing in what was learnt, or by rounding
            only, so that such a run can be continued, too.
        is_drawn: whether the pictures of finished policies depend on it.
    """

    was: Any
    instead: str
    is_harmless: bool = False
    is_drawn: bool = False

    def advice(self, name: str) -> str:
        """What to say to a recipe or a command line that sets it."""
        return (
            f"{name} is not a setting any more: {self.instead}; {LAST_VERSION} is the last version "
            "that has it"
        )

    def is_kept(self, value: Any, *, is_finished: bool) -> bool:
        """Whether a run with this value can be continued, or drawn from if it is finished."""
        return value == self.was or self.is_harmless or (is_finished and not self.is_drawn)


REMOVED = {
    "evolution.predictor": Removed(
        was="scale_free",
        instead="PGMORL's own prediction model is in benchmarks/authors_prediction.py",
    ),
    "sample.noisy_steps": Removed(
        was=0,
        instead="all steps are drawn with noise; train.timestep_fraction trains fewer of them",
    ),
    "train.best_of": Removed(
        was=1.0, instead="all images are trained; draw fewer of them by sample.images_per_prompt"
    ),
    "train.max_skipped_steps": Removed(
        was=10, instead="an agent may skip 10 steps in a row", is_harmless=True
    ),
    "train.nft_strength": Removed(was=1.0, instead="diffusion_nft has the strength 1"),
    "train.recompute_log_probs": Removed(
        was="auto", instead="they are computed again in half precision; see pretrained.dtype"
    ),
    "train.step_weighting": Removed(
        was="equal", instead="leave out the most sensitive steps by train.skip_last_steps"
    ),
}


def carried_over(
    given: Mapping[str, Any], *, is_finished: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """The settings of an earlier run as settings of this version.

    Args:
        given: dotted names and values.
        is_finished: whether its policies are only drawn from; what was needed to train them then
            does not matter.

    Returns:
        Dotted names and values of today, and a sentence for each setting that has no equal.
    """
    flat, problems = dict(given), []
    for name in [name for name in given if name in REMOVED]:
        value = flat.pop(name)
        if not REMOVED[name].is_kept(value, is_finished=is_finished):
            problems.append(
                f"{name} was {value!r} in this run and is not a setting any more; "
                f"{LAST_VERSION} is the last version that has it and can continue the run"
            )
    return flat, problems
