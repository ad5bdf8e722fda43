"""`serve`: choose from a front and draw live, in the browser; needs gradio (requires-serve.txt).

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
from front.export import write_adapter
from front.front import Front
from front.member import FrontPolicy
from front.pictures.generate import to_picture
from front.pictures.live import front_map, style
from front.pictures.painter import Painter
from front.pictures.parameters import describe, sampler_of
from front.tables import markdown_table, with_error
from front.taste.desk import Desk
from front.taste.open import open_quiz
from front.taste.quiz import read_answers
from front.taste.source import Source
from front.taste.tab import FOCUS, FRAME, route_of
from morl.weights import normalise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from PIL import Image

    from front.member import Blend

logger = logging.getLogger(__name__)

LOCALHOST = "127.0.0.1"
MAX_IMAGES = 16
MAX_STEPS = 200
MAX_GUIDANCE = 30
MAX_WAITING = 32  # requests in the queue; later ones are turned away with a message
_MAX_PROMPT = 2000  # characters
_MAX_SEED = 2**32 - 1
POLICY, BLEND, BY_NAME = "best policy", "blend of neighbours", "by name"
WAYS = (POLICY, BLEND, BY_NAME)
FORMATS = {"diffusers": "diffusers", "kohya": "ComfyUI, A1111, Forge"}


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
        self._base: tuple[object, torch.Tensor] | None = None  # what was asked for last, drawn
        self._folder = tempfile.TemporaryDirectory(prefix="mo-front-")

    def choose(self, way: str, name: str, *sliders: float) -> FrontPolicy | Blend:
        """The policy or blend that is meant.

        Args:
            way: one of `WAYS`.
            name: a policy's or measured blend's, for `BY_NAME`.
            sliders: the second of two objectives' weight, in [0, 1]; or one non-negative number for
                each of more; none of one objective.

        Raises:
            FrontError: if there is no such policy, or no preference.
        """
        if way == BY_NAME:
            return self.front.policy(name)
        weights = (1 - sliders[0], sliders[0]) if len(sliders) == 1 else sliders or (1.0,)
        if len(weights) != len(self.front.objectives) or min(weights) < 0 or sum(weights) <= 0:
            raise FrontError("nothing matters to you so far: move a slider to the right")
        if way == BLEND:
            return self.front.blend(normalise(weights))
        if way == POLICY:
            return self.front.pick(normalise(weights), with_blends=True)
        raise FrontError(f"{way!r} is no way to choose; there are {', '.join(WAYS)}")

    def describe(self, member: FrontPolicy | Blend) -> str:
        """A member and its measured returns, as Markdown."""
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

    def named(self, text: str) -> FrontPolicy | Blend:
        """The member that a script means.

        Args:
            text: weights such as "0.3,0.7" for the best policy, or a member's name; empty for the
                best policy at even weights.

        Raises:
            FrontError: if there is none.
        """
        try:
            weights = [float(part) for part in text.split(",") if text]
        except ValueError:
            return self.front.policy(text)
        return self.front.pick(normalise(weights or [1.0] * len(self.front.objectives)))

    def draw(
        self,
        member: FrontPolicy | Blend,
        prompt: str,
        seed: float = 0,
        num_images: float = 1,
        steps: float | None = None,
        guidance: float | None = None,
        negative: str | None = None,
    ) -> tuple[list[Image.Image], list[Image.Image]]:
        """Pictures of the base model and of a member, of the same seeds.

        Args:
            member: from `choose`.
            prompt: what to draw.
            seed: of the first picture; the next have the next seeds.
            num_images: 1 to `MAX_IMAGES`.
            steps: of denoising, 1 to `MAX_STEPS`; None for the run's.
            guidance: its scale, 1 to `MAX_GUIDANCE`; None for the run's.
            negative: prompt; None for the run's.

        Raises:
            UserError: if the prompt, a number or the adapter is wrong, or memory runs out.
        """
        prompt = (prompt or "").strip()
        if not prompt:
            raise FrontError("write what to draw")
        changes = _changes(steps, guidance, negative)
        for text in (prompt, changes.get("negative_prompt", "")):
            if len(text) > _MAX_PROMPT:
                raise FrontError(
                    f"the prompt has {len(text)} characters; {_MAX_PROMPT} are the most, and the "
                    "model reads only the first few dozen words"
                )
        num = _whole("the number of images", num_images, 1, MAX_IMAGES)
        first = _whole("the seed", seed, 0, _MAX_SEED)
        seeds, prompts = [first + i for i in range(num)], [prompt] * num
        with self._lock:
            try:
                wanted = (prompts, seeds, changes)
                if self._base is None or self._base[0] != wanted:
                    self._base = (wanted, self._painter.draw(None, prompts, seeds, **changes))
                chosen = self._painter.draw(member, prompts, seeds, **changes)
            except torch.OutOfMemoryError as error:
                raise FrontError("not enough memory; ask for fewer images at a time") from error
            base = self._base[1]
        sampler = sampler_of(self.front, **changes)

        def pictures(images: torch.Tensor, drawer: FrontPolicy | Blend | None) -> list[Image.Image]:
            return [
                describe(to_picture(image), self.front, drawer, prompt, key, sampler)
                for image, key in zip(images, seeds, strict=True)
            ]

        return pictures(base, None), pictures(chosen, member)

    def adapter_file(self, member: FrontPolicy | Blend, file_format: str = "diffusers") -> Path:
        """The member's adapter as one safetensors file.

        Args:
            member: from `choose`.
            file_format: one of `FORMATS`.

        Raises:
            UserError: if an adapter is missing or damaged, or there is no such format.
        """
        if file_format not in FORMATS:
            raise FrontError(f"{file_format!r} is no format; there are {', '.join(FORMATS)}")
        with self._lock:
            folder = Path(tempfile.mkdtemp(dir=self._folder.name))
            file = write_adapter(folder, self.front, member, Adapter.of(member), file_format)
            return file.rename(folder / f"{self.front.path.resolve().name}_{member.id}.safetensors")

    def style(self) -> str:
        """The style sheet of the app."""
        return style(self._painter.picture_size)

    def close(self) -> None:
        """Remove the files made for downloads."""
        self._folder.cleanup()


def _changes(steps: float | None, guidance: float | None, negative: str | None) -> dict[str, Any]:
    """What differs from how the run drew, under diffusers' names; None for what does not.

    Raises:
        FrontError: if a number is out of range.
    """
    changes: dict[str, Any] = {}
    if steps is not None:
        changes["num_inference_steps"] = _whole("the steps", steps, 1, MAX_STEPS)
    if guidance is not None:
        if not 1 <= guidance <= MAX_GUIDANCE:
            raise FrontError(f"guidance must be from 1, which is none, to {MAX_GUIDANCE}")
        changes["guidance_scale"] = float(guidance)
    if negative is not None:
        changes["negative_prompt"] = negative.strip()
    return changes


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
        except Exception as error:  # the server continues; whoever runs it finds the trace
            logger.exception("a request failed")
            message = f"that did not work: {type(error).__name__}; the server's log says more"
            raise gradio.Error(message, print_exception=False) from error

    return run


def kept(gradio: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function; an error becomes a message, and the page stays as it is."""
    explained = told(gradio, function)

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        try:
            return explained(*args)
        except gradio.Error as error:
            gradio.Warning(error.message, title="Not drawn")
            return gradio.skip()

    return run


