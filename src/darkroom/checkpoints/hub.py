"""Where a checkpoint lies: a local folder, or a repository of the hub, of which only the files that are needed are fetched."""

from __future__ import annotations
import contextlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from ..errors import CheckpointError, DarkroomError, InputError
from .files import PathLike, inside, open_regular, size_of
from .index import INDEX_NAME, ModelIndex
from .locks import recover
from .plan import PipelinePlan, parse_weight_name, plan_pipeline
from .repository import HUB_OPTIONS, Listing, Repository, commit_of, sizes_in

__all__ = ["HUB_OPTIONS", "Listing", "check_source", "fetch_pipeline", "listing_of", "locate", "newer_commit", "push_folder", "read_range"]

logger = logging.getLogger("darkroom")
AT_ONCE = 8  # downloads
Choice = Callable[[list[str], Path], Iterable[str]]
_ID = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?(?:/[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?)?", re.ASCII)


def _find(path_or_id: PathLike, hub: dict[str, Any]) -> Path | Repository:
    """The local folder, or the repository. Raises CheckpointError if it is neither."""
    path = recover(existing := check_source(path_or_id))
    if path.is_dir():
        return path
    if existing.exists() or not isinstance(path_or_id, str) or not _ID.fullmatch(path_or_id):
        expected = "a folder, or a hub id such as org/name"
        raise CheckpointError("Neither an existing folder nor a valid hub id.", where=os.fspath(path_or_id), expected=expected)
    return Repository(path_or_id, **hub)


def check_source(path_or_id: object) -> Path:
    """What is to be loaded as a path, which need not exist. Raises InputError for what can be neither a path nor a hub id."""
    try:
        path = Path(path_or_id)  # type: ignore[arg-type]
        path.exists()
    except (TypeError, ValueError, OSError) as error:  # of another type, with a NUL, too long
        got, expected = f"{str(path_or_id)[:60]!r}: {error}"[:200], "a folder, or a hub id such as org/name"
        raise InputError("Not a path.", where="pretrained_model_name_or_path", got=got, expected=expected) from None
    return path


def _can_go_without(name: str, names: Collection[str]) -> bool:
    """Whether a load works without this file: other programs do not fetch what lies beside weights and is no configuration."""
    folder, _, base = name.rpartition("/")
    beside = any(parse_weight_name(other.rpartition("/")[2]) for other in names if other.rpartition("/")[0] == folder)
    return base.endswith(".md") or bool(folder and beside and base != "config.json" and not parse_weight_name(base))


def _fetch(repo: Repository, listing: Listing, names: Iterable[str], *, bar: bool = True) -> None:
    """Bring files of a commit into its snapshot, several at once. What is there, in the right size, is not asked for."""
    absent = [name for name in dict.fromkeys(names) if repo.force or not repo.has(listing, name)]
    if repo.reason:
        if lacking := [name for name in absent if not _can_go_without(name, listing.sizes)]:
            what, fix = f"The cache holds only a part of the files that are needed. {repo.reason}", "Fetch the rest once while online."
            got = f"missing: {', '.join(lacking[:5])}{f' and {len(lacking) - 5} more' if len(lacking) > 5 else ''}"
            raise CheckpointError(what, where=f"{repo.where}, commit {listing.commit}", got=got, fix=fix)
        return
    if not absent:
        return
    from huggingface_hub.utils import are_progress_bars_disabled
    from tqdm.auto import tqdm

    copies: dict[str, list[str]] = {}  # one download for files of the same content
    for name in sorted(absent, key=lambda name: -listing.sizes[name]):
        copies.setdefault(listing.digests.get(name, name), []).append(name)
    total = sum(max(listing.sizes[same[0]], 0) for same in copies.values())
    try:
        (blobs := repo.folder / "blobs").mkdir(parents=True, exist_ok=True)
        there = sum(max(size_of(path), 0) for path in blobs.glob("*.incomplete"))  # another process may complete one meanwhile
        needed = sum(max(listing.sizes[same[0]], 0) for digest, same in copies.items() if not (blobs / digest).exists()) - there
        free = shutil.disk_usage(blobs).free
    except OSError as error:
        raise CheckpointError(
            "The cache cannot be written.", where=repo.folder, got=error.strerror, fix="Pass another cache_dir=."
        ) from None
    if needed > free:
        raise CheckpointError("The disk has too little room.", where=repo.folder, got=f"{free} bytes", expected=f"{needed} bytes")
    remote, counting = repo.remote(), threading.Lock()
    off = {"disable": True} if not bar or are_progress_bars_disabled() else {}  # not False: that would overrule TQDM_DISABLE
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1000, desc=f"Fetching {repo.id}", **off) as progress:

        def advance(count: int) -> None:
            with counting:
                progress.update(count)

        pool = ThreadPoolExecutor(min(AT_ONCE, len(copies)), thread_name_prefix="darkroom-download")
        jobs = [pool.submit(repo.bring, remote, listing, same, advance) for same in copies.values()]
        try:
            for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
                job.result()
        except BaseException as error:  # threads that wait for the network are waited for only if nobody has pressed a key
            remote.stop.set()
            pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)
            raise
        pool.shutdown()


