"""Files and folders that are whole or absent: written beside their place, flushed, then renamed.

A killed process may leave files whose names begin with a dot and end in one of `_LEFTOVERS`;
`sweep` removes them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

if TYPE_CHECKING:
    from collections.abc import Iterator

DISK_ERRORS = (OSError, SafetensorError)  # raised by a full or broken disk
ADAPTER_FILE = "pytorch_lora_weights.safetensors"  # as diffusers calls it
_PARTIAL, _TRASH = ".tmp", ".trash"
_LEFTOVERS = (_PARTIAL, _TRASH)
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def write_atomic(path: Path, data: bytes) -> None:
    """Write all of `data` to `path`, or leave `path` as it was, even in a power cut."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}{_PARTIAL}")
    try:
        write_durable(temporary, data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # half a file would only fill a full disk further
        raise
    sync(path.parent)


def write_durable(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it; not atomic."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any, *, for_people: bool = True) -> None:
    """Write `value` as JSON, atomically; NaN and infinity are refused with a ValueError.

    Args:
        path: the file.
        value: what to write.
        for_people: True indents; False writes one line, which is ten times as fast.
    """
    text = json.dumps(value, indent=1 if for_people else None, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears only when it is complete, and replaces an older one.

    Yields:
        An empty folder to fill. At the end of the block its files are flushed and it is renamed to
        `path`. If the block fails, it is removed.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}{_PARTIAL}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        if path.exists():
            remove(path)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file or folder; it is renamed first, so that half of it is never taken for whole.

    A symbolic link is removed, but not its target.
    """
    trash = path.with_name(f".{path.name}{_TRASH}")
    if trash.is_dir():
        shutil.rmtree(trash)
    path.rename(trash)
    if trash.is_symlink() or not trash.is_dir():
        trash.unlink()
    else:
        shutil.rmtree(trash)


def sweep(folder: Path) -> None:
    """Remove files and folders that a killed process left half written or half removed."""
    for path in folder.glob(".*"):
        if path.suffix in _LEFTOVERS:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def make_folder(path: Path) -> None:
    """Make a folder and its parents, durably."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def check_writable(folder: Path) -> None:
    """Make a folder if it is missing, and try to write into it, before there is much to lose.

    Raises:
        OSError: if the folder cannot be made or written to.
    """
    make_folder(folder)
    probe = folder / f".writable{_PARTIAL}"
    probe.write_bytes(b"")
    probe.unlink()


def share(path: Path) -> None:
    """Let everybody read a file, as programs' files usually are: mode 0644."""
    path.chmod(0o644)


def sync(path: Path) -> None:
    """Make a file's content durable, or the renames and deletions in a folder.

    On Windows only files are made durable: folders cannot be opened there.
    """
    is_windows = not hasattr(os, "O_DIRECTORY")
    if is_windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if is_windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain_name(name: object) -> str:
    """Return the name if it can only name something directly inside a folder.

    Raises:
        ValueError: if it could lead elsewhere (a path, `..`, NUL) or has over 100 characters.

    Example:
        >>> plain_name("g004a1")
        'g004a1'
    """
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        raise ValueError(f"{name!r} must be a plain name of letters, digits, '.', '_' and '-'")
    return name