class Layout:
    """The parts of the page that something happens to, laid out; made inside of a Blocks.

    Args:
        gradio: the module.
        front: to choose from.
        sampler: how the run drew, see `sampler_of`.
    """

    def __init__(self, gradio: Any, front: Front, sampler: Mapping[str, Any]) -> None:
        names = " and ".join(f"`{name}`" for name in front.names)
        together = " together" if len(front.names) > 1 else ""
        gradio.Markdown(f"# How far can {names} be improved{together}?")
        with gradio.Row():
            with gradio.Column(scale=2, min_width=320):
                self._lay_choice(gradio, front)
            with gradio.Column(scale=4, min_width=320):
                self._lay_pictures(gradio, next(iter(front.sample_prompts), "cat"))
                self._lay_sampler(gradio, sampler)
                self._lay_files(gradio)

    def _lay_choice(self, gradio: Any, front: Front) -> None:
        self.sliders = _sliders(gradio, front.names)
        self.way = gradio.Radio(WAYS, value=POLICY, label="Take the")
        members = [member.id for member in front.members]
        self.name = gradio.Dropdown(members, value=members[0], label="Policy", visible=False)
        self.plot = gradio.HTML(label="The front")
        self.text = gradio.Markdown()

    def _lay_pictures(self, gradio: Any, example: str) -> None:
        with gradio.Row(equal_height=True):
            self.prompt = gradio.Textbox(example, label="Prompt", scale=4)
            self.draw_button = gradio.Button("Draw", variant="primary", scale=1, min_width=90)
        with gradio.Row():
            self.base, self.chosen = (
                gradio.Gallery(
                    label=label,
                    columns=2,
                    height=420,
                    format="png",
                    object_fit="contain",
                    buttons=["download", "fullscreen"],
                    elem_classes="pictures",
                )
                for label in ("Base model", "Chosen")
            )

    def _lay_sampler(self, gradio: Any, sampler: Mapping[str, Any]) -> None:
        steps, guidance = sampler["num_inference_steps"], sampler["guidance_scale"]
        with gradio.Row():
            self.seed = gradio.Number(0, label="Seed", precision=0, min_width=90)
            self.count = gradio.Slider(1, MAX_IMAGES, 4, step=1, label="Images")
            self.steps = gradio.Slider(1, MAX_STEPS, steps, step=1, label="Steps")
            self.guidance = gradio.Slider(1, MAX_GUIDANCE, guidance, step=0.5, label="Guidance")
        self.negative = gradio.Textbox(sampler["negative_prompt"], label="Negative prompt")
        self.how = [self.seed, self.count, self.steps, self.guidance, self.negative]

    def _lay_files(self, gradio: Any) -> None:
        with gradio.Row(equal_height=True):
            kinds = [(f"for {what}", key) for key, what in FORMATS.items()]
            self.kind = gradio.Dropdown(kinds, value="diffusers", label="Take it with you")
            self.export_button = gradio.Button("Make a file", interactive=False)
        self.file = gradio.File(label="Adapter", visible=False, height=80)

    def wishes_to_draw(self) -> list[Any]:
        """Events after which the pictures are drawn again: what was moved is let go, or typed."""
        return [
            self.draw_button.click,
            *(each.submit for each in (self.prompt, self.negative, self.seed)),
            *(each.release for each in (*self.sliders, self.count, self.steps, self.guidance)),
            *(each.input for each in (self.way, self.name)),
        ]


