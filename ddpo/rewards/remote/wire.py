"""The messages between a remote reward and its server: JSON both ways, and never code.

GET  URL   -> {"format": 1, "name": "clip_score", "unit": "100 x cosine"}
POST URL   <- {"format": 1, "encoding": "png", "images": ["<base64>", ...], "prompts": [...]}
           -> {"scores": [31.2, null, ...]}          null: no score for this picture
any error  -> {"error": "a sentence"}, status 4xx (the request is at fault) or 5xx
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ddpo.rewards.image_batch import ImageBatch

FORMAT = 1
ENCODING = "png"  # lossless
MAX_PIXELS = 4096 * 4096  # of one picture; a server opens no larger one
_MAX_WORDS = 80  # characters kept of a name or unit from a server


class WireError(ValueError):
    """A message that does not follow the format."""


def request_body(batch: ImageBatch, prompts: Sequence[str]) -> bytes:
    """A request for the scores of a batch, one prompt per picture."""
    images = [base64.b64encode(file).decode("ascii") for file in batch.encoded(ENCODING)]
    message = {"format": FORMAT, "encoding": ENCODING, "images": images, "prompts": list(prompts)}
    return json.dumps(message).encode()


def read_request(body: bytes) -> tuple[torch.Tensor, list[str]]:
    """Read a request: images (rows, 3, H, W) in [0, 1] and their prompts.

    Raises:
        WireError: saying what is wrong with the request.
    """
    message = _read_object(body)
    if message.get("format") != FORMAT:
        raise WireError(f"format: expected {FORMAT}, got {message.get('format')!r}")
    if message.get("encoding") != ENCODING:
        raise WireError(f"encoding: expected {ENCODING!r}, got {message.get('encoding')!r}")
    files, prompts = _texts(message, "images"), _texts(message, "prompts")
    if len(files) != len(prompts) or not files:
        raise WireError("images and prompts: expected two lists of the same length, above 0")
    pictures = [_open(file) for file in files]
    if len({picture.size for picture in pictures}) > 1:
        raise WireError("images: expected one size for all pictures of a request")
    arrays = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return arrays.permute(0, 3, 1, 2).float().div(255), prompts


def answer_body(scores: torch.Tensor) -> bytes:
    """An answer with scores (rows,); scores that are not finite become null."""
    values = [value if math.isfinite(value) else None for value in scores.double().tolist()]
    return json.dumps({"scores": values}).encode()


def read_answer(body: bytes, rows: int) -> torch.Tensor:
    """Read an answer: scores (rows,) float32, NaN where the server had none.

    Raises:
        WireError: unless there is one number or null per picture.
    """
    scores = _read_object(body).get("scores")
    if not isinstance(scores, list):
        raise WireError(f'answer: expected {{"scores": [...]}}, got {_shorten(body)}')
    if len(scores) != rows:
        raise WireError(f"scores: expected {rows}, one per picture, got {len(scores)}")
    wrong = [s for s in scores if s is not None and type(s) not in {int, float}]
    if wrong:
        raise WireError(f"scores: expected numbers or null, got {wrong[0]!r:.80}")
    try:
        return torch.tensor([math.nan if s is None else float(s) for s in scores])
    except OverflowError as error:
        raise WireError("scores: expected numbers that fit a float") from error


def read_description(body: bytes) -> tuple[str, str]:
    """Read the name and unit of a server's reward, without control characters.

    Raises:
        WireError: if it is not a reward server, or it uses another format.
    """
    message = _read_object(body)
    name, unit = message.get("name"), message.get("unit")
    if not isinstance(name, str) or not isinstance(unit, str) or message.get("format") != FORMAT:
        raise WireError(
            f'expected {{"format": {FORMAT}, "name": ..., "unit": ...}}, got {_shorten(body)}'
        )
    return _plain(name), _plain(unit)


def error_text(body: bytes) -> str:
    """The sentence in an error's body, or the start of the body."""
    try:
        return _plain(str(_read_object(body)["error"]), 500)
    except (WireError, KeyError):
        return _shorten(body)


def _read_object(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"expected JSON, got {_shorten(body)}") from error
    if not isinstance(message, dict):
        raise WireError(f"expected a JSON object, got {_shorten(body)}")
    return message


def _texts(message: dict[str, Any], field: str) -> list[str]:
    value = message.get(field)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise WireError(f"{field}: expected a list of texts")
    return value


def _open(text: str) -> Image.Image:
    try:
        file = io.BytesIO(base64.b64decode(text, validate=True))
        picture = Image.open(file, formats=[ENCODING.upper()])
        if picture.width * picture.height > MAX_PIXELS:
            raise WireError(f"images: {picture.size} is larger than {MAX_PIXELS} pixels")
        return picture.convert("RGB")
    except (OSError, binascii.Error, SyntaxError, Image.DecompressionBombError) as error:
        raise WireError(f"images: not a {ENCODING} picture: {error}") from error


def _plain(text: str, limit: int = _MAX_WORDS) -> str:
    return "".join(c for c in text if c.isprintable())[:limit]


def _shorten(body: bytes) -> str:
    return repr(body[:_MAX_WORDS])
