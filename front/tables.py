"""Plain tables: for a terminal, and for Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROUNDING = 1e-7  # of a value: an error that small is float32's


def terminal_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of aligned columns; the first column is flush left, the others right.

    Example:
        >>> print(terminal_table(["policy", "size"], [["base", "7 kB"], ["g000a1", "26 kB"]]))
        policy   size
        base     7 kB
        g000a1  26 kB
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as Markdown.

    Example:
        >>> print(markdown_table(["policy", "size"], [["base", "7 kB"]]))
        | policy | size |
        | --- | --- |
        | base | 7 kB |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_error(value: float, error: float) -> str:
    """A value and its standard error, to the error's second digit.

    Example:
        >>> with_error(-0.9577499, 0.0226), with_error(5.81, 0.0)
        ('-0.958 ± 0.023', '5.81 ± 0')
    """
    if not error > _ROUNDING * abs(value):
        return f"{value:.4g} ± 0"
    digits = max(0, 1 - int(f"{error:e}".split("e")[1]))
    return f"{value:.{digits}f} ± {error:.{digits}f}"


def file_size(num_bytes: int) -> str:
    """A size in kB or MB (of 1000).

    Example:
        >>> file_size(26_400), file_size(3_200_000)
        ('26 kB', '3.2 MB')
    """
    if num_bytes < 10**6:
        return f"{num_bytes / 1e3:.0f} kB"
    return f"{num_bytes / 1e6:.1f} MB"
