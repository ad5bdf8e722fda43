"""The folder that a command writes an adapter into: a new one, or one of its own to replace."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ddpo.files import check_writable, write_json
from front.errors import FrontError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_WRITTEN = "written.json"  # file -> SHA-256 of what a command wrote into the folder


def check_out(args: argparse.Namespace) -> None:
    """Refuse an `--out` that cannot be written into, before there is any work done.

    With `--force` what an earlier command wrote there may be replaced, and nothing else.

    Raises:
        FrontError: if something else is in it, or it cannot be made.
    """
    if args.out is None:
        return
    try:
        check_writable(args.out)
        files = _files(args.out)
        if not files:
            return
        if not args.force:
            raise FrontError(
                f"{args.out} is not empty; give a new folder, or --force to replace an export that "
                "lies there"
            )
        written = _written(args.out)
        foreign = [name for name, digest in files.items() if written.get(name) != digest]
    except OSError as error:
        raise FrontError(f"{args.out} cannot be written to: {error}") from error
    if foreign:
        names = ", ".join(sorted(foreign)[:3])
        raise FrontError(
            f"{args.out} holds what no export wrote, or was changed since: {names}; --force "
            "replaces only exports. Give a new folder"
        )


@contextmanager
def output_folder(args: argparse.Namespace) -> Iterator[Path]:
    """`--out`, emptied of an earlier export, to write another into; it is remembered as one.

    Raises:
        FrontError: see `check_out`.
    """
    check_out(args)
    try:
        for name in (*_files(args.out), _WRITTEN):
            (args.out / name).unlink(missing_ok=True)
        yield args.out
        write_json(args.out / _WRITTEN, {"format": 1, "files": _files(args.out)})
    except OSError as error:
        raise FrontError(f"{args.out} cannot be written to: {error}") from error


def _files(folder: Path) -> dict[str, str]:
    """Every file in a folder with its digest, but for the record of them."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / _WRITTEN
    }


def _written(folder: Path) -> Mapping[str, str]:
    try:
        files = json.loads((folder / _WRITTEN).read_text(encoding="utf-8"))["files"]
        return {str(name): str(digest) for name, digest in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
