"""The page of an audit: one table of rewards and kinds of pictures, with thumbnails."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ddpo.files import write_atomic, write_json
from run.pages import page_template

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from config.base import Settings
    from ddpo.rewards.audit import Audit

_THUMBNAIL = 96  # pixels of its longer side
_SHOWN = 3  # pictures of each kind
_LONGEST = 80  # characters of a file's name
_TEMPLATES = Path(__file__).resolve().parent / "templates"


def audit_file(logdir: Path, rewards: Sequence[str]) -> Path:
    """The page of the audit of these rewards, beside the runs. Its JSON differs in the suffix.

    Example:
        >>> audit_file(Path("logs"), ("sharpness", "brightness")).as_posix()
        'logs/audit_sharpness_brightness.html'
    """
    name = "_".join(rewards)
    if len(name) > _LONGEST:
        name = f"{name[:_LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return logdir / f"audit_{name}.html"


def write_audit(settings: Settings, audit: Audit) -> Path:
    """Write an audit's page and JSON into `logdir`; the page's path.

    Raises:
        OSError: if they cannot be written.
    """
    path = audit_file(Path(settings.logdir), audit.rewards)
    path.parent.mkdir(parents=True, exist_ok=True)
    model = settings.pretrained.model
    write_json(path.with_suffix(".json"), {"model": model, **audit.to_json()})
    thumbnails = {
        kind: [_thumbnail(picture) for picture in pictures[:_SHOWN]]
        for kind, pictures in audit.pictures.items()
    }
    page = page_template(_TEMPLATES / "audit.html.j2").render(
        audit=audit, model=Path(model).name, thumbnails=thumbnails
    )
    write_atomic(path, page.encode(errors="backslashreplace"))
    return path


def read_audit(logdir: Path, rewards: Sequence[str], model: str) -> dict[str, Any] | None:
    """The audit of these rewards on a base model as JSON values; None if there is none."""
    path = audit_file(logdir, rewards)
    try:
        found: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_it = found.get("model") == model and found.get("rewards") == list(rewards)
    return {**found, "page": path.name} if is_it else None


def _thumbnail(picture: torch.Tensor) -> str:
    """A data URI of a picture (3, H, W) in [0, 1], reduced if it is large."""
    values = picture.mul(255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(values)
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
