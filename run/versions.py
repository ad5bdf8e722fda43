"""The programs that wrote a run: versions that results depend on, if only by rounding."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "numpy", "moocore")


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Versions of Python and of the packages that compute.

    Attributes:
        python: such as "3.12.3".
        packages: name -> version.
    """

    python: str
    packages: Mapping[str, str]

    @classmethod
    def current(cls) -> Versions:
        """The versions of this process."""
        packages = {name: version(name) for name in _PACKAGES}
        return cls(python=platform.python_version(), packages=packages)

    def differences(self, before: Versions) -> list[str]:
        """Differences from the versions that wrote a checkpoint, one sentence each."""
        old, new = ({"python": v.python, **v.packages} for v in (before, self))
        return [
            f"{name} was {old.get(name)} and is {new[name]} now; results may differ by rounding"
            for name in new
            if old.get(name) != new[name]
        ]

    def to_json(self) -> dict[str, Any]:
        """As `config.json` and the manifests of checkpoints hold it."""
        return {"python": self.python, "packages": dict(self.packages)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Versions:
        """The inverse of `to_json`; missing entries are unknown."""
        return cls(python=data.get("python", ""), packages=dict(data.get("packages", {})))
