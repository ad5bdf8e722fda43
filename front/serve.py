"""`serve`: choose from a front and draw at once, in the browser; needs gradio (requires-serve.txt).

`Studio` is what the app does; `build_app` is how it looks. Nothing is sent anywhere: gradio's
analytics are off, and the page asks only the server that it came from.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from config.settings.errors import UserError
from ddpo.agents.adapter import Adapter
from front.errors import FrontError
from front.front import Front
from front.member import FrontPolicy
from front.pictures.generate import to_picture
from front.pictures.painter import Painter
from front.tables import markdown_table, with_error
from morl.weights import normalise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image

    from front.member import Blend

logger = logging.getLogger(__name__)

LOCALHOST = "127.0.0.1"
MAX_IMAGES = 16
MAX_WAITING = 32  # requests in the queue; later ones are turned away with a message
_MAX_PROMPT = 2000  # characters
_MAX_SEED = 2**32 - 1
POLICY, BLEND, BY_NAME = "best policy", "blend of neighbours", "by name"
WAYS = (POLICY, BLEND, BY_NAME)


class Studio:
    """Chooses and draws, one request at a time.

    Args:
        front: to choose from.
        painter: draws.
    """

    def __init__(self, front: Front, painter: Painter) -> None:
        self.front = front
        self._painter = painter
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="mo-front-")

    def choose(self, way: str, name: str, *sliders: float) -> FrontPolicy | Blend:
        """The policy or blend that is meant.

        Args:
            way: one of `WAYS`.
            name: a policy's or measured blend's, for `BY_NAME`.
            sliders: the second of two objectives' weight, in [0, 1]; or one non-negative number for
                each of more.

        Raises:
            FrontError: if there is no such policy, or no preference.
        """
        if way == BY_NAME:
            return self.front.policy(name)
        weights = (1 - sliders[0], sliders[0]) if len(sliders) == 1 else sliders
        if len(weights) != len(self.front.objectives) or min(weights) < 0 or sum(weights) <= 0:
            raise FrontError("nothing matters to you so far: move a slider to the right")
        if way == BLEND:
            return self.front.blend(normalise(weights))
        if way == POLICY:
            return self.front.pick(normalise(weights), with_blends=True)
        raise FrontError(f"{way!r} is no way to choose; there are {', '.join(WAYS)}")

    def describe(self, member: FrontPolicy | Blend) -> str:
        """What a member is and what was measured, as Markdown."""
        front = self.front
        parts = " + ".join(f"{part:.0%} {policy.id}" for policy, part in member.parts)
        title = f"### {member.id}" if isinstance(member, FrontPolicy) else f"### {parts}"
        if member.report_returns is None or member.report_std_error is None:
            return f"{title}\n\nA blend that nobody has measured; `analyse` measures."
        here = zip(member.report_returns, member.report_std_error, strict=True)
        base = zip(front.base.report_returns, front.base.report_std_error, strict=True)
        rows = [
            [f"{objective.name} [{objective.unit}]", with_error(*now), with_error(*before)]
            for objective, now, before in zip(front.objectives, here, base, strict=True)
        ]
        return f"{title}\n\n" + markdown_table(["report set", "this policy", "base model"], rows)

    def draw(
        self, member: FrontPolicy | Blend, prompt: str, seed: float, num_images: float
    ) -> tuple[list[Image.Image], list[Image.Image]]:
        """Pictures of the base model and of a member, of the same seeds.

        Args:
            member: from `choose`.
            prompt: what to draw.
            seed: of the first picture; the next have the next seeds.
            num_images: 1 to `MAX_IMAGES`.

        Raises:
            UserError: if the prompt, a number or the adapter is wrong, or memory runs out.
        """
        prompt = (prompt or "").strip()
        if not prompt:
            raise FrontError("write what to draw")
        if len(prompt) > _MAX_PROMPT:
            raise FrontError(
                f"the prompt has {len(prompt)} characters; {_MAX_PROMPT} are the most, and the "
                "model reads only the first few dozen words"
            )
        num = _whole("the number of images", num_images, 1, MAX_IMAGES)
        first = _whole("the seed", seed, 0, _MAX_SEED)
        seeds, prompts = [first + i for i in range(num)], [prompt] * num
        with self._lock:
            try:
                base = self._painter.draw(None, prompts, seeds)
                chosen = self._painter.draw(member, prompts, seeds)
            except torch.OutOfMemoryError as error:
                raise FrontError("not enough memory; ask for fewer images at a time") from error
        return [to_picture(image) for image in base], [to_picture(image) for image in chosen]

    def adapter_file(self, member: FrontPolicy | Blend) -> Path:
        """The member's adapter as one safetensors file that diffusers loads.

        Raises:
            UserError: if an adapter is missing or damaged.
        """
        with self._lock:
            folder = Path(tempfile.mkdtemp(dir=self._folder.name))
            file = Adapter.of(member).save(folder)
            return file.rename(folder / f"{self.front.path.resolve().name}_{member.id}.safetensors")

    def close(self) -> None:
        """Remove the files made for downloads."""
        self._folder.cleanup()


def _whole(what: str, value: float, low: int, high: int) -> int:
    """A whole number in a range.

    Raises:
        FrontError: if it is not.
    """
    if value is None or not low <= value <= high or value != int(value):
        raise FrontError(f"{what} must be a whole number from {low} to {high}")
    return int(value)


def import_gradio() -> Any:
    """gradio, with its analytics off.

    Raises:
        FrontError: if it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it reports every request
    try:
        import gradio  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise FrontError(
            "serve needs gradio, which needs an older pillow than the rest allows; in an "
            "environment of its own:\n  pip install -r requires-serve.txt"
        ) from error
    return gradio


