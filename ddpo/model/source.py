"""How settings name things on a hub: `owner/name@revision`, or one file `owner/name/file`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Source(NamedTuple):
    """Where something is.

    Attributes:
        name: a path, or what a hub calls it.
        revision: branch, tag or commit on the hub; None: its main branch.
    """

    name: str
    revision: str | None


def source_of(text: str) -> Source:
    """Split off the revision. A path that exists on this machine stays whole, even with an @.

    >>> source_of("owner/name@v1")
    Source(name='owner/name', revision='v1')
    """
    if Path(text).exists():
        return Source(text, None)
    name, _, revision = text.partition("@")
    return Source(name, revision or None)


def repository_and_file(name: str) -> tuple[str, str | None]:
    """The repository, and the file in it if one is named; a path stays as it is.

    >>> repository_and_file("owner/name/style.safetensors")
    ('owner/name', 'style.safetensors')
    >>> repository_and_file("owner/name")
    ('owner/name', None)
    """
    path, parts = Path(name), Path(name).parts
    if path.exists() or path.is_absolute() or len(parts) < 3 or parts[0] in {"..", "~"}:
        return name, None
    return "/".join(parts[:2]), "/".join(parts[2:])