def locate(path_or_id: PathLike, *, files: Collection[str], choose: Choice | None = None, subfolder: str | None = None, **hub: Any) -> Path:
    """The local folder of a checkpoint, joined with `subfolder`.

    Args:
        path_or_id: a folder, taken as it is, or a hub id ("name" or "org/name"). CheckpointError if there is neither.
        files: what to fetch of a hub repository first, relative to `subfolder`; what it lacks of these is passed over.
        choose: (names in the folder, the folder with `files`) -> what else is needed. Called for local folders too, for its errors.
        hub: `HUB_OPTIONS`. `revision`, a branch, tag or commit, is resolved to a commit once, by the one request for the list of its files.
            Where the hub gives none, what the cache holds of the revision is used, with a warning.
    """
    if subfolder is not None and not isinstance(subfolder, str):
        raise InputError("Not the name of a folder.", where="subfolder", got=subfolder, expected="a string, such as 'unet'")
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    found = _find(path_or_id, hub)
    if isinstance(found, Path):
        folder = inside(found, prefix) if prefix else found
        if not folder.is_dir():
            raise CheckpointError("The checkpoint has no such subfolder.", where=found, got=subfolder)
        if choose is not None:
            choose(list(sizes_in(folder)), folder)
        return folder
    listing = found.listing()
    root = found.snapshot(listing.commit)
    folder = inside(root, prefix) if prefix else root
    names = [name.removeprefix(prefix) for name in listing.sizes if name.startswith(prefix)]
    if prefix and not names:
        raise CheckpointError("The checkpoint has no such subfolder.", where=found.where, got=subfolder)
    if not found.reason:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
    first = [name for name in files if name in set(names)]
    _fetch(found, listing, [prefix + name for name in first], bar=False)
    if choose is not None:
        _fetch(found, listing, [prefix + name for name in choose(names, folder) if name not in first])
    if not found.reason:
        found.remember(listing.commit)
    return folder


def fetch_pipeline(
    source: PathLike,
    *,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    passed: Collection[str] = (),
    dtype: Any = None,
    trust_remote_code: bool = False,
    custom_pipeline: str | None = None,
    **hub: Any,
) -> tuple[Path, ModelIndex, PipelinePlan]:
    """The local folder of a pipeline, with the files that are needed of a hub repository, its index, and the plan that says which they are.

    `passed` are components that the caller brings: their files are neither fetched nor planned; `hub` as for `locate`.
    """
    found: list[tuple[ModelIndex, PipelinePlan]] = []

    def choose(names: list[str], folder: Path) -> list[str]:
        index = ModelIndex.read(folder)
        options: dict[str, Any] = {"variant": variant, "use_safetensors": use_safetensors, "passed": passed, "dtype": dtype}
        options |= {"trust_remote_code": trust_remote_code, "custom_pipeline": custom_pipeline, "ignore_files": index.ignored}
        found[:] = [(index, plan_pipeline(names, index, **options))]
        return list(found[0][1].files)

    folder = locate(source, files=[INDEX_NAME], choose=choose, **hub)
    index, plan = found[0]
    for note in plan.notes:
        logger.warning("%s: %s", os.fspath(source), note)
    return folder, index, plan