def told(gradio: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its errors as messages in the page instead of traces."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        try:
            return function(*args)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        except Exception as error:  # the server goes on; whoever runs it finds the trace
            logger.exception("a request failed")
            message = f"that did not work: {type(error).__name__}; the server's log says more"
            raise gradio.Error(message, print_exception=False) from error

    return run


def build_app(studio: Studio) -> Any:
    """The page, as gradio's Blocks: on the left what is chosen, on the right what it draws."""
    gradio = import_gradio()
    front = studio.front

    def choose(*choice: Any) -> tuple[str, Any]:
        member = studio.choose(*choice)
        return studio.describe(member), gradio.update(visible=choice[0] == BY_NAME)

    def draw(prompt: str, seed: float, num_images: float, *choice: Any) -> tuple[Any, Any]:
        member = studio.choose(*choice)
        base, chosen = studio.draw(member, prompt, seed, num_images)
        return base, gradio.update(value=chosen, label=member.id)

    def export(*choice: Any) -> Any:
        file = studio.adapter_file(studio.choose(*choice))
        return gradio.update(value=str(file), visible=True)

    names = " and ".join(f"`{name}`" for name in front.names)
    title = f"{front.path.resolve().name}: choose and draw"
    with gradio.Blocks(analytics_enabled=False, title=title, delete_cache=(3600, 3600)) as app:
        gradio.Markdown(f"# How far can {names} be improved together?")
        with gradio.Row():
            with gradio.Column(scale=2, min_width=360):
                sliders = _sliders(gradio, front.names)
                way = gradio.Radio(WAYS, value=POLICY, label="Take the")
                members = [member.id for member in front.members]
                name = gradio.Dropdown(members, value=members[0], label="Policy", visible=False)
                text = gradio.Markdown()
                export_button = gradio.Button("Its adapter as a file", size="sm")
                file = gradio.File(label="For pipe.load_lora_weights", visible=False)
            with gradio.Column(scale=4, min_width=320):
                with gradio.Row(equal_height=True):
                    example = next(iter(front.sample_prompts), "")
                    prompt = gradio.Textbox(example, label="Prompt", scale=4)
                    seed = gradio.Number(0, label="Seed", precision=0, scale=1, min_width=90)
                    count = gradio.Slider(1, MAX_IMAGES, 4, step=1, label="Images", scale=2)
                draw_button = gradio.Button("Draw", variant="primary")
                with gradio.Row():
                    base, chosen = (
                        gradio.Gallery(label=label, columns=2, height=420, buttons=["download"])
                        for label in ("Base model", "Chosen")
                    )
        choice = [way, name, *sliders]
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        for change in (app.load, *(part.change for part in choice)):
            change(told(gradio, choose), choice, [text, name], **quick)
        # One queue for all that runs the model: two people wait for each other, and fit in memory.
        slow = {"concurrency_limit": 1, "concurrency_id": "painter"}
        inputs, outputs = [prompt, seed, count, *choice], [base, chosen]
        draw_button.click(told(gradio, draw), inputs, outputs, api_name="draw", **slow)
        prompt.submit(told(gradio, draw), inputs, outputs, api_visibility="private", **slow)
        export_button.click(told(gradio, export), choice, file, api_name="adapter", **slow)
    app.queue(max_size=MAX_WAITING)
    return app


def _sliders(gradio: Any, names: Sequence[str]) -> list[Any]:
    """One slider between two objectives, or one for each of more."""
    if len(names) > 2:
        return [gradio.Slider(0, 1, 1 / len(names), step=0.01, label=name) for name in names]
    info = f"0: {names[0]} alone, 1: {names[1]} alone"
    return [gradio.Slider(0, 1, 0.5, step=0.01, label="What matters to you?", info=info)]


def start(app: Any, host: str = LOCALHOST, port: int | None = None, *, browse: bool = False) -> str:
    """Start the server, in threads of its own, and return its address.

    Raises:
        FrontError: if the port is taken.
    """
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        _, address, _ = app.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=browse,
            show_error=True,
            ssr_mode=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
            theme=import_gradio().themes.Default(**fonts),  # the default's fonts are on a network
        )
    except OSError as error:
        raise FrontError(f"cannot listen on {host}, port {port or 'any'}: {error}") from error
    return str(address)


def serve(
    run: Path,
    host: str = LOCALHOST,
    port: int | None = None,
    *,
    model: str = "",
    device: str = "",
    rows_per_pass: int = 0,
    browse: bool = False,
) -> None:
    """Serve a run's front until Ctrl+C.

    Args:
        run: the run directory.
        host: address to listen on.
        port: None for the first free one from 7860.
        model: where the base model is now, see `Painter`.
        device: see `Painter`.
        rows_per_pass: see `Painter`.
        browse: whether to open a browser.

    Raises:
        UserError: if gradio, the run or its model is missing, or the port is taken.
    """
    import_gradio()
    front = Front.load(run)
    studio = Studio(front, Painter(front, model, device, rows_per_pass))
    app = build_app(studio)
    try:
        address = start(app, host, port, browse=browse)
        sys.stdout.write(f"serving {front.path} on {address} (Ctrl+C ends)\n")
        sys.stdout.flush()
        app.block_thread()
    finally:
        app.close()
        studio.close()