def build_app(studio: Studio) -> Any:
    """The page, as gradio's Blocks: on the left what is chosen, on the right what it draws.

    A second tab frames the page of `taste`, which `start` serves.

    `shown` is the choice that the pictures in sight are of. Files are made of it, not of wherever
    the sliders have moved since.
    """
    gradio = import_gradio()
    front, sampler = studio.front, sampler_of(studio.front)

    def choose(*choice: Any) -> tuple[str, str, Any]:
        member = studio.choose(*choice)
        by_name = gradio.update(visible=choice[0] == BY_NAME)
        return studio.describe(member), front_map(front, member), by_name

    def draw(num_choices: int, *values: Any) -> tuple[Any, ...]:
        choice, how = values[:num_choices], values[num_choices:]
        member = studio.choose(*choice)
        base, chosen = studio.draw(member, *how)
        button = gradio.update(value=f"Make the file of {member.id}", interactive=True)
        no_file = gradio.update(value=None, visible=False)
        return base, gradio.update(value=chosen, label=member.id), choice, button, no_file

    def export(shown: Sequence[Any], file_format: str) -> Any:
        file = studio.adapter_file(studio.choose(*shown), file_format)
        return gradio.update(value=str(file), visible=True)

    def draw_for_script(
        prompt: str,
        member: str,
        seed: float,
        num_images: float,
        steps: float,
        guidance: float,
        negative: str,
    ) -> tuple[Any, Any]:
        who = studio.named(member)
        base, chosen = studio.draw(who, prompt, seed, num_images, steps, guidance, negative)
        return base, gradio.update(value=chosen, label=who.id)

    def file_for_script(member: str, file_format: str) -> Any:
        return gradio.update(value=str(studio.adapter_file(studio.named(member), file_format)))

    title = f"{front.path.resolve().name}: choose and draw"
    with gradio.Blocks(analytics_enabled=False, title=title, delete_cache=(3600, 3600)) as app:
        with gradio.Tabs():
            with gradio.Tab("Choose and draw"):
                page = Layout(gradio, front, sampler)
            with gradio.Tab("Say what you like", render_children=True) as taste:
                gradio.HTML(FRAME)
        shown = gradio.State(None)
        taste.select(None, js=FOCUS)
        choice = [page.way, page.name, *page.sliders]
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        for change in (app.load, *(part.change for part in choice)):
            change(kept(gradio, choose), choice, [page.text, page.plot, page.name], **quick)
        # One queue for all that runs the model: two people wait for each other, and fit in memory.
        slow = {"concurrency_limit": 1, "concurrency_id": "painter"}
        gradio.on(
            [app.load, *page.wishes_to_draw()],
            kept(gradio, functools.partial(draw, len(choice))),
            [*choice, page.prompt, *page.how],
            [page.base, page.chosen, shown, page.export_button, page.file],
            trigger_mode="always_last",
            api_visibility="private",
            **slow,
        )
        wanted = [shown, page.kind]
        export_event = page.export_button.click
        export_event(kept(gradio, export), wanted, page.file, api_visibility="private", **slow)
        script, member = gradio.Button(visible=False), gradio.Textbox("", visible=False)
        asked, pictures = [page.prompt, member, *page.how], [page.base, page.chosen]
        script.click(told(gradio, draw_for_script), asked, pictures, api_name="draw", **slow)
        asked = [member, page.kind]
        script.click(told(gradio, file_for_script), asked, page.file, api_name="adapter", **slow)
    app.queue(max_size=MAX_WAITING)
    return app


