"""Nested settings as dotted names, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every setting in nested dictionaries.

    >>> dict(flatten({"seed": 0, "train": {"kl_coef": 0.1}}))
    {'seed': 0, 'train.kl_coef': 0.1}
    """
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries of dotted names and values.

    >>> nested({"seed": 0, "train.kl_coef": 0.1})
    {'seed': 0, 'train': {'kl_coef': 0.1}}
    """
    out: dict[str, Any] = {}
    for name, value in flat.items():
        *sections, key = name.split(".")
        section = out
        for part in sections:
            section = section.setdefault(part, {})
        section[key] = value
    return out
