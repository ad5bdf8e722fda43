"""The meaning of a command line, and the end of the program."""

from __future__ import annotations

import pytest

import mo_train
from config.settings.errors import StoppedError, UserError
from run.command_line import EXIT_FAILED, EXIT_STOPPED, EXIT_WRONG_SETTINGS, read_command
from tests.support.paths import ROOT


def test_help_shows_the_usage_and_where_the_settings_are(capsys):
    with pytest.raises(SystemExit) as end:
        read_command(["mo_train.py", "--help"], mo_train.main, mo_train.__doc__)
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "accelerate launch mo_train.py" in shown
    assert f"All settings, with their defaults: {ROOT / 'config' / 'base.py'}" in shown


def test_wrong_settings_end_the_program_before_anything_is_trained(capsys):
    with pytest.raises(SystemExit) as end:
        read_command(["mo_train.py", "--config.seed=-1"], mo_train.main)
    assert end.value.code == EXIT_WRONG_SETTINGS
    assert "seed=-1 must be at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("no disk"), EXIT_FAILED), (StoppedError("enough"), EXIT_STOPPED)]
)
def test_a_run_that_fails_or_is_stopped_ends_the_program_with_its_message(
    tmp_path, capsys, error, code
):
    seen = []

    def train(settings, stop):
        seen.append((settings.seed, stop.signal_name))
        raise error

    command = read_command(["mo_train.py", "--config.seed=3", f"--config.logdir={tmp_path}"], train)
    assert seen == []
    with pytest.raises(SystemExit) as end:
        command()
    assert (seen, end.value.code) == ([(3, None)], code)
    assert capsys.readouterr().err == f"{error}\n"
