"""One repository of the hub: its commits and files, on the network and in the cache, which is huggingface_hub's, file for file."""

from __future__ import annotations
import contextlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from ..errors import CheckpointError, DarkroomError, InputError
from .atomic import write_text_atomic
from .files import PathLike, inside, is_safe, parse_json, read_json, size_of
from .remote import Remote, Stopped, cause, refusal

__all__ = ["HUB_OPTIONS", "Listing", "Repository", "commit_of", "sizes_in"]

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "proxies", "endpoint")
ANSWER_LIMIT = 64 * 2**20  # bytes of a listing
logger = logging.getLogger("darkroom")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_ENDPOINT = re.compile(r"https?://[^\s/?#@]+(/[^\s?#@]*)?")
_OFFLINE = "Fetch it once while online: unset HF_HUB_OFFLINE, leave local_files_only out."


@dataclass(frozen=True)
class Listing:
    """The files of one commit, or of a local folder, whose `repo_id` and `commit` are "" where it is no snapshot of a hub."""

    repo_id: str
    commit: str
    sizes: dict[str, int]  # name -> bytes, -1 where the hub does not say
    digests: dict[str, str] = field(default_factory=dict, repr=False)  # name -> SHA-256 (large files) or git's SHA-1, where known


class Repository:
    """One repository of a hub, in the cache and on the network. Raises InputError for options that cannot be used."""

    def __init__(
        self,
        repo_id: str,
        revision: str | None = None,
        cache_dir: PathLike | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        proxies: Mapping[str, str] | None = None,
        endpoint: str | None = None,
        **unknown: object,
    ):
        from huggingface_hub import constants

        if unknown:
            raise InputError("No such option of the hub.", where=repo_id, got=", ".join(sorted(unknown)), expected=", ".join(HUB_OPTIONS))
        if revision is not None and not is_safe(revision):
            raise InputError("Not a revision.", where="revision", got=revision, expected="a branch, a tag or a commit")
        if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
            raise InputError("Not the address of a hub.", where="endpoint", expected="such as https://host")
        if not (isinstance(token, bool) or token is None or (isinstance(token, str) and re.fullmatch("[!-~]+", token))):
            raise InputError("Not a token.", where="token", got=f"a {type(token).__name__} (not shown)", expected="a string, True or False")
        if proxies is not None and not (isinstance(proxies, Mapping) and all(isinstance(v, str) for v in (*proxies, *proxies.values()))):
            raise InputError("Not usable as proxies.", where="proxies", expected='such as {"https": "http://host:port"}')
        self.id, self.asked, self.revision = repo_id, revision, revision or constants.DEFAULT_REVISION
        self.where = f"{repo_id}, revision {self.revision}"
        self.cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().absolute()
        self.folder = self.cache / f"models--{repo_id.replace('/', '--')}"
        self.offline = bool(local_files_only or constants.HF_HUB_OFFLINE)
        self.pinned = bool(_COMMIT.fullmatch(self.revision))
        self.force, self.token, self.proxies = bool(force_download), token, proxies
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.implicit = self.endpoint == constants.ENDPOINT.rstrip("/") and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN
        self.reason = "The hub is not asked: offline." if self.offline else ""  # why it is not asked, "" if it is
        if self.force and self.offline:
            raise InputError("There is no download without the hub.", where="force_download", got="offline, or local_files_only")

    def remote(self) -> Remote:
        """How to ask the hub. The token of this machine goes to the hub of this machine only."""
        from huggingface_hub import get_token

        if self.offline:
            raise CheckpointError("The hub is not asked: offline.", where=self.where, fix=_OFFLINE)
        token = self.token if isinstance(self.token, str) else None
        if self.token is True or (self.token is None and self.implicit):
            token = get_token()
        if self.token is True and token is None:
            raise InputError("There is no token on this machine.", where="token", got=True, fix="Log in: hf auth login")
        return Remote(token, where=self.where, proxies=self.proxies)

    def url(self, commit: str, name: str) -> str:
        return f"{self.endpoint}/{self.id}/resolve/{quote(commit, safe='')}/{quote(name)}"

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def ask(self, hurry: bool = False, files: bool = True) -> tuple[Listing, dict[str, Any]]:
        """The commit and its files in one request, without many retries in a `hurry`; and the entries for the cache."""
        remote = self.remote()
        revision = f"/revision/{quote(self.revision, safe='')}" if self.asked else ""
        url = f"{self.endpoint}/api/models/{self.id}{revision}{'?blobs=true' if files else ''}"
        content = parse_json(remote.json(url, ANSWER_LIMIT, () if hurry else None), f"{self.where}, the hub's answer")
        commit, siblings = content.get("sha"), content.get("siblings") or []
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit) or not isinstance(siblings, list):
            raise CheckpointError("The hub's answer names no commit.", where=self.where, expected='{"sha": ..., "siblings": [...]}')
        entries: dict[str, Any] = {}
        for item in siblings:
            match item:
                case {"rfilename": str(name), "size": int(size), "blobId": str(blob), "lfs": {"sha256": str(sha256)}}:
                    entries[name] = {"size": size, "blob_id": blob, "lfs_sha256": sha256, "lfs_size": size}
                case {"rfilename": str(name), "size": int(size), "blobId": str(blob)}:
                    entries[name] = {"size": size, "blob_id": blob}
                case {"rfilename": str(name)}:
                    entries[name] = {}
        return _listing(self.id, commit, entries), entries

    def cached(self) -> Listing | None:
        """What the cache knows of the revision: all files of its commit, or those that are there where it has no list; None without a snapshot."""
        commit = self.revision
        if not self.pinned:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                commit = (self.folder / "refs" / self.revision).read_text(encoding="ascii").strip()
        root = self.snapshot(commit)
        if not _COMMIT.fullmatch(commit) or not root.is_dir():
            return None
        with contextlib.suppress(CheckpointError):
            match read_json(self.folder / "trees" / f"{commit}.json"):
                case {"format_version": 1, "files": {**entries}}:
                    return _listing(self.id, commit, entries)
        return Listing(self.id, commit, sizes_in(root, deep=True))

    def listing(self) -> Listing:
        """The files of the revision, by one request at most: none for a commit whose list is in the cache."""
        known = None if self.force else self.cached()
        if known is not None and (self.offline or (known.digests and self.pinned)):
            return known
        try:
            if self.offline:
                fix = f"{_OFFLINE} The cache is {self.cache}."
                raise CheckpointError("The cache does not hold this revision, and the hub is not asked.", where=self.where, fix=fix)
            listing, entries = self.ask(hurry=known is not None)
        except CheckpointError as error:
            if known is None:
                raise
            self.reason = error.what
            logger.warning("%s: %s Using what was fetched before, commit %s.", self.where, error.what, known.commit)
            return known
        path = self.folder / "trees" / f"{listing.commit}.json"
        if all(entries.values()) and not path.exists():
            with contextlib.suppress(OSError):  # the cache may be read-only, or somebody else's
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text_atomic(path, json.dumps({"format_version": 1, "files": entries}))
        return listing

    def has(self, listing: Listing, name: str) -> bool:
        there, size = size_of(self.snapshot(listing.commit) / name), listing.sizes.get(name, -1)
        return there >= 0 and size in (there, -1)

    def remember(self, commit: str) -> None:
        """The revision means this commit from now on. Said once the files are there: until then the one before serves those who are offline."""
        path = self.folder / "refs" / self.revision
        with contextlib.suppress(OSError):
            if not self.pinned and (not path.is_file() or path.read_text(encoding="ascii") != commit):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_text_atomic(path, commit)

    def bring(self, remote: Remote, listing: Listing, names: list[str], advance: Callable[[int], None]) -> None:
        """Download one file, which has all these names, and show it in the snapshot."""
        from huggingface_hub import constants, hf_hub_download
        from .download import check_digest, download

        commit, size, digest = listing.commit, listing.sizes[names[0]], listing.digests.get(names[0], "")
        try:
            if not digest or not 0 <= size <= constants.MAX_HTTP_DOWNLOAD_SIZE:  # a mirror that lists little; beyond HTTP
                options: dict[str, Any] = {"token": remote.token or False, "endpoint": self.endpoint, "force_download": self.force}
                for name in names:
                    check_digest(Path(hf_hub_download(self.id, name, revision=commit, cache_dir=self.cache, **options)), self.where)
                return advance(max(size, 0))
            blob = self.folder / "blobs" / digest
            lock = self.cache / ".locks" / self.folder.name / f"{digest}.lock"
            for path in (blob, lock):
                path.parent.mkdir(parents=True, exist_ok=True)
            download(remote, self.url(commit, names[0]), blob, lock, size=size, digest=digest, fresh=self.force, advance=advance)
            for name in names:
                self._link(blob, commit, name)
        except (DarkroomError, Stopped):
            raise
        except Exception as error:  # its text is left out: it may hold a token
            answer = getattr(error, "response", None)
            if answer is not None:
                raise refusal(answer.status_code, answer.headers.get("X-Error-Code"), self.where) from None
            what = f"{names[0]} could not be fetched: {(isinstance(error, OSError) and error.strerror) or cause(error)}."
            raise CheckpointError(what, where=self.where, got=type(error).__name__) from None

    def _link(self, blob: Path, commit: str, name: str) -> None:
        """Let a file of the snapshot appear at once: a relative link where there are links, else a copy."""
        from huggingface_hub import constants

        path = inside(self.snapshot(commit), name)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name[:100]}.{secrets.token_hex(4)}.tmp")
        try:
            if constants.HF_HUB_DISABLE_SYMLINKS:
                raise OSError
            new.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:
            shutil.copyfile(blob, new)
        os.replace(new, path)


