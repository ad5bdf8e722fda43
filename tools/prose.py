"""Check the prose of the Markdown pages: `python -m tools.prose`, or `python -m tools.prose FILE`.

It finds lines and sentences that are too long, wordings with a plainer word, and links that lead
nowhere. It leaves code and tables alone, but for their links. Each message says what to do.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "docs/**/*.md", "ddpo/assets/**/*.md")
MAX_COLUMNS = 120
MAX_WORDS = 30
_UNITS = (
    "row|pass|step|agent|policy|image|picture|prompt|iteration|generation|sample|layer|adapter"
    "|process|card|run|second|case|seed|task|objective|pair|page|line"
)
_COUNTED = (
    r"\d[\d.,]*|one|two|three|four|six|eight|times|rows|images|pictures|bytes|[kMG]B|ms|seconds"
    "|minutes|hours|steps|samples|policies|agents"
)
_WORDINGS = {
    rf"\b(?:{_COUNTED}) an? (?:{_UNITS})\b": "write 'per' for a rate: 'two images per agent'",
    r"\b(?:is|are|was|were) told\b": "write 'is given', 'reports' or 'reads'",
    r"\b(?:go|goes|going|went) on\b(?! (?:a|an|the|to) )": "write 'continues' or 'resumes'",
    r"\bat once\b": "write 'together' or 'immediately'",
    r"\bin turn\b": "write 'one after another'",
    r"\b(?:rounds?|does|do|done|differs?|drawn|computed|chosen) otherwise\b": "write 'differently'",
    r"\banew\b": "write 'again'",
    r"\bto the (?:last )?bit\b": "write 'bit for bit'",
    r"\blikewise\b": "write 'too', or name what happens",
}
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_ASIDE = re.compile(r"`[^`]*`|\([^()]*\)")


class Paragraph(NamedTuple):
    """A paragraph or an entry of a list, and the number of its first line."""

    line: int
    text: str


def problems(page: Path) -> list[str]:
    """The problems of a page, as `file:line: the problem, and what to do`."""
    source = page.read_text(encoding="utf-8")
    found = [*long_lines(source), *long_sentences(source), *wordings(source), *dead_links(page)]
    name = page.relative_to(ROOT) if page.is_relative_to(ROOT) else page
    return [f"{name}:{line}: {message}" for line, message in sorted(found)]


def long_lines(source: str) -> Iterator[tuple[int, str]]:
    """Lines of prose over 120 columns. The target of a link does not count."""
    for line, text in _prose(source):
        if (columns := len(_LINK.sub("]", text))) > MAX_COLUMNS:
            yield line, f"line of {columns} columns; wrap it at {MAX_COLUMNS}"


def long_sentences(source: str) -> Iterator[tuple[int, str]]:
    """Sentences over 30 words. Code and what stands in brackets do not count."""
    for line, text in paragraphs(source):
        for sentence in re.split(r"(?<=[.!?:;])\*{0,2} +(?=[*\[]*[A-Z`])", text):
            words = len(re.findall(r"[A-Za-z]{2,}", _ASIDE.sub("", sentence)))
            if words > MAX_WORDS:
                yield line, f"sentence of {words} words; make two of it: {sentence[:50]} ..."


def wordings(source: str) -> Iterator[tuple[int, str]]:
    """Wordings that a reader stumbles over, with the plainer one."""
    for line, text in paragraphs(source):
        for pattern, plainer in _WORDINGS.items():
            for match in re.finditer(pattern, _ASIDE.sub("", text), re.IGNORECASE):
                yield line, f"'{match.group()}': {plainer}"


def dead_links(page: Path) -> Iterator[tuple[int, str]]:
    """Links to files and headings of the project that are not there."""
    for line, text in enumerate(page.read_text(encoding="utf-8").split("\n"), 1):
        for target in _LINK.findall(text):
            path, _, heading = target.partition("#")
            if "://" in target:
                continue
            file = page.parent / path if path else page
            if not file.exists():
                yield line, f"link to {target}: there is no such file"
            elif heading and heading not in headings(file.read_text(encoding="utf-8")):
                yield line, f"link to {target}: that page has no such heading"


def headings(source: str) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    code = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", code.sub("", source), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def paragraphs(source: str) -> Iterator[Paragraph]:
    """The paragraphs of a page's prose, each in one line. An entry of a list is one."""
    start, lines = 0, list[str]()
    for line, text in [*_prose(source), (0, "")]:
        if lines and (not text or re.match(r"\s*(?:[-*]|\d+\.) ", text)):
            yield Paragraph(start, " ".join(lines))
            lines = []
        if text:
            start = start if lines else line
            lines.append(text.strip())


def _prose(source: str) -> Iterator[tuple[int, str]]:
    """Numbered lines; all but prose (code, tables, headings, pictures, comments) are empty."""
    is_code = False
    for line, text in enumerate(source.split("\n"), 1):
        is_fence = text.lstrip().startswith("```")
        is_code ^= is_fence
        is_prose = not (is_code or is_fence or text.startswith(("|", "#", "!", "<!--")))
        yield line, text if is_prose else ""


def main(arguments: Iterable[str]) -> str:
    """The problems of these pages, or of all pages of the project; empty if there are none."""
    pages = [Path(each) for each in arguments]
    pages = pages or sorted(page for pattern in PAGES for page in ROOT.glob(pattern))
    return "\n".join(problem for page in pages for problem in problems(page))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) or None)
