"""Write docs/compatibility.md from docs/compatibility.csv: `python -m tools.compatibility`.

Each row is about one kind of file: what happens, which test shows it, where its format is defined.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from itertools import groupby

from tools.doc_tables import ROOT

ROWS = ROOT / "docs" / "compatibility.csv"
PAGE = ROOT / "docs" / "compatibility.md"
_HEAD = """# What works with what

Base models, LoRAs, prompt files and targets of export: what happens with each kind, and the test
that shows it. Every kind works exactly, or is refused in one line that says what to do. Tests use
small models of the same classes and files of the same make; no published checkpoint was tried.

Made by `python -m tools.compatibility` from `docs/compatibility.csv`.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of file.

    Attributes:
        section: of the page.
        kind: of file, program or target.
        outcome: what happens with this kind.
        test: node id of the test that shows the outcome.
        source: where the format is defined; "-" if this project defines it.
    """

    section: str
    kind: str
    outcome: str
    test: str
    source: str


def read_rows() -> list[Row]:
    """All rows, section by section."""
    with ROWS.open(encoding="utf-8", newline="") as file:
        return [Row(**row) for row in csv.DictReader(file)]


def page() -> str:
    """The text of the page."""
    parts = [_HEAD]
    for section, rows in groupby(read_rows(), key=lambda row: row.section):
        lines = [f"## {section}\n", "| Kind | What happens | Test | Source |", "| --- " * 4 + "|"]
        for row in rows:
            cells = (row.kind, row.outcome, f"`{row.test}`", row.source)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}: {len(read_rows())} rows\n")
