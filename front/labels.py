"""How people read a measure: plain words, units and signs for pages and plots."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from front.tables import with_error

if TYPE_CHECKING:
    from collections.abc import Mapping

    from front.member import Guard
    from morl.types import Objective

DPI = 220  # of plots: sharp on dense screens, too

# Reward or guard -> words for its number, and for a picture with a large score.
_WORDS: Mapping[str, tuple[str, str]] = {
    "clip_alignment": ("true to its prompt", "true to its prompt"),
    "clip_score": ("true to its prompt (CLIP score)", "true to its prompt"),
    "pick_score": ("liked by people (PickScore)", "liked by people"),
    "hps_v2": ("liked by people (HPS v2)", "liked by people"),
    "image_reward": ("liked by people (ImageReward)", "liked by people"),
    "aesthetic_score": ("beauty", "beautiful"),
    "emoji_beauty": ("beauty", "beautiful"),
    "jpeg_compressibility": ("file size", "a small file"),
    "jpeg_incompressibility": ("detail (file size)", "rich in detail"),
    "colorfulness": ("colourfulness", "colourful"),
    "sharpness": ("sharpness", "sharp"),
    "rms_contrast": ("contrast", "rich in contrast"),
    "brightness": ("brightness", "bright"),
    "base_similarity": ("likeness to the base model's pictures", "like the base model's"),
    "diversity": ("variety", "varied"),
    "agreement": ("agreement of the judges", "judged alike"),
}
_KNOWN_UNITS = frozenset({"kB"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A measure in plain words.

    Attributes:
        text: words for its number: "file size".
        praise: words for a picture with a large score: "a small file".
        unit: of the number that is shown.
        plain_unit: the same if people know it, else empty: a score that is only compared.
        sign: -1 where that number is the negative of the score, so that less of it is better.

    Example:
        >>> from front.member import Guard
        >>> label = Label.of(Guard(name="jpeg_compressibility", unit="-kB", max_drop=None))
        >>> label.text, label.unit, label.number(-1.0273, 0.0072), label.number(0.1, None, "+")
        ('file size', 'kB', '1.0273 ± 0.0072', '−0.1')
    """

    text: str
    praise: str
    unit: str
    plain_unit: str
    sign: int

    @classmethod
    def of(cls, measure: Objective | Guard) -> Label:
        """The words of a reward or guard; its own name in words where nobody wrote others."""
        own = measure.name.replace("_", " ")
        text, praise = _WORDS.get(measure.name, (own, own))
        is_negative = measure.unit.startswith("-") and len(measure.unit) > 1
        unit = measure.unit[1:] if is_negative else measure.unit
        plain = unit if unit in _KNOWN_UNITS else ""
        sign = -1 if is_negative else 1
        return cls(text=text, praise=praise, unit=unit, plain_unit=plain, sign=sign)

    def to_json(self) -> dict[str, Any]:
        """For the page's script."""
        return asdict(self)

    def brief(self, value: float, error: float) -> str:
        """A score without its error, to the error's first digit.

        Example:
            >>> Label(text="", praise="", unit="", plain_unit="", sign=-1).brief(-1.0273, 0.0072)
            '1.027'
        """
        digits = max(0, -int(f"{error:e}".split("e")[1])) if error else None
        shown = self.sign * value
        return (f"{shown:.4g}" if digits is None else f"{shown:.{digits}f}").replace("-", "−")

    def number(self, value: float, error: float | None, plus: str = "") -> str:
        """A score as it is shown; see `measured`."""
        return measured(self.sign * value, error, plus)


def measured(value: float, error: float | None, plus: str = "") -> str:
    """A number with the decimals that its standard error leaves meaningful.

    Args:
        value: the estimate.
        error: its standard error; None or 0 where there is none.
        plus: "+" to show the sign of gains.

    Example:
        >>> measured(0.71234, 0.0061), measured(-92.4, None), measured(0.25, 0.01, "+")
        ('0.7123 ± 0.0061', '−92.4', '+0.250 ± 0.010')
    """
    text = with_error(value, error) if error else f"{value:.4g}"
    return (f"+{text}" if plus and value > 0 else text).replace("-", "−")


def plain_label(text: str) -> str:
    r"""A text as matplotlib draws it: `$` is no formula, and half a character is an escape.

    >>> plain_label("a $5 or $6 note")
    'a \\$5 or \\$6 note'
    """
    return text.encode(errors="backslashreplace").decode().replace("$", r"\$")


def label_axis(axes: Any, which: str, measure: Objective | Guard, prefix: str = "") -> None:
    """Label an axis in plain words; better stays up and right.

    Args:
        axes: matplotlib's.
        which: "x" or "y".
        measure: whose scores are plotted.
        prefix: before the words.
    """
    label = Label.of(measure)
    less = ", less is better" if label.sign < 0 else ""
    text = plain_label(f"{prefix}{label.text} [{label.unit}]{less}")
    getattr(axes, f"set_{which}label")(text)
    if label.sign < 0:
        axis = getattr(axes, f"{which}axis")
        axis.set_major_formatter(lambda value, _: f"{0 - value:.6g}")
