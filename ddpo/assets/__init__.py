"""The embedded models and prompt sets, which ship with the project."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parent
EMBEDDED_MODELS = ("emoji64-sd", "emoji64-clip", "emoji-sd", "emoji-lcm", "emoji-clip")


def resolve_model(name: str) -> str:
    """Folder of an embedded model; any other name (a hub id or a folder) is returned unchanged."""
    return str(ASSETS / name) if name in EMBEDDED_MODELS else name
