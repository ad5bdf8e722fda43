"""Paths of the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DDPO = ROOT / "config" / "ddpo.py"
SMOKE = ROOT / "config" / "smoke.py"
