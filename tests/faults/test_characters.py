"""A run whose folder, files and prompts hold characters of all kinds."""

from __future__ import annotations

import json
import os

SHORT = ("evolution.warmup_generations=1", "evolution.evolutionary_generations=0")
PROMPTS = ["a \N{CAT FACE}", "\u732b $x$ $\\bad$", "\x1b[31mred", "b\u2028c"]


def test_a_run_takes_any_character_of_a_path_or_prompt(program):
    folder = program.folder / os.fsdecode("caf\u00e9 \N{CAT FACE} $x$".encode() + b"\xe9")
    folder.mkdir()
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, PROMPTS)))
    words = [f"logdir={folder}", f"prompts.train={folder / 'prompts.jsonl'}", *SHORT]
    code, output = program.run("run_name=odd", *words, with_plots=True)
    assert code == 0, output
    assert "Traceback" not in output
    assert "train prompts: 4, the first 'a \N{CAT FACE}', '\u732b $x$ $\\\\bad$', " in output
    search = json.loads((folder / "odd" / "search.json").read_text())
    assert search["samples"]["prompts"][:4] == PROMPTS
    code, output = program.run(f"resume_from={folder / 'odd' / 'checkpoints' / '00001'}", *words)
    assert (code, output.count("is finished")) == (0, 1), output
