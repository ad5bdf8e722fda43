"""A front, or one adapter of it, as a repository on a hub: nothing is sent unless asked for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ddpo.files import write_json
from front.analysis.values import ANALYSIS, DENSE_PLOT
from front.cards import write_front_card
from front.errors import ChoiceError, FrontError
from front.export import write_folder
from front.record import NAME
from morl.types import BASE_POLICY
from run.records import CONFIG, SEARCH
from run.samples import sample_path

if TYPE_CHECKING:
    from front.front import Front
    from front.member import Blend, FrontPolicy

_RECORDS = (
    NAME,
    "history.json",
    SEARCH,
    "metrics.jsonl",
    ANALYSIS,
    DENSE_PLOT,
)
# Settings that say where files lie on the machine that trained, and nothing else.
_LOCAL = ("logdir", "run_name", "resume_from")


def write_repository(
    folder: Path, front: Front, member: FrontPolicy | Blend | None, repo: str
) -> list[Path]:
    """Write what would be uploaded: one adapter, or the whole front as a run to be read again.

    Args:
        folder: exists already.
        front: to share.
        member: one policy or blend; None for the whole front.
        repo: for the model card.

    Returns:
        The files, relative to `folder`.

    Raises:
        UserError: if a file of the run is missing or damaged.
    """
    if member is not None:
        write_folder(folder, front, member, repo=repo)
    else:
        copy_front(front, folder)
        write_front_card(folder, front, repo)
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def copy_front(front: Front, folder: Path) -> None:
    """Copy what `Front.load` and the other commands need.

    Of the settings, no path of this machine and no address of a remote reward is copied.

    Raises:
        FrontError: if an adapter is missing.
    """
    for name in _RECORDS:
        if (front.path / name).is_file():
            shutil.copyfile(front.path / name, folder / name)
    for policy in front.policies:
        target = folder / policy.adapter.relative_to(front.path)
        target.mkdir(parents=True)
        shutil.copyfile(policy.file, target / policy.file.name)
    for identifier in (BASE_POLICY, *(member.id for member in front.members)):
        picture = sample_path(front.path, "report", identifier)
        if picture.is_file():
            target = sample_path(folder, "report", identifier)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, target)
    settings = _without_folders(json.loads(json.dumps(front.settings)))
    settings |= {name: "" for name in _LOCAL if name in settings}
    rewards = settings["rewards"]
    if "remotes" in rewards:  # hosts, and perhaps passwords
        rewards["remotes"] = []
    if "sources" in rewards:  # REWARD.PART=SOURCE, which is no path as a whole
        pairs = (text.split("=", 1) for text in rewards["sources"])
        rewards["sources"] = [f"{part}={_without_folders(source)}" for part, source in pairs]
    write_json(folder / CONFIG, replace(front.config, settings=settings).to_json())


def _without_folders(value: Any) -> Any:
    """A setting, or a section of settings, with every path of this machine cut to its last part.

    `/home/me/rewards.py:warmth` becomes `rewards.py:warmth`.
    """
    if isinstance(value, dict):
        return {name: _without_folders(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    if not isinstance(value, str):
        return value
    path = Path(value.rpartition(":")[0] if ".py:" in value else value)
    try:
        is_local = path.is_absolute() or path.exists()
    except OSError:  # a text too long for a name
        is_local = False
    return Path(value).name if is_local else value


def push(
    front: Front,
    member: FrontPolicy | Blend | None,
    repo: str,
    *,
    is_private: bool = False,
    api: HfApi | None = None,
) -> str:
    """Upload one adapter, or the whole front, as one repository.

    Args:
        front: to share.
        member: one policy or blend; None for the whole front.
        repo: `owner/name`; made if absent.
        is_private: make it private, if it is made now.
        api: of another hub; by default the Hugging Face hub with the user's token.

    Returns:
        Address of the commit.

    Raises:
        ChoiceError: if the repository's name is impossible.
        FrontError: if there is no token, or the hub refuses or cannot be reached.
    """
    check_repo(repo)
    if api is None:
        if get_token() is None:
            raise FrontError(
                "there is no token for the hub: log in with `hf auth login`, or set HF_TOKEN to a "
                "token that may write"
            )
        api = HfApi()
    with TemporaryDirectory() as folder:
        write_repository(Path(folder), front, member, repo)
        what = "Pareto front" if member is None else f"adapter {member.id}"
        try:
            api.create_repo(repo, private=is_private or None, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message=f"Upload {what}"
            )
        except Exception as error:  # its errors depend on the HTTP client it is built on
            raise FrontError(f"{repo} could not be uploaded: {error}") from error
    return str(commit.commit_url)


def check_repo(repo: str) -> None:
    """Refuse what cannot be a repository.

    Raises:
        ChoiceError: with the rule.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ChoiceError(f"--repo={repo}: {error}") from error