def _listing(repo_id: str, commit: str, entries: Mapping[Any, Any]) -> Listing:
    known = {name: entry for name, entry in entries.items() if is_safe(name) and isinstance(entry, dict)}
    sizes = {name: size if type(size := entry.get("size")) is int and size >= 0 else -1 for name, entry in known.items()}
    digests = {name: str(entry.get("lfs_sha256") or entry.get("blob_id")) for name, entry in known.items()}
    return Listing(repo_id, commit, sizes, {name: digest for name, digest in digests.items() if _DIGEST.fullmatch(digest)})


def sizes_in(folder: Path, deep: bool = False) -> dict[str, int]:
    """The files of a folder and of the folders in it, or all below it if `deep`: name relative to it, with "/" -> bytes."""
    found = folder.rglob("*") if deep else (*folder.glob("*"), *folder.glob("*/*"))
    return {path.relative_to(folder).as_posix(): max(size_of(path), 0) for path in sorted(found) if not path.is_dir()}


def commit_of(folder: Path) -> tuple[str, str]:
    """The repository and commit that a folder is a snapshot of, or lies in one; ("", "") for any other folder."""
    parts = folder.absolute().parts
    for repo, kind, commit in zip(parts, parts[1:], parts[2:]):
        if kind == "snapshots" and repo.startswith("models--") and _COMMIT.fullmatch(commit):
            return repo.removeprefix("models--").replace("--", "/"), commit
    return "", ""
