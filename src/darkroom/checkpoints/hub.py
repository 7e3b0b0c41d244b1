"""Where a checkpoint lies: a local folder, or a repository of the hub, of which only the files that are needed are fetched."""

from __future__ import annotations
import glob
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
import huggingface_hub
from ..errors import CheckpointError
from .files import PathLike, inside, is_safe, pipeline_files
from .index import INDEX_NAME, ModelIndex
from .save import recover

__all__ = ["HUB_OPTIONS", "download_pipeline", "locate"]

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
logger = logging.getLogger("darkroom")
Choice = Callable[[list[str], Path], Iterable[str]]
_ID = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?(?:/[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?)?", re.ASCII)
_REASONS = {
    "RepositoryNotFoundError": "The hub has no such repository, or it is private.",
    "RevisionNotFoundError": "The repository has no such revision.",
    "GatedRepoError": "The repository is gated: its owner wants an agreement first.",
}


def _fetch(repo_id: str, names: Iterable[str], hub: dict[str, Any]) -> Path:
    """The snapshot folder of a repository with these files."""
    try:
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=[glob.escape(name) for name in names], **hub))
    except Exception as error:  # its text is left out: it may hold a token
        kinds = [type(e).__name__ for e in (error, error.__cause__) if e is not None]
        what = _REASONS.get(kinds[0], "The files could not be fetched from the hub, and the cache does not hold them.")
        fix = "Check the spelling, the connection and the token; a local folder works without the hub."
        raise CheckpointError(what, where=f"{repo_id}, revision {hub.get('revision') or 'main'}", got=", ".join(kinds), fix=fix) from None


def _remote_names(repo_id: str, commit: str, hub: dict[str, Any]) -> list[str] | None:
    """All files of a commit, None if the hub does not answer."""
    try:
        names = huggingface_hub.HfApi(token=hub.get("token")).list_repo_files(repo_id, revision=commit)
        return [name for name in names if is_safe(name)]
    except Exception as error:
        logger.warning("%s: the hub does not answer (%s); using what was fetched before", repo_id, type(error).__name__)
        return None


def locate(path_or_id: PathLike, *, files: Collection[str], choose: Choice | None = None, subfolder: str | None = None, **hub: Any) -> Path:
    """The local folder of a checkpoint, joined with `subfolder`: a folder, taken as it is, or a hub id. CheckpointError if there is neither.
    `files` are fetched of a hub repository first, relative to `subfolder`; `choose` takes the names in the folder and the folder with `files` and
    says what else is needed. It is called for local folders too, for its errors. `hub` are `HUB_OPTIONS`; `revision`, a branch, tag or commit, is
    resolved to a commit once. What the hub does not answer, the cache does.
    """
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    root, repo_id = recover(Path(path_or_id)), ""
    if not root.is_dir():
        if root.exists() or not isinstance(path_or_id, str) or not _ID.fullmatch(path_or_id):
            expected = "a folder, or a hub id such as org/name"
            raise CheckpointError("Neither an existing folder nor a valid hub id.", where=path_or_id, expected=expected)
        repo_id, root = path_or_id, _fetch(path_or_id, [prefix + name for name in files], hub)
    folder = inside(root, prefix) if prefix else root
    if not folder.is_dir():
        raise CheckpointError("The checkpoint has no such subfolder.", where=root, got=subfolder)
    if choose is not None:
        names = _remote_names(repo_id, root.name, hub) if repo_id and not hub.get("local_files_only") else None
        hub |= {"revision": root.name, "local_files_only": names is None}
        if names is None:
            names = [path.relative_to(root).as_posix() for path in (*folder.glob("*"), *folder.glob("*/*")) if path.is_file()]
        needed = choose([name.removeprefix(prefix) for name in names if name.startswith(prefix)], folder)
        if repo_id:
            _fetch(repo_id, [prefix + name for name in needed], hub)
    return folder


def download_pipeline(path_or_id: PathLike, *, skip: Collection[str] = (), choice: Mapping[str, Any] = {}, **hub: Any) -> Path:
    """The local folder of a pipeline: the folder itself, or a snapshot with the files that `pipeline_files` chooses.
    `skip` are components that the caller brings: their files are not fetched. `choice` is `variant` and `use_safetensors`; `hub` as for `locate`.
    """

    def choose(names: list[str], folder: Path) -> list[str]:
        components = [name for name, entry in ModelIndex.read(folder).components.items() if entry is not None and name not in skip]
        return pipeline_files(names, components, **choice)

    return locate(path_or_id, files=[INDEX_NAME], choose=choose, **hub)
