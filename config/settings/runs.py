"""Which run directory a path means, and which there are."""

from __future__ import annotations

from pathlib import Path

from config.base import Settings
from config.settings.declared import defaults_of
from config.settings.files import exists, is_file

LATEST = "latest"
_FILES = ("config.json", "search.json", "front.json")  # the first makes a folder a run
_MOST_LISTED = 5


def named_run(path: Path) -> Path:
    """The run directory that a path means: `latest` is the newest run of the folder it lies in.

    Alone, `latest` is the newest run of the default log directory; a folder of that name is itself.
    """
    if path.name != LATEST or exists(path):
        return path
    return next(iter(runs_in(_folder(path))), path)


def runs_in(folder: Path) -> list[Path]:
    """The run directories directly in a folder, those written to last first."""
    try:
        found = [path for path in folder.iterdir() if is_file(path / _FILES[0])]
    except OSError:
        return []
    return sorted(found, key=_last_written, reverse=True)


def runs_beside(path: Path) -> str:
    """A sentence for whoever names a run that is not there: the runs in its folder; or nothing."""
    runs = runs_in(_folder(path))
    if not runs:
        return ""
    listed = ", ".join(str(run) for run in runs[:_MOST_LISTED])
    more = f" and {len(runs) - _MOST_LISTED} more" if len(runs) > _MOST_LISTED else ""
    return f"; newest first there are {listed}{more} (`{LATEST}` is the first)"


def _folder(path: Path) -> Path:
    """Where a run is looked for: beside the path, or in the default log directory."""
    is_bare = path.parent == Path()
    return Path(defaults_of(Settings)["logdir"]) if is_bare else path.parent


def _last_written(run: Path) -> float:
    times = []
    for name in _FILES:
        try:
            times.append((run / name).stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)
