"""`report.html`: one page that shows a run and lets a person choose from its front.

Everything is inside the page: pictures, charts, numbers. It works from disk, and its content
security policy lets no request leave it. It is built from the run directory alone, so it can be
built again at any time. During the run it shows the archive on the selection set.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from markupsafe import Markup
from PIL import Image

from config.settings.errors import UserError
from config.settings.flat import flatten
from config.settings.runs import named_run, runs_beside
from ddpo.assets import EMBEDDED_MODELS
from ddpo.files import write_atomic
from front.drawing_code import drawing_code, shared_name
from front.front import Front
from front.labels import Label
from front.member import Blend
from front.record import NAME, FrontRecord
from front.setups import transfer_table
from front.verdict import Gain, losses
from front.view import FrontView
from morl.types import BASE_POLICY, PolicyId
from run.audit_page import read_audit
from run.pages import page_template
from run.records import CONFIG, SEARCH, RunConfig, SearchRecord
from run.samples import encode, read_samples, sample_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from front.member import Guard, GuardValue
    from morl.types import Array, Objective

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_SCRIPTS = (  # in the order of loading
    "vendor/d3.min.js",
    "vendor/plot.min.js",
    "shared.js",
    "charts.js",
    "pictures.js",
    "choice.js",
    "report.js",
)
_LICENCES = ("vendor/LICENSE.d3", "vendor/LICENSE.plot")
REFRESH_SECONDS = 30  # after which the page of an unfinished run reloads itself
_ADAPTER = "ADAPTER"  # in code, until the page puts a folder there
_TILE_SIZES = (512, 384, 256, 192, 128, 96, 64)  # pixels, tried until the pictures fit
PICTURE_BYTES = 9_000_000  # of the pictures, encoded: a third more in the page
_BYTES_PER_PIXEL = 0.12  # of WebP at our quality, for photographs


class ReportError(UserError):
    """The folder holds no run, or nothing to report yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """The files that a run has written so far.

    Attributes:
        path: the run directory.
        config: its settings and versions.
        search: so far.
        front: as published; None during the run, also if it was extended.
        seconds: wall-clock time so far.
    """

    path: Path
    config: RunConfig
    search: SearchRecord
    front: FrontRecord | None
    seconds: float

    @classmethod
    def read(cls, run: Path) -> RunFiles:
        """Read a run directory.

        Raises:
            UserError: if a file is missing or damaged.
        """
        if not (run / CONFIG).is_file():
            raise ReportError(f"{run} is not a run directory: it has no {CONFIG}{runs_beside(run)}")
        if not (run / SEARCH).is_file():
            raise ReportError(
                f"{run} has no {SEARCH}: the base model is not measured yet, or the run was "
                "made by a version that did not write it"
            )
        search = SearchRecord.read(run)
        front = FrontRecord.read(run) if (run / NAME).is_file() else None
        if front and front.costs.train < search.costs.train:
            front = None  # published before the run was extended
        return cls(
            path=run,
            config=RunConfig.read(run),
            search=search,
            front=front,
            seconds=_seconds(run / "metrics.jsonl"),
        )


def write_report(run: Path, *, is_running: bool = False) -> Path:
    """Write `report.html` into a run directory and return its path.

    Args:
        run: the run directory.
        is_running: whether the run will write the page again; the page then reloads itself.

    Raises:
        UserError: if the folder holds no run, a file of it is damaged, or it cannot be written to.
    """
    run = named_run(run)
    files = RunFiles.read(run)
    try:
        page = render(files, report_data(files), is_running=is_running)
    except (KeyError, IndexError, TypeError, ValueError, TemplateError) as error:
        raise ReportError(f"the records of {run} do not fit together: {error!r}") from error
    path = run / "report.html"
    try:
        write_atomic(path, page.encode(errors="backslashreplace"))  # names of files may be no text
    except OSError as error:
        raise ReportError(f"{path} cannot be written: {error}") from error
    return path


