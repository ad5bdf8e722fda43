"""Terminals of any encoding, and what is typed in them."""

from __future__ import annotations

import io
import sys

import pytest

from config.settings.terminal import is_broken, print_any_character, typed_text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_an_encoding_lacks_is_printed_as_an_escape(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    print_any_character()
    sys.stdout.write("caf\udce9 \N{CAT FACE} ")
    sys.stdout.flush()
    cat = "\N{CAT FACE}" if encoding == "utf-8" else "\\U0001f431"
    assert raw.getvalue().decode(encoding) == f"caf\\udce9 {cat} "


def test_an_argument_is_text_also_where_the_terminal_knows_ascii_only():
    assert typed_text("\N{CAT FACE} caf\u00e9") == "\N{CAT FACE} caf\u00e9"
    typed = "\N{CAT FACE}".encode().decode("ascii", errors="surrogateescape")
    assert is_broken(typed)
    assert typed_text(typed) == "\N{CAT FACE}"
    with pytest.raises(UnicodeDecodeError):
        typed_text(b"caf\xe9".decode(errors="surrogateescape"))
