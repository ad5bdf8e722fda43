"""Windows, as far as another system shows it: its missing names, and folders that do not open."""

from __future__ import annotations

SHORT = ("evolution.warmup_generations=1", "evolution.evolutionary_generations=0")


def test_a_run_needs_no_name_that_windows_lacks(program):
    code, output = program.run("run_name=windows", *SHORT, fault="be_on_windows")
    assert code == 0, output
    assert "Traceback" not in output
    assert (program.folder / "logs" / "windows" / "front.json").exists()