def report_data(files: RunFiles) -> dict[str, Any]:
    """The data of the page's script, as JSON values; records give the snake_case keys."""
    search, front = files.search, files.front
    whole = Front.load(files.path) if front else None
    members, base = _front_members(whole, front) if whole and front else _archive_members(search)
    pictured = {"selection": [str(policy.policy) for policy in search.policies]}
    if front:
        pictured["report"] = [BASE_POLICY, *(member["id"] for member in members)]
    return {
        "run": files.path.resolve().name,
        "set": "report" if front else "selection",
        "objectives": [_measure(objective) for objective in search.objectives],
        "guards": [_measure(guard) for guard in front.guards] if front else [],
        "members": members,
        "base": base,
        "best": _best_in_all(members),
        "policies": {record["policy"]: record for record in _with_predictions(search)},
        "generations": _generations(search),
        "report_volumes": _report_volumes(search, front) if front else [],
        "prompts": {
            "selection": list(search.samples.prompts),
            "report": list(front.samples.prompts) if front else [],
        },
        **_pictures(files, pictured),
        "code": _code(whole) if whole else "",
    }


def _measure(measure: Objective | Guard) -> dict[str, Any]:
    """An objective or a guard, with the words in which people read it."""
    return {**measure.to_json(), "label": Label.of(measure).to_json()}


def _code(front: Front) -> str:
    """Python that draws as the adapter in the folder `_ADAPTER`; empty for a run that is too old.

    The page is read on the machine that trained: its models are named as the run named them.
    """
    if front.model is None:
        return ""
    code = drawing_code(front, _ADAPTER, is_sdxl=False)
    pretrained = front.settings["pretrained"]
    for name in filter(None, (pretrained["model"], pretrained.get("vae"), pretrained.get("lora"))):
        if name not in EMBEDDED_MODELS:
            code = code.replace(json.dumps(shared_name(name)), json.dumps(name))
    return code


