"""Prompt files: lines of text, JSON, JSON lines and tables.

The content of a file decides how it is read. The suffix decides only if two ways would fit. Files
of other kinds are refused, so that nothing but prompts is trained on.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from typing import TYPE_CHECKING, Any

from config.settings.terminal import is_broken

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

NAMES = ("prompt", "prompts", "caption", "captions", "text", "texts")  # of keys and columns
_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson", ".jsonlines", ".ldjson")
_DELIMITERS = {".csv": ",;\t", ".tsv": "\t,;", ".tab": "\t,;"}  # the likeliest first
_OTHER_SUFFIXES = (".yaml", ".yml", ".toml", ".xml", ".html", ".htm", ".md", ".py", ".ini")
# `["`, `{"` or `[{"`, perhaps with spaces: no prompt begins like this
_JSON_START = re.compile(r'\s*(\[\s*|(\[\s*)?\{\s*)("|\Z)')
_OTHER_STARTS = {
    b"PAR1": "a Parquet file; write its prompts as .csv or .jsonl",
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"PK\x03\x04": "a zip archive or an Excel sheet; unpack it, or save it as CSV UTF-8",
    b"version https://git-lfs": "a Git LFS pointer without its content; run git lfs pull",
    b"<!doctype": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
}
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Prompt(str):
    """The text of a prompt, with metadata for rewards.

    To everything that draws pictures it is a string. A reward that needs more, such as questions
    and answers for a judge, reads `metadata`.

    >>> prompt = Prompt("two cats", {"answers": ["two"]})
    >>> prompt, prompt.metadata["answers"]
    ('two cats', ['two'])
    """

    metadata: Mapping[str, Any]

    def __new__(cls, text: str, metadata: Mapping[str, Any] | None = None) -> Prompt:
        """A prompt of this text."""
        prompt = super().__new__(cls, text)
        prompt.metadata = dict(metadata or {})
        return prompt


def read_prompt_file(path: Path) -> Sequence[str]:
    """The prompts of a file, in its order. A row of a table without a prompt gives an empty text.

    * Text: one prompt per line. Only line feeds end lines, no other line ends of Unicode.
    * JSON: a list of texts or of objects, an object of objects, or one value per line.
    * A table with a header, separated by commas, semicolons or tabs.

    In an object or a table, the prompt has one of the `NAMES` as key or column. The other values
    are the prompt's metadata, and so are the entries of an object "metadata".

    Raises:
        ValueError: naming file, place and fix, if the file cannot be read or understood.
    """
    prompts: Sequence[str]
    text, suffix = _text(path), path.suffix.lower()
    delimiter = _delimiter(text, suffix)
    if suffix in _JSON_SUFFIXES or _JSON_START.match(text):
        prompts = [_json_prompt(f"prompt file {path}, {at}", row) for at, row in _rows(path, text)]
    elif delimiter:
        prompts = list(_table_prompts(path, text, delimiter))
    else:
        prompts = [line.strip() for line in text.split("\n") if line.strip()]
    for prompt in prompts:
        if is_broken(prompt):
            raise ValueError(
                f"prompt file {path}: {str(prompt)!r} holds half a character, a \\ud... without "
                "its other half; correct it"
            )
    return prompts


def _text(path: Path) -> str:
    """The content of a text file.

    Raises:
        ValueError: if the file is of another kind; the message names the kind.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"prompt file {path} cannot be read: {error}") from error
    for start, what in _OTHER_STARTS.items():
        if data.lstrip()[: len(start)].lower() == start.lower():
            raise ValueError(f"prompt file {path} is {what}")
    if path.suffix.lower() in _OTHER_SUFFIXES:
        raise ValueError(
            f"prompt file {path} is of a kind that is not read; write one prompt per line (.txt), "
            "a table (.csv, .tsv) or JSON (.json, .jsonl)"
        )
    try:  # some editors begin a file with a byte order mark
        text = data.decode("utf-16" if data.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"prompt file {path} is not UTF-8 text: {error}; save it as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(f"prompt file {path} is not UTF-8 text: it holds NUL; save it as UTF-8")
    if "\r" in text.strip() and "\n" not in text:
        raise ValueError(
            f"prompt file {path} ends its lines in carriage returns alone; save it with line feeds"
        )
    return text


def _rows(path: Path, text: str) -> list[tuple[str, Any]]:
    """The values of JSON or JSON lines, each with its place.

    Raises:
        ValueError: if the file holds neither.
    """
    lines = [(f"line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    try:
        whole = json.loads(text)
    except ValueError as error:
        if not lines:
            return []
        if path.suffix.lower() in {".json", ".txt"} and not _is_json(lines[0][1]):
            raise ValueError(f"prompt file {path} is not JSON: {error}") from error
        return [(at, _parsed(path, at, line)) for at, line in lines]
    if isinstance(whole, dict):
        whole = _listed(whole)
    if isinstance(whole, list):
        return [(f"entry {i}", value) for i, value in enumerate(whole, start=1)]
    return [(lines[0][0], whole)]


def _listed(record: dict[str, Any]) -> object:
    """The list in an object: under one of `NAMES`, its only list, or its values as objects by id.

    An object that is itself a prompt is returned unchanged.
    """
    found = record.get(_name_of(record))
    if found is not None:
        return found if isinstance(found, list) else record
    lists = [value for value in record.values() if isinstance(value, list)]
    if len(lists) == 1:
        return lists[0]
    if record and all(isinstance(value, dict) for value in record.values()):
        return [{"id": key, **value} for key, value in record.items()]
    return record


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _parsed(path: Path, where: str, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"prompt file {path}, {where} is not JSON: {error}") from error


def _json_prompt(where: str, value: Any) -> Prompt:
    if isinstance(value, str) and value.strip():
        return Prompt(value.strip())
    record = value if isinstance(value, dict) else {}
    name = _name_of(record)
    match record.get(name), record.get("metadata", {}):
        case str(text), dict(metadata) if text.strip():
            beside = {k: v for k, v in record.items() if k not in {name, "metadata"}}
            return Prompt(text.strip(), {**beside, **metadata})
    raise ValueError(
        f'{where} must be a text or {{"prompt": TEXT}}, with "metadata": {{...}} if need be'
    )


def _name_of(names: Iterable[str]) -> str:
    """The key of an object, or the column of a table, that holds prompts; empty if none does."""
    known = {name.strip().lower(): name for name in reversed([*names])}
    return next((known[name] for name in NAMES if name in known), "")


def _delimiter(text: str, suffix: str) -> str:
    """The delimiter of a table; empty if the file is not a table.

    A text file is a table only if its first line names columns, separated by tabs.
    """
    header = text.lstrip("\r\n").split("\n", 1)[0]
    choices = _DELIMITERS.get(suffix, "\t" if "\t" in header.strip() else "")
    fitting = [each for each in choices if _name_of(_cells(header, each))]
    return fitting[0] if fitting else _DELIMITERS.get(suffix, "")[:1]


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip().strip('"') for cell in line.split(delimiter)]


def _table_prompts(path: Path, text: str, delimiter: str) -> Iterator[Prompt]:
    """The prompts of a table.

    Raises:
        ValueError: if no column holds prompts, or a row has more cells than there are columns.
    """
    (_, first), *rows = _table(path, text, delimiter) or [(0, [])]
    header = [cell.strip() for cell in first]
    name = _name_of(header)
    if not name and header:
        raise ValueError(
            f"prompt file {path} has no column {' or '.join(NAMES[::2])}, but "
            f"{', '.join(map(repr, header))}; name its column of prompts so, or write one prompt "
            "per line into a .txt file"
        )
    for line, cells in rows:
        if len(cells) > len(header):
            raise ValueError(
                f"prompt file {path}, line {line} has {len(cells)} cells for {len(header)} "
                f"columns; put texts that hold {delimiter!r} in double quotes"
            )
        record = dict(zip(header, cells, strict=False))
        prompt = record.pop(name, "").strip()
        yield Prompt(prompt, {key: value for key, value in record.items() if key})


def _table(path: Path, text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """The rows of a table with their line numbers, the header first, without blank rows.

    A table separated by tabs either has no quoting or quotes as spreadsheets do. It is read as
    quoted if that fits throughout. (PartiPrompts has a prompt that begins with a quoted word.)

    Raises:
        ValueError: if quotes do not close.
    """

    def read(**quoting: Any) -> list[tuple[int, list[str]]]:
        lines = io.StringIO(text, newline="\n")
        reader = csv.reader(lines, delimiter=delimiter, **quoting)
        try:
            return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
        except csv.Error as error:
            raise csv.Error(f"line {reader.line_num}: {error}") from error

    try:
        try:
            return read(strict=True, skipinitialspace=delimiter != "\t")
        except csv.Error:
            if delimiter != "\t":
                raise
            return read(quoting=csv.QUOTE_NONE)
    except csv.Error as error:
        raise ValueError(f"prompt file {path} is not a table: {error}") from error
