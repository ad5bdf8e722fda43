"""Publishes an analysis: blends in `front.json`, `analysis.json`, a plot, pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ddpo.files import check_writable, write_json
from front.analysis.plot import plot_dense_front
from front.analysis.values import ANALYSIS, DENSE_PLOT
from front.errors import FrontError
from front.record import NAME, FrontRecord
from run.samples import sample_path, write_samples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ddpo.types import Evaluation
    from front.analysis.values import Analysis
    from front.front import Front


def check_publishable(front: Front) -> None:
    """See that an analysis of a front can be published, before it is measured.

    Raises:
        FrontError: if the run directory cannot be written to.
    """
    try:
        for folder in (front.path, sample_path(front.path, "report", "any").parent):
            check_writable(folder)
    except OSError as error:
        raise FrontError(
            f"{front.path} cannot be written to: {error}; copy the run, and analyse the copy"
        ) from error


def publish_analysis(
    front: Front, analysis: Analysis, evaluations: Mapping[str, Evaluation]
) -> None:
    """Add the useful blends to `front.json`; write `analysis.json`, `dense_front.png`, pictures.

    Blends of an earlier analysis are replaced.

    Raises:
        FrontError: if the run directory cannot be written to.
    """
    volume = analysis.dense_hypervolume
    try:
        record = FrontRecord.read(front.path)
        record = replace(
            record,
            hypervolume=replace(record.hypervolume, report_with_blends=volume),
            blends=tuple(each.record for each in analysis.useful),
        )
        for blend in front.blends:
            sample_path(front.path, "report", blend.id).unlink(missing_ok=True)
        for each in analysis.useful:
            name = each.blend.id
            write_samples(front.path, "report", name, evaluations[name].images)
        write_json(front.path / ANALYSIS, analysis.to_json(front))
        plot_dense_front(front.path / DENSE_PLOT, front, analysis)
        write_json(front.path / NAME, record.to_json())  # last: what it names is there
    except OSError as error:
        raise FrontError(f"{front.path} cannot be written to: {error}") from error
