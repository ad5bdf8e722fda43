"""The page of fronts that `tools/gallery.py` writes."""

from __future__ import annotations

import pytest
from PIL import Image

from front.record import FrontRecord
from tools import gallery


def test_a_front_is_told_in_numbers_and_shown_from_end_to_end(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "PICTURES", tmp_path)
    text = gallery.section("base", finished_run)
    record = FrontRecord.read(finished_run)
    entries = [*record.policies, *(record.blends or ())]
    assert f" of {len(entries)} members improve everything" in text
    assert "## Colourful against a small file" in text
    assert text.count(" kB") == 1
    with Image.open(tmp_path / "gallery_base.png") as sheet:
        assert sheet.height > gallery.TILE * (1 + min(len(entries), gallery.SHOWN))
    assert (tmp_path / "gallery_base_front.png").is_file()
    shown = gallery.along(entries)
    first = [float(entry.report_returns[0]) for entry in entries]
    assert [float(shown[i].report_returns[0]) for i in (0, -1)] == [min(first), max(first)]


@pytest.mark.parametrize("recipe", gallery.RECIPES)
def test_its_recipes_are_there(recipe):
    assert (gallery.ROOT / "config" / f"{recipe}.py").is_file()
