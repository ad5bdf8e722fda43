"""The small map of the front that the live app shows, in the colours of the page."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from front.labels import Label
from front.member import FrontPolicy

if TYPE_CHECKING:
    from front.front import Front
    from front.member import Blend
    from morl.types import Array, Objective

_PAGE_STYLE = Path(__file__).resolve().parents[1] / "templates" / "report.css"
_WIDTH, _HEIGHT, _MARGIN = 420, 260, 34
PIXEL_TRUE_BELOW = 256  # pixels; smaller pictures are enlarged without blur


def front_map(front: Front, chosen: FrontPolicy | Blend) -> str:
    """The front over its first two objectives as SVG, the chosen member ringed.

    A blend that nobody has measured is drawn on the chord between its parts, dashed.
    """
    members = [(member, returns_of(member)[:2]) for member in front.members]
    here, base = returns_of(chosen)[:2], front.base.report_returns[:2]
    points = np.array([base, here, *(returns for _, returns in members)])
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    span[span == 0] = 1.0

    def place(returns: Array) -> tuple[float, float]:
        x, y = (returns - low) / span
        return (
            _MARGIN + float(x) * (_WIDTH - 2 * _MARGIN),
            _HEIGHT - _MARGIN - float(y) * (_HEIGHT - 2 * _MARGIN),
        )

    shapes = []
    for member, returns in members:
        x, y = place(returns)
        kind, radius = ("policy", 5) if isinstance(member, FrontPolicy) else ("blend", 3.5)
        circle = f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
        shapes.append(f"{circle}<title>{escape(member.id)}</title></circle>")
    x, y = place(base)
    shapes.append(f'<text class="base" x="{x:.1f}" y="{y + 6:.1f}">★</text>')
    x, y = place(here)
    ring = "ring" if chosen.report_returns is not None else "ring guessed"
    shapes.append(f'<circle class="{ring}" cx="{x:.1f}" cy="{y:.1f}" r="9"/>')
    first, second = (_axis(objective) for objective in front.objectives[:2])
    return (
        f'<svg class="front-map" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="The front; {escape(chosen.id)} is ringed">'
        f'<path class="axes" d="M{_MARGIN - 14} 10V{_HEIGHT - 20}H{_WIDTH - 8}"/>'
        f"{''.join(shapes)}"
        f'<text class="axis" x="{_WIDTH - 8}" y="{_HEIGHT - 4}" text-anchor="end">{first} →</text>'
        f'<text class="axis" x="12" y="10" text-anchor="end" transform="rotate(-90 12 10)">'
        f"{second} →</text></svg>"
        '<p class="front-key">● policy &nbsp; ○ measured blend &nbsp; ★ base model</p>'
    )


def _axis(objective: Objective) -> str:
    """An objective's plain name and unit, larger being better as on the page's axes."""
    label = Label.of(objective)
    return escape(f"{label.text} [{objective.unit}]")


def returns_of(member: FrontPolicy | Blend) -> Array:
    """Report returns (M,); for a blend that nobody has measured, a point on its parts' chord."""
    if member.report_returns is not None:
        return member.report_returns
    return np.asarray(sum(part * policy.report_returns for policy, part in member.parts))


def style(picture_size: int) -> str:
    """The app's style sheet: the page's colours, and small pictures without blur.

    Args:
        picture_size: pixels of a picture's longer side.
    """
    page = re.search(r"^:root \{.*?^\}", _PAGE_STYLE.read_text(encoding="utf-8"), re.M | re.S)
    is_small = picture_size < PIXEL_TRUE_BELOW
    sharp = ".pictures img { image-rendering: pixelated; }" if is_small else ""
    return f"{page[0] if page else ''}\n{_STYLE}\n{sharp}"


_STYLE = """
.front-map { width: 100%; height: auto; }
.front-map .axes { fill: none; stroke: var(--line); }
.front-map .policy { fill: var(--o0); }
.front-map .blend { fill: var(--card); stroke: var(--o0); stroke-width: 1.5; }
.front-map .base { fill: var(--base); text-anchor: middle; font-size: 17px; }
.front-map .ring { fill: none; stroke: var(--o1); stroke-width: 3; }
.front-map .guessed { stroke-dasharray: 4 3; }
.front-map .axis, .front-key { fill: var(--soft); color: var(--soft); font-size: 12px; }
.pictures img { object-fit: contain; }
.taste { display: block; width: 100%; height: max(46rem, 85vh); border: 0; }
td, th { font-size: 13px; padding: 0.35rem 0.5rem !important; }
td:not(:first-child) { white-space: nowrap; }
"""
