"""Notes on prompts that are too long for the model or a reward, given at the start of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from ddpo.prompts import PromptSplit

MODEL = "the model"
_SHOWN = 60  # characters of a prompt


def all_prompts(prompts: PromptSplit, negative: str = "") -> list[str]:
    """The distinct prompts of a run."""
    found = (*prompts.train, *prompts.selection, *prompts.report, negative)
    return [prompt for prompt in dict.fromkeys(found) if prompt]


def length_notes(cut: Mapping[str, Sequence[str]], prompts: Collection[str]) -> Iterator[str]:
    """One sentence for each reader (the model or a reward) that cuts off some prompts.

    Args:
        cut: reader -> prompts whose ends it does not read.
        prompts: all distinct prompts.
    """
    for name, texts in cut.items():
        if texts:
            shown = texts[0][:_SHOWN] + "..." * (len(texts[0]) > _SHOWN)
            advice = "; raise pretrained.prompt_parts" if name == MODEL else ""
            yield (
                f"{name} does not read the ends of {len(texts)} of {len(prompts)} prompts, which "
                f"are too long: {shown!r}{advice}"
            )
