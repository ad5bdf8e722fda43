"""Pages on fronts are true: their Python runs, their commands parse."""

from __future__ import annotations

import re
import shlex

import pytest
from PIL import Image

import mo_front
from tests.support.paths import ROOT


def blocks(page, language):
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("page", ["docs/front.md", "README.md"])
def test_the_python_that_uses_a_front_runs(page, finished_run, tmp_path, monkeypatch, capsys):
    from diffusers.utils import logging

    code = [block for block in blocks(page, "python") if "from front import Front" in block]
    assert code
    monkeypatch.chdir(tmp_path)
    logging.disable_progress_bar()
    model = finished_run.parents[1] / "model"
    for block in code:
        assert "logs/my_run" in block
        assert "ddpo/assets/emoji64-sd" in block
        here = block.replace("logs/my_run", str(finished_run))
        exec(here.replace("ddpo/assets/emoji64-sd", str(model)), {})
    pictures = list(tmp_path.glob("*.png"))
    assert len(pictures) == sum(block.count(".save(") for block in code)
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.size == (16, 16)


def test_every_command_of_the_page_is_understood():
    parser = mo_front.make_parser()
    commands = [
        line.partition("#")[0].removeprefix("python mo_front.py ")
        for page in ("docs/front.md", "docs/taste.md", "docs/your_model.md", "README.md")
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("python mo_front.py")
    ]
    assert len(commands) > 10
    for command in commands:
        parser.parse_args(mo_front.hyphenated(shlex.split(command)))
    names = {command.split()[0] for command in commands}
    assert names >= set(mo_front.COMMANDS) - {"serve"}