def listing_of(path_or_id: PathLike, **hub: Any) -> Listing:
    """The files of a local folder (two levels of it) or of a hub repository, of which nothing is downloaded."""
    found = _find(path_or_id, hub)
    return Listing(*commit_of(found), sizes_in(found)) if isinstance(found, Path) else found.listing()


def read_range(repo_id: str, name: str, start: int, length: int, *, revision: str | None = None, **hub: Any) -> bytes:
    """`length` bytes of a file of a hub repository from `start` on, from the cache if it is there.

    Raises CheckpointError where the file is shorter, or the server does not answer with just this range; no more of it is read then.
    """
    if start < 0 or length <= 0:
        raise InputError("Not a range of bytes.", where=name, got=f"start={start}, length={length}", expected="start >= 0, length > 0")
    repo = Repository(repo_id, revision, **hub)
    known = repo.cached()
    if known is None or not repo.has(known, name):
        inside(repo.folder, name)
        return repo.remote().span(repo.url(repo.revision, name), start, length)
    with open_regular(inside(repo.snapshot(known.commit), name)) as file:
        file.seek(start)
        content = file.read(min(length, max(os.fstat(file.fileno()).st_size - start, 0)))
    if len(content) != length:
        raise CheckpointError("A file that is too short.", where=name, got=f"{len(content)} bytes from {start} on", expected=f"{length}")
    return content


def newer_commit(folder_or_id: PathLike, **hub: Any) -> str | None:
    """The hub's commit of a revision ("main" by default), None if it is the one in the cache, or the one that the folder is a snapshot of.

    Takes one request, none for a revision that is a commit. Raises CheckpointError if the hub does not answer or is not to be asked (offline),
    InputError for a folder that is no snapshot.
    """
    found = _find(folder_or_id, hub)
    if isinstance(found, Path):
        repo_id, have = commit_of(found)
        if not repo_id:
            raise InputError(
                "The folder does not say which repository it comes from.", where=found, expected="a hub id, or a snapshot in the cache"
            )
        found = Repository(repo_id, **hub)
    else:
        known = found.cached()
        have = known.commit if known else ""
    commit = found.revision if found.pinned else found.ask(files=False)[0].commit
    return commit if commit != have else None


def push_folder(
    folder: PathLike, repo_id: str, *, private: bool | None = None, token: str | bool | None = None, commit_message: str | None = None,
    revision: str | None = None, create_pr: bool = False, endpoint: str | None = None,
) -> str:  # fmt: skip
    """Upload a folder as one commit to a repository of the hub, which is made if there is none. Returns the commit's address.

    Args:
        private: whether a new repository is; None is the account's default.
        revision: a branch, made if there is none; "main" by default.
        create_pr: leave the branch as it is and open a pull request.
    Raises:
        CheckpointError: there is no such folder, or the hub does not take it; InputError for an id or option that cannot be used.
    """
    from huggingface_hub import HfApi
    from .remote import cause, refusal

    if not Path(folder).is_dir():
        raise CheckpointError("There is no such folder to upload.", where=folder)
    if not _ID.fullmatch(repo_id):
        raise InputError("Not a hub id.", where="repo_id", got=repo_id[:100], expected="such as org/name")
    repo = Repository(repo_id, revision, token=token, endpoint=endpoint)
    if repo.offline:
        raise CheckpointError("Nothing can be uploaded while offline.", where=repo_id, fix="Unset HF_HUB_OFFLINE.")
    try:
        api = HfApi(repo.endpoint, token=False if token is None and not repo.implicit else token, library_name="darkroom")
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision and not create_pr and revision != "main" and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        message = commit_message or "Upload with darkroom"
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=os.fspath(folder),
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            ignore_patterns=["*.tmp-*"],
        )
        return str(done.commit_url)
    except DarkroomError:
        raise
    except Exception as error:  # its text is left out: it may hold a token
        answer, where = getattr(error, "response", None), f"{repo_id}, revision {revision or 'main'}"
        if answer is not None:
            known = refusal(answer.status_code, answer.headers.get("X-Error-Code"), where)
            raise CheckpointError(f"The folder could not be uploaded. {known.what}", where=where, got=known.got, fix=known.fix) from None
        raise CheckpointError(f"The folder could not be uploaded: {cause(error)}.", where=where, got=type(error).__name__) from None