def _sliders(gradio: Any, names: Sequence[str]) -> list[Any]:
    """One slider between two objectives, or one for each of more; none for a single one."""
    if len(names) == 1:
        return []
    if len(names) > 2:
        return [gradio.Slider(0, 1, 1 / len(names), step=0.01, label=name) for name in names]
    info = f"0: {names[0]} alone, 1: {names[1]} alone"
    return [gradio.Slider(0, 1, 0.5, step=0.01, label="What matters to you?", info=info)]


def _theme(gradio: Any) -> Any:
    """The page's colours and shapes; the fonts are the system's, as others are on a network."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    colours = {
        "body_background_fill": "var(--paper)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--soft)",
        "block_background_fill": "var(--card)",
        "block_border_color": "var(--line)",
        "border_color_primary": "var(--line)",
        "button_primary_background_fill": "var(--o0)",
        "button_primary_background_fill_hover": "var(--focus)",
        "slider_color": "var(--o0)",
        "checkbox_background_color_selected": "var(--o0)",
        "checkbox_border_color_selected": "var(--o0)",
    }
    both = {f"{name}{end}": value for name, value in colours.items() for end in ("", "_dark")}
    return gradio.themes.Default(**fonts).set(
        block_radius="14px", button_large_radius="14px", **both
    )


def start(
    app: Any,
    host: str = LOCALHOST,
    port: int | None = None,
    *,
    desk: Desk,
    css: str = "",
    browse: bool = False,
) -> str:
    """Start the server, in threads of its own, and return its address.

    Args:
        app: from `build_app`.
        host: address to listen on.
        port: None for the first free one from 7860.
        desk: replies to the page of the taste.
        css: from `Studio.style`.
        browse: whether to open a browser.

    Raises:
        FrontError: if the port is taken.
    """
    gradio = import_gradio()
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
            theme=_theme(gradio),
            css=css,
            app_kwargs={"routes": [route_of(desk)]},
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
    taste: Path | None = None,
    clip: str = "",
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
        taste: folder of the answers; None for the run's own.
        clip: see `open_quiz`.
        browse: whether to open a browser.

    Raises:
        UserError: if gradio, the run or its model is missing, or the port is taken.
    """
    import_gradio()
    front = Front.load(run)
    answers = taste or front.path / "taste"
    read_answers(answers)
    painter = Painter(front, model, device, rows_per_pass)
    studio = Studio(front, painter)
    pictures = functools.partial(Source.of_front, front, painter)
    desk = Desk(functools.partial(open_quiz, answers, pictures, clip=clip, device=device))
    app = build_app(studio)
    try:
        address = start(app, host, port, desk=desk, css=studio.style(), browse=browse)
        sys.stdout.write(
            f"serving {front.path} on {address} (Ctrl+C ends); what you like goes to {answers}\n"
        )
        sys.stdout.flush()
        app.block_thread()
    finally:
        app.close()
        desk.close()
        studio.close()