def _front_members(
    front: Front, published: FrontRecord
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Published policies and measured blends, and the base model, on the report set."""
    policies = {policy.id: policy for policy in published.policies}
    blends = {blend.id: blend for blend in published.blends or ()}
    base = front.base.report_returns
    members = []
    for member in front.members:
        parts = member.parts if isinstance(member, Blend) else ()
        policy = None if parts else policies[PolicyId(member.id)]
        entry = policy or blends[member.id]
        own = (entry.report_returns, entry.report_std_error)
        gain = Gain.published(entry, front.base)
        lost = losses(own[0], base, front.objectives, front.guards, member.guards)
        members.append(
            {
                "id": member.id,
                "kind": "blend" if parts else "policy",
                "weights": member.weights.tolist(),
                **_measured(own, gain),
                "generation": policy.generation if policy else None,
                "adapter": policy.adapter if policy else None,
                "parts": [[part.id, coefficient] for part, coefficient in parts],
                "guards": _guard_values(member.guards),
                "losses": list(lost),
            }
        )
    record = {
        "id": BASE_POLICY,
        "kind": "base",
        "returns": base.tolist(),
        "std_error": front.base.report_std_error.tolist(),
        "guards": _guard_values(front.base.guards),
    }
    return members, record


def _measured(returns: tuple[Array, Array], gain: Gain) -> dict[str, Any]:
    """Returns and gains as the page has them."""
    return {
        "returns": returns[0].tolist(),
        "std_error": returns[1].tolist(),
        "gain": gain.value.tolist(),
        "gain_std_error": gain.std_error.tolist(),
        "improves_everything": gain.is_everywhere,
    }


def _guard_values(guards: Mapping[str, GuardValue]) -> dict[str, dict[str, float]]:
    return {name: value.to_json() for name, value in guards.items()}


def _archive_members(search: SearchRecord) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The archive so far, and the base model, on the selection set."""
    view = FrontView.of_search(search)
    base_measured = (view.base.returns, view.base.std_error)
    generations = {policy.policy: policy.generation for policy in search.policies}
    members = [
        {
            "id": policy.id,
            "kind": "policy",
            "weights": policy.weights.tolist(),
            **_measured(
                (policy.returns, policy.std_error),
                Gain.unpaired((policy.returns, policy.std_error), base_measured),
            ),
            "generation": generations[policy.id],
            "adapter": None,
            "parts": [],
            "guards": {},
            "losses": list(losses(policy.returns, view.base.returns, view.objectives, (), {})),
        }
        for policy in view.policies
    ]
    base = {
        "id": BASE_POLICY,
        "kind": "base",
        "guards": {},
        "returns": view.base.returns.tolist(),
        "std_error": view.base.std_error.tolist(),
    }
    return members, base


def _with_predictions(search: SearchRecord) -> Iterator[dict[str, Any]]:
    """Every policy of the search, with what its task's strategy predicted and its stage."""
    yield {**search.base.to_json(), "predicted": None, "stage": "base"}
    for finished in search.generations:
        generation = finished.generation
        for task, child in zip(generation.tasks, finished.offspring, strict=True):
            predicted = task.to_json()["predicted_returns"]
            yield {**child.to_json(), "predicted": predicted, "stage": generation.stage}


def _generations(search: SearchRecord) -> list[dict[str, Any]]:
    """One entry for the base model and each generation: images, hypervolume, archive."""
    stages = ["base", *(finished.generation.stage for finished in search.generations)]
    return [
        {
            "index": index - 1,
            "stage": stage,
            "images": point.images,
            "hypervolume": point.hypervolume,
            "archive": list(archive),
        }
        for index, (stage, point, archive) in enumerate(
            zip(stages, search.curve, search.archives, strict=True)
        )
    ]


def _report_volumes(search: SearchRecord, front: FrontRecord) -> list[dict[str, float | str]]:
    """Hypervolumes on the report set, at the training images that each took."""
    stages = [finished.generation.stage for finished in search.generations]
    volumes, warmup = front.hypervolume, search.curve[stages.count("warmup")].images
    places = (
        ("base model", 0, volumes.report_base),
        ("after warm-up", warmup, volumes.report_warmup),
        ("at the end", search.curve[-1].images, volumes.report),
    )
    return [
        {"label": label, "images": count, "hypervolume": volume} for label, count, volume in places
    ]


def _pictures(files: RunFiles, pictured: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The pictures, small enough all together.

    Returns:
        Data URIs, set -> policy -> one per prompt; and the width and height that was drawn.
    """
    counts = {"selection": len(files.search.samples)}
    if files.front:
        counts["report"] = len(files.front.samples)
    tiles = {
        (purpose, name): read_samples(files.path, purpose, name, counts[purpose])
        for purpose, names in pictured.items()
        for name in names
        if sample_path(files.path, purpose, name).is_file()
    }
    for size in _affordable_sizes([tile for grid in tiles.values() for tile in grid]):
        encoded = {key: [_encode(tile, size) for tile in grid] for key, grid in tiles.items()}
        if sum(len(data) for grid in encoded.values() for data in grid) <= PICTURE_BYTES:
            break
    out: dict[str, dict[str, list[str]]] = {"selection": {}, "report": {}}
    for (purpose, name), grid in encoded.items():
        out[purpose][name] = [
            f"data:image/webp;base64,{base64.b64encode(data).decode()}" for data in grid
        ]
    drawn = next((grid[0].size for grid in tiles.values() if grid), (0, 0))
    return {"pictures": out, "drawn_size": list(drawn)}


def _affordable_sizes(tiles: Sequence[Image.Image]) -> list[int]:
    """Sizes worth trying, largest first: encoding many pictures takes seconds for each size."""
    sizes = [
        size
        for size in _TILE_SIZES
        if sum(min(size, tile.width) * min(size, tile.height) for tile in tiles) * _BYTES_PER_PIXEL
        <= PICTURE_BYTES
    ]
    return sizes or [_TILE_SIZES[-1]]


def _encode(tile: Image.Image, size: int) -> bytes:
    """A picture whose longer side is at most `size`; exact if it is small to begin with."""
    small = tile.copy()
    small.thumbnail((size, size), Image.Resampling.LANCZOS)
    return encode(small, max(tile.size))


def render(files: RunFiles, data: Mapping[str, Any], *, is_running: bool = False) -> str:
    """The page.

    Args:
        files: of the run, for what is not interactive.
        data: from `report_data`.
        is_running: see `write_report`.
    """
    labels = [Label.of(objective) for objective in files.search.objectives]
    guards = [Label.of(guard) for guard in files.front.guards] if files.front else []
    scripts = [_own_text(name) for name in _SCRIPTS]
    settings = files.config.settings
    return page_template(_TEMPLATES / "report.html.j2").render(
        data=data,
        refresh_seconds=REFRESH_SECONDS if is_running else 0,
        payload=_payload(data),
        style=_own_text("report.css"),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        licences=[_own_text(name) for name in _LICENCES],
        config=files.config,
        settings=sorted(flatten(settings)),
        model=settings["pretrained"]["model"],
        num_agents=files.search.num_agents,
        num_generations=files.search.num_generations,
        costs=files.front.costs if files.front else files.search.costs,
        minutes=files.seconds / 60,
        front=files.front,
        labels=labels,
        guard_labels=guards,
        headline=_headline(data),
        transfer=_transfer(files),
        audit=read_audit(
            files.path.resolve().parent,
            [each.name for each in files.search.objectives],
            settings["pretrained"]["model"],
        ),
    )


def _transfer(files: RunFiles) -> tuple[list[str], list[list[str]]] | None:
    """The front under other ways of drawing, if anybody measured it."""
    if not files.front or not files.front.transfer:
        return None
    front, names = files.front, [each.name for each in files.search.objectives]
    return transfer_table(front.transfer, names, front.policies)


def _best_in_all(members: Sequence[Mapping[str, Any]]) -> str | None:
    """Of the members that improve everything the one whose gains have the largest product.

    The product ranks them alike whatever the units of the objectives (Nash 1950).
    """
    improving = [member for member in members if member["improves_everything"]]
    best = max(improving, key=lambda member: math.prod(member["gain"]), default={"id": None})
    return best["id"]


def _headline(data: Mapping[str, Any]) -> dict[str, Any]:
    """The first lines of the page.

    Returns:
        How many members there are and how many improve everything; the best of these, or None;
        for each objective the member that is best in it.
    """
    members, best = data["members"], data["best"]
    trained = [member for member in members if member["id"] != BASE_POLICY]
    num = len(members[0]["returns"])
    return {
        "total": len(trained),
        "improving": sum(member["improves_everything"] for member in trained),
        "best": next((member for member in members if member["id"] == best), None),
        "extremes": [_best(members, index) for index in range(num)],
    }


def _best(members: Sequence[Mapping[str, Any]], index: int) -> Mapping[str, Any]:
    """The member with the largest return in one objective."""
    return max(members, key=lambda member: member["returns"][index])


def _payload(data: Mapping[str, Any]) -> Markup:
    """JSON that can stand inside a script element: no `<`, so nothing in it ends the element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028"))


def _own_text(name: str) -> Markup:
    """A file of the templates, which is ours and goes into the page as it is."""
    text = (_TEMPLATES / name).read_text(encoding="utf-8").strip()
    if "</script" in text or "</style" in text or ("--" in text and "LICENSE" in name):
        raise ValueError(f"{name} would end the element that it stands in")
    return Markup(text)


def _hash(script: str) -> str:
    """How a content security policy names a script that may run."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _seconds(path: Path) -> float:
    """Wall-clock seconds of a run by its `metrics.jsonl`; a resumed run counts from 0 again."""
    total = last = 0.0
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            seconds = float(json.loads(line)["seconds"])
        except (ValueError, KeyError):  # a line that is being written while we read
            continue
        total += seconds - last if seconds >= last else seconds
        last = seconds
    return total
