"""Any character of a path, a name or a unit can be shown in a plot, a page and a card."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

import mo_front
from front import Front
from front.analysis.plot import plot_dense_front
from front.analysis.values import Analysis
from front.pictures.generate import _slug
from front.pictures.plots import plot_front, plot_samples
from front.record import FrontRecord
from front.view import FrontView

ODD = "$x$ $\\bad$ 50 % _{ \udce9 \0 \x1b[31m \n \N{CAT FACE}"
NO_TEXT = os.fsdecode("caf\u00e9 \N{CAT FACE} $x$ $\\bad$".encode() + b"\xe9")


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_a_plot_shows_any_name_and_unit(finished_run, tmp_path):
    record = FrontRecord.read(finished_run)
    first, *rest = record.objectives
    odd = dataclasses.replace(first, unit=ODD)
    view = FrontView.of_front(dataclasses.replace(record, objectives=(odd, *rest)))
    plot_front(tmp_path / "front.png", view)
    front = dataclasses.replace(Front.load(finished_run), objectives=(odd, *rest))
    analysis = Analysis(links=(), hypervolume=0.1, dense_hypervolume=0.1, num_images=1)
    plot_dense_front(tmp_path / "dense.png", front, analysis)
    for name in ("front.png", "dense.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 100


def test_a_sheet_shows_any_prompt(tmp_path):
    import torch

    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    plot_samples(tmp_path / "sheet.png", [ODD], [(ODD, images)])
    plot_samples(tmp_path / "plain.png", ["a"], [("a", images)])
    with Image.open(tmp_path / "sheet.png") as odd, Image.open(tmp_path / "plain.png") as plain:
        assert odd.size == plain.size
        assert odd.tobytes() != plain.tobytes()


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_a_run_in_a_folder_whose_name_is_no_text_can_be_shown(run_copy, tmp_path, capsys):
    run = Path(shutil.copytree(run_copy, tmp_path / NO_TEXT))
    config = run / "config.json"
    config.write_text(config.read_text().replace('"logdir": "', '"logdir": "\\udce9'))
    for words in (["show"], ["report"], ["compare", "--out", str(tmp_path / "c.png")]):
        other = [str(run_copy)] if words[0] == "compare" else []
        status = mo_front.main([words[0], str(run), *other, *words[1:]])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        assert "\udce9" not in printed.out
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "\\udce9" in page
    assert mo_front.main(["pick", str(run), "--weights", "1,0", "--out", str(run / "out")]) == 1
    assert "is not valid UTF-8" in capsys.readouterr().err  # as safetensors says


def test_a_file_is_named_after_a_prompt_as_far_as_the_system_can(monkeypatch):
    assert _slug("\u732b") == "\u732b"
    ascii_only = lambda name: name.encode("ascii", errors="surrogateescape")  # noqa: E731
    monkeypatch.setattr(os, "fsencode", ascii_only)
    names = [_slug(prompt) for prompt in ("\u732b", "\u72ac", "a \u732b", "cat")]
    assert [name.split("-")[0] for name in names] == ["empty", "empty", "a", "cat"]
    assert len(set(names)) == 4
