"""A hub on loopback: a real HTTP server that speaks its API, with a storage on a port of its own, and faults on demand.

Small files come after a redirect to another path, large ones (`.safetensors`, `.bin`, as Git LFS has them) after one to the storage, which is another
host as far as HTTP goes.
"""

from __future__ import annotations
import base64
import gzip
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Fault:
    """What goes wrong for requests whose path matches: `times` of them, after `after` that go well."""

    path: str
    kind: str  # see `Handler.body` and `Handler.do_GET`
    value: Any = None
    times: float = float("inf")
    after: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Repo:
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None  # what opens it; anybody may if None
    gated: bool = False
    private: bool | None = None


@dataclass(frozen=True)
class Request:
    host: str  # "hub" or "storage"
    method: str
    path: str
    headers: dict[str, str]

    @property
    def metadata(self) -> bool:
        return self.path.startswith("/api/models/")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *args: object) -> None:
        pass

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def begin(self) -> tuple[str, Fault | None]:
        """The path without query, unquoted; and the fault that befalls this request."""
        path = unquote(urlsplit(self.path).path)  # of a whole address too, as proxies are sent it
        host = "storage" if self.server is self.hub.storage else "hub"
        with self.hub.lock:
            self.hub.log.append(Request(host, self.command, path, {k.lower(): v for k, v in self.headers.items()}))
            for fault in self.hub.faults:
                if re.search(fault.path, path) and fault.times > 0:
                    if fault.after > 0:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return path, fault
        return path, None

    def answer(self, status: int, body: bytes = b"", kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str = "no") -> None:
        echo = self.headers.get("Authorization", "")  # a server that repeats the token
        self.answer(status, json.dumps({"error": f"{message} {echo}"}).encode(), X_Error_Code=code, X_Error_Message=f"{message} {echo}")

    def hang_up(self) -> None:
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def body(self, content: bytes, fault: Fault | None, **headers: str) -> None:
        """A file or the range of it that is asked for, or what a fault makes of it."""
        kind, value = (fault.kind, fault.value) if fault else ("", None)
        if kind == "swap":
            content = value
        start, end, status = 0, len(content), 200
        if (match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))) and kind != "no ranges":
            start, end, status = int(match[1]), min(int(match[2] or end - 1) + 1, end), 206
            if kind == "wrong range":
                start = max(start - 1, 0)
            if start >= end:
                return self.answer(416, Content_Range=f"bytes */{len(content)}")
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        part = content[start:end]
        if kind == "gzip":
            part = gzip.compress(part)
            headers["Content_Encoding"] = "gzip"
        length = len(part) + (value if kind == "lie" else 0)
        self.send_response(status)
        fixed = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", "Content-Length": str(length)}
        for key, text in {**fixed, **headers}.items():
            if not (kind == "no length" and key == "Content-Length"):
                self.send_header(key.replace("_", "-"), text)
        if kind in ("no length", "lie"):
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        step = value if kind == "slow" else 1 << 16
        for i in range(0, len(part), step):
            if kind == "cut" and i + step > value:
                self.sent(part[i:value])
                return self.hang_up()
            if not self.sent(part[i : i + step]):
                return
            if kind == "slow":
                time.sleep(0.02)

    def sent(self, chunk: bytes) -> bool:
        with self.hub.lock:
            self.hub.bytes_sent += len(chunk)  # before who reads them can look
        try:
            self.wfile.write(chunk)
        except OSError:
            self.close_connection = True
            return False
        return True

    def repo(self, repo_id: str) -> Repo | None:
        """The repository if the request may see it; else it is refused."""
        repo, given = self.hub.repos.get(repo_id), self.headers.get("Authorization")
        if given is not None and given != f"Bearer {self.hub.token}":
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repo is None or (repo.token and given is None and not repo.gated):
            self.refuse(404 if given else 401, "RepoNotFound", "Repository not found")
        elif repo.gated and given is None:
            self.refuse(401, "GatedRepo", "Access to model is restricted")
        elif repo.gated and repo.token != self.hub.token:
            self.refuse(403, "GatedRepo", "Access to model is restricted")
        else:
            return repo
        return None

    def do_GET(self) -> None:
        with self.hub.lock:
            self.hub.at_once += 1
            self.hub.most_at_once = max(self.hub.most_at_once, self.hub.at_once)
        try:
            path, fault = self.begin()
            match fault.kind if fault else None:
                case "status":
                    code = {"X-Error-Code": fault.headers.get("X-Error-Code", "")} | dict(fault.headers)
                    self.answer(fault.value, json.dumps({"error": self.headers.get("Authorization", "")}).encode(), **code)
                case "html":
                    self.answer(200, b"<html>Please log in to the network</html>", "text/html; charset=utf-8")
                case "loop":
                    self.answer(302, Location=self.path)
                case "hang up":
                    self.hang_up()
                case "wait":
                    time.sleep(fault.value)
                    self.route(path, None)
                case "junk":
                    self.answer(200, fault.value)
                case _:
                    self.route(path, fault)
        except ConnectionError:
            self.close_connection = True
        finally:
            with self.hub.lock:
                self.hub.at_once -= 1

    do_HEAD = do_GET

    def route(self, path: str, fault: Fault | None) -> None:
        if match := re.fullmatch(r"/storage/(\w+)", path):
            content = self.hub.objects.get(match[1])
            return self.answer(404) if content is None else self.body(content, fault, ETag=f'"{match[1][:32]}"')
        match = re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)/(tree|revision)/(.+)|/api/models/([^/]+(?:/[^/]+)?)", path)
        if match:
            return self.metadata(match[1] or match[4], match[2] or "revision", match[3] or "main")
        match = re.fullmatch(r"/api/resolve-cache/models/(.+?)/([0-9a-f]{40})/(.+)|/(.+?)/resolve/([^/]+)/(.+)", path)
        if not match:
            return self.answer(404)
        repo_id, revision, name = match[1] or match[4], match[2] or match[5], match[3] or match[6]
        repo = self.repo(repo_id)
        if repo is None:
            return None
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self.refuse(404, "RevisionNotFound")
        content = repo.commits[commit].get(name)
        if content is None:
            return self.refuse(404, "EntryNotFound")
        about = {"X_Repo_Commit": commit, "ETag": f'"{git_sha1(content)}"'}
        if match[1]:
            return self.body(content, fault, **about)
        if is_large(name):
            sha256 = hashlib.sha256(content).hexdigest()
            about |= {"X_Linked_Size": str(len(content)), "X_Linked_Etag": f'"{sha256}"'}
            return self.answer(302, Location=f"{self.hub.storage_url}/storage/{sha256}?signature=canary-signature", **about)
        self.answer(307, Location=f"/api/resolve-cache/models/{repo_id}/{commit}/{name}", X_Linked_Size=str(len(content)), **about)

    def metadata(self, repo_id: str, what: str, revision: str) -> None:
        repo = self.repo(repo_id)
        if repo is None:
            return None
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self.refuse(404, "RevisionNotFound")
        siblings, tree = [], []
        for name, content in repo.commits[commit].items():
            lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134} if is_large(name) else None
            item: dict[str, Any] = {"rfilename": name}
            if "blobs=true" in self.path and not self.hub.mirror:
                item |= {"size": len(content), "blobId": git_sha1(content), **({"lfs": lfs} if lfs else {})}
            siblings.append(item)
            oid = {"lfs": {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 134}} if lfs else {}
            tree.append({"type": "file", "path": name, "size": len(content), "oid": git_sha1(content), **oid})
        if what == "tree":
            return self.answer(200, json.dumps(tree).encode())
        self.answer(200, json.dumps({"id": repo_id, "sha": commit, "private": False, "siblings": siblings}).encode())
        if self.hub.restless:
            self.hub.commit(repo_id, {n: c[::-1] if is_large(n) else c + b" " for n, c in repo.commits[commit].items()})

    def do_POST(self) -> None:
        path, fault = self.begin()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault:
            return self.answer(fault.value, b"{}", **dict(fault.headers))
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            content = json.loads(body)
            repo_id = f"{content['organization'] or 'me'}/{content['name']}"
            url = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}
            if repo_id in self.hub.repos:
                return self.answer(409, json.dumps(url).encode())
            self.hub.add(repo_id, {})
            self.hub.repos[repo_id].private = content.get("private") or content.get("visibility") == "private"
            return self.answer(200, json.dumps(url).encode())
        if match := re.fullmatch(r"/api/models/(.+)/branch/(.+)", path):
            repo = self.hub.repos[match[1]]
            repo.refs[match[2]] = repo.refs["main"]
            return self.answer(200, b"{}")
        if match := re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path):
            asked = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "lfs" if is_large(f["path"]) else "regular", "shouldIgnore": False} for f in asked]
            return self.answer(200, json.dumps({"files": modes}).encode())
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.hub.storage_url}/storage/{o['oid']}"}}} for o in json.loads(body)["objects"]
            ]
            return self.answer(200, json.dumps({"transfer": "basic", "objects": objects}).encode(), "application/vnd.git-lfs+json")
        if match := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            return self.take(match[1], match[2], [json.loads(line) for line in body.splitlines()], "create_pr=1" in self.path)
        return self.answer(200, b"{}")  # validation of the README, and such

    def take(self, repo_id: str, revision: str, lines: list[dict[str, Any]], pull_request: bool) -> None:
        repo = self.hub.repos[repo_id]
        files = dict(repo.commits[repo.refs[revision]])
        for line in lines:
            match line:
                case {"key": "file", "value": {"path": name, "content": content}}:
                    files[name] = base64.b64decode(content)
                case {"key": "lfsFile", "value": {"path": name, "oid": oid}}:
                    files[name] = self.hub.objects[oid]
                case {"key": "header", "value": {"summary": summary}}:
                    self.hub.messages.append(summary)
        commit = self.hub.commit(repo_id, files, "refs/pr/1" if pull_request else revision)
        done = {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{commit}", "commitOid": commit, "success": True}
        if pull_request:
            done["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/1"
        self.answer(200, json.dumps(done).encode())

    def do_PUT(self) -> None:
        path, _ = self.begin()
        self.hub.objects[path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200)


class HubServer:
    """`with HubServer() as hub`: runs until the end of the block."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # of the storage, by SHA-256
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.messages: list[str] = []  # of commits
        self.token = "hf_canarytoken"
        self.bytes_sent = self.at_once = self.most_at_once = 0
        self.restless = False  # whether "main" moves on after each listing
        self.mirror = False  # whether it leaves sizes and digests out of its listings
        self.servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
        for server in self.servers:
            server.daemon_threads, server.hub = True, self  # type: ignore[attr-defined]
        self.main, self.storage = self.servers
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)

    def __enter__(self) -> HubServer:
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def add(self, repo_id: str, files: Files, **options: Any) -> str:
        """A new repository; returns its commit."""
        self.repos[repo_id] = Repo(**options)
        return self.commit(repo_id, files)

    def commit(self, repo_id: str, files: Files, revision: str = "main") -> str:
        with self.lock:
            repo = self.repos[repo_id]
            commit = hashlib.sha1(f"{repo_id} {len(repo.commits)}".encode()).hexdigest()
            repo.commits[commit], repo.refs[revision] = files, commit
            self.objects |= {hashlib.sha256(c).hexdigest(): c for name, c in files.items() if is_large(name)}
            return commit

    def fault(self, path: str, kind: str, value: Any = None, **options: Any) -> None:
        self.faults.append(Fault(path, kind, value, **options))

    def reset(self) -> None:
        """Forget faults and what was asked."""
        self.faults, self.log, self.bytes_sent, self.most_at_once = [], [], 0, 0

    def asked(self, pattern: str = "") -> list[Request]:
        return [request for request in self.log if re.search(pattern, request.path)]
