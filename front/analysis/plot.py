"""The plot of a front with the blends measured between its policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

from front.labels import DPI, label_axis

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path

    from front.analysis.values import Analysis
    from front.front import Front


def plot_dense_front(path: Path, front: Front, analysis: Analysis) -> None:
    """Draw every pair of objectives: policies, and the blends measured between neighbours.

    Args:
        path: the PNG file.
        front: its policies are drawn with error bars.
        analysis: its blends; chords where interpolation fails are dashed.
    """
    num = len(front.objectives)
    pairs = [(i, j) for i in range(num) for j in range(i + 1, num)]
    figure, axes = plt.subplots(1, len(pairs), figsize=(6.2 * len(pairs), 5), squeeze=False)
    for axis, (i, j) in zip(axes[0], pairs, strict=True):
        for link in analysis.links:
            ends = np.array([link.first.report_returns, link.second.report_returns])
            color, style = ("tab:green", "-") if link.holds else ("tab:red", "--")
            axis.plot(ends[:, i], ends[:, j], color=color, linestyle=style, linewidth=1, zorder=1)
        _plot_blends(axis, analysis, i, j)
        means = np.array([policy.report_returns for policy in front.policies])
        errors = np.array([policy.report_std_error for policy in front.policies])
        axis.errorbar(
            means[:, i],
            means[:, j],
            xerr=errors[:, i],
            yerr=errors[:, j],
            fmt="o",
            color="tab:blue",
            label="policies",
        )
        base = front.base.report_returns
        axis.plot(base[i], base[j], "*", color="tab:red", markersize=14, label="base model")
        label_axis(axis, "x", front.objectives[i])
        label_axis(axis, "y", front.objectives[j])
        axis.legend(loc="best")
        axis.grid(alpha=0.3)
    figure.suptitle(
        f"{len(front.policies)} policies and their blends (report set, ± 1 standard error)"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    plt.close(figure)


def _plot_blends(axis: Any, analysis: Analysis, i: int, j: int) -> None:
    blends = [each for link in analysis.links for each in link.blends]
    for is_useful, label in ((True, "blends, non-dominated"), (False, "blends, dominated")):
        points = [b.blend.report_returns for b in blends if b.is_useful == is_useful]
        if points:
            x, y = np.array(points)[:, [i, j]].T
            face = "tab:green" if is_useful else "none"
            axis.scatter(
                x, y, s=22, marker="D", facecolors=face, edgecolors="tab:green", label=label
            )
