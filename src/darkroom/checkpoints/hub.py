"""Where a checkpoint lies: a local folder, or a repository of the hub, of which only the files that are needed are fetched."""

from __future__ import annotations

import fnmatch
import glob
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, MissingDependencyError
from .files import inside, parse_weight_name, plan, plan_pipeline, stem_of
from .index import INDEX_NAME, ModelIndex
from .save import recover

__all__ = ["download_pipeline", "locate", "model_files", "pipeline_files"]

logger = logging.getLogger("darkroom")
_ID = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?(?:/[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?)?", re.ASCII)
_TEXT = ("*.json", "*.txt", "*.model", "*.jinja", "README.md")  # in these patterns * also stands for /
_HEAVY = frozenset("safetensors bin msgpack onnx onnx_data pb h5 ckpt pt pth gguf flashpack ot tflite npz pkl".split())
Choice = Callable[[list[str]], Iterable[str]]  # of the names in a folder, those that are needed


def _is_weight(name: str) -> bool:
    """Whether a file holds weights of some format, or is an index of weights."""
    base = name.rsplit("/", 1)[-1]
    return base.rsplit(".", 1)[-1] in _HEAVY or parse_weight_name(base) is not None


def model_files(names: Collection[str], *, variant: str | None = None, use_safetensors: bool | None = None) -> list[str]:
    """Of the files of one component's folder, those that are needed to load it."""
    flat = [name for name in names if "/" not in name]
    chosen = [name for name in names if not _is_weight(name)]
    if stem := stem_of(flat):
        weights = plan(flat, stem, variant=variant, use_safetensors=use_safetensors)
        chosen += [*weights.files, *([weights.index] if weights.index else [])]
    return chosen


def pipeline_files(
    paths: Collection[str],
    index: ModelIndex,
    *,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    skip: Collection[str] = (),
) -> list[str]:
    """Of the files of a pipeline's repository, those that are needed to load it; a pure function.

    Args:
        paths: all files, relative to the root.
        index: the contents of its model_index.json.
        skip: components that the caller brings.
    """
    names = [name for name, entry in index.components.items() if entry is not None and name not in skip]
    chosen = [p for p in paths if "/" not in p and not _is_weight(p) and any(fnmatch.fnmatch(p, pattern) for pattern in _TEXT)]
    for name, weights in plan_pipeline(paths, names, variant=variant, use_safetensors=use_safetensors).items():
        chosen += [f"{name}/{file}" for file in (*weights.files, *([weights.index] if weights.index else []))]
    for name in names:
        within = [p for p in paths if p.startswith(name + "/")]
        chosen += [p for p in within if not _is_weight(p)]
        if not within:  # a repository of one transformers model has its files in the root
            chosen += [p for p in model_files([p for p in paths if "/" not in p], use_safetensors=use_safetensors) if p not in chosen]
    return chosen


def _scrub(text: str, token: object) -> str:
    for secret in {token, os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN")}:
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***")
    return re.sub(r"hf_\w{4,}", "***", text).strip()


def _allowed(root: Path, name: str) -> bool:
    try:
        return bool(inside(root, name))
    except CheckpointError:
        return False


def _fetch(repo_id: str, patterns: Sequence[str], choose: Callable[[list[str], Path], Iterable[str]] | None = None, **hub: Any) -> Path:
    """The snapshot folder of a repository with the files of these patterns, and then the chosen ones of the same commit.

    What the hub cannot say because it cannot be reached, the cache says.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise MissingDependencyError("The hub needs a package.", where=repo_id, fix="pip install huggingface_hub") from None
    try:
        root = Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=list(patterns), **hub))
        if choose is None:
            return root
        hub["revision"], paths = root.name, None
        if not hub["local_files_only"]:
            try:
                paths = huggingface_hub.HfApi(token=hub["token"]).list_repo_files(repo_id, revision=root.name)
            except Exception as error:
                logger.warning("%s: the hub does not answer (%s); using what was fetched before", repo_id, type(error).__name__)
        if paths is None:
            hub["local_files_only"], paths = True, [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
        chosen = choose([p for p in paths if _allowed(root, p)], root)
        return Path(huggingface_hub.snapshot_download(repo_id, allow_patterns=[glob.escape(name) for name in chosen], **hub))
    except CheckpointError:
        raise
    except Exception as error:
        kind = type(error).__name__
        what = {
            "RepositoryNotFoundError": "The hub has no such repository, or it is private.",
            "RevisionNotFoundError": "The repository has no such revision.",
            "GatedRepoError": "The repository is gated: its owner wants an agreement first.",
        }.get(kind, "The files could not be fetched from the hub, and the cache does not hold them.")
        raise CheckpointError(
            what,
            where=f"{repo_id}, revision {hub['revision'] or 'main'}",
            got=f"{kind}: {_scrub(str(error), hub['token'])}",
            fix="Check the spelling, the connection and the token; a local folder works without the hub.",
        ) from None


def _local(path_or_id: str | os.PathLike[str]) -> Path | None:
    """The folder, or None for a valid hub id."""
    path = recover(Path(path_or_id))
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError("Not a folder.", where=path, expected="a folder, or a hub id such as org/name")
    if isinstance(path_or_id, str) and _ID.fullmatch(path_or_id):
        return None
    raise CheckpointError(
        "Neither an existing folder nor a valid hub id.", where=str(path_or_id), expected="a folder, or a hub id such as org/name"
    )


def locate(
    path_or_id: str | os.PathLike[str],
    *,
    subfolder: str | None = None,
    files: Sequence[str] | Choice | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The local folder of a checkpoint, joined with `subfolder`.

    Args:
        path_or_id: a folder, taken as it is, or a hub id ("name" or "org/name").
        files: what to fetch of a hub repository: patterns relative to `subfolder`, or a function that chooses from the list of the names there;
            None: configurations, tokenizers and safetensors.
        revision: a branch, tag or commit; it is resolved to a commit once.
    Raises:
        CheckpointError: there is no such folder and no such repository, or it cannot be fetched.
    """
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    root = _local(path_or_id)
    if root is None:
        select = files if callable(files) else None
        patterns = ["config.json"] if select else [*_TEXT, "*.safetensors"] if files is None else list(files)  # type: ignore[arg-type]

        def choose(paths: list[str], root: Path) -> list[str]:
            return [prefix + name for name in select([p[len(prefix) :] for p in paths if p.startswith(prefix)])]

        root = _fetch(
            str(path_or_id), [glob.escape(prefix) + p for p in patterns], choose if select else None, revision=revision,
            cache_dir=cache_dir, token=token, local_files_only=local_files_only, force_download=force_download,
        )  # fmt: skip
    folder = inside(root, prefix) if prefix else root
    if not folder.is_dir():
        raise CheckpointError("The checkpoint has no such subfolder.", where=root, got=subfolder)
    return folder


def download_pipeline(
    path_or_id: str | os.PathLike[str],
    *,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    skip: Collection[str] = (),
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The local folder of a pipeline: the folder itself, or a snapshot with the files that `pipeline_files` chooses.

    Args:
        skip: components that the caller brings; their files are not fetched.
    Raises:
        CheckpointError: no such folder or repository, no model_index.json, no weights in the variant or format.
    """
    root = _local(path_or_id)
    if root is not None:
        if variant is not None:
            paths = [p.relative_to(root).as_posix() for p in (*root.glob("*"), *root.glob("*/*")) if p.is_file()]
            pipeline_files(paths, ModelIndex.read(root), variant=variant, use_safetensors=use_safetensors, skip=skip)
        return root

    def choose(paths: list[str], root: Path) -> list[str]:
        return pipeline_files(paths, ModelIndex.read(root), variant=variant, use_safetensors=use_safetensors, skip=skip)

    return _fetch(
        str(path_or_id), [INDEX_NAME], choose, revision=revision, cache_dir=cache_dir, token=token,
        local_files_only=local_files_only, force_download=force_download,
    )  # fmt: skip
