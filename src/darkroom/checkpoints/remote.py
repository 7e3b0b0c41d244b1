"""HTTP as a hub needs it: bounded retries, a token that stays with its host, errors of one sentence."""

from __future__ import annotations
import contextlib
import re
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar
from ..errors import CheckpointError, InputError

__all__ = ["PATIENCE", "Remote", "Stopped", "Transient", "cause", "refusal"]

T = TypeVar("T")
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each further try that brings no progress
PATIENCE = 60.0  # seconds that one request waits in sum
MOST_TRIES = 1000  # of one file, however little each brings
_AGREE = "Accept the conditions on the repository's page, then pass the token of that account as token=."
_SPELLING = "Check the spelling; a private repository needs token=."
_CODES = {  # X-Error-Code: (what, fix)
    "RepoNotFound": ("The hub has no such repository, or it is private.", _SPELLING),
    "RevisionNotFound": ("The repository has no such revision.", "Check the spelling of revision=."),
    "EntryNotFound": ("The repository has no such file.", "Check the spelling, or fetch another revision."),
    "GatedRepo": ("The repository is gated: its owner wants an agreement first.", _AGREE),
}
_STATUSES = {
    401: ("The hub does not accept the token, or wants one.", "Check token=, or log in again with: hf auth login"),
    403: ("The token gives no access to this repository.", "Check the token's permissions, and the conditions on the repository's page."),
    404: ("The hub has no such repository, revision or file.", _SPELLING),
    416: ("The file is shorter than the range of bytes asked for.", "Fetch the checkpoint again."),
    429: ("The files could not be fetched from the hub: it asks for fewer requests.", "Wait a while; with a token the limits are higher."),
}
_OFFLINE = "Check the connection; a local folder works without the hub."
_AGAIN = (408, 429, 500, 502, 503, 504)


class Stopped(Exception):
    """The transfer is given up because another one failed or the user interrupted."""


class Transient(Exception):
    """An answer that another try may mend; the text says what is wrong with it."""


def refusal(status: int, code: str | None, where: object) -> CheckpointError:
    """What a hub's answer with an HTTP status over 399, and the code in its X-Error-Code header, mean."""
    what, fix = f"The files could not be fetched from the hub: it failed with status {status}.", "Try again later."
    what, fix = _CODES.get(code or "", _STATUSES.get(status, (what, fix)))
    return CheckpointError(what, where=where, got=f"status {status}{f', {code}' if code in _CODES else ''}", fix=fix)


def cause(error: BaseException) -> str:
    """What broke, from the kinds of an exception and its causes; their texts may hold addresses with keys in them."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and len(chain) < 10:
        chain.append(following)
        following = following.__cause__ or following.__context__
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if any(isinstance(e, socket.gaierror) for e in chain):
        return "the name of its host cannot be resolved"
    if "TooManyRedirects" in kinds:
        return "its redirects lead in a circle"
    if "TimeoutException" in kinds:
        return "it does not answer in time"
    if kinds & {"ConnectError", "ProxyError"}:
        return "no connection can be made"
    return "the connection broke off" if "TransportError" in kinds else "its answer cannot be understood"


@lru_cache(4)
def _proxied(library: Any, proxies: tuple[tuple[str, str], ...]) -> Any:
    try:
        mounts = {scheme if "://" in scheme else f"{scheme}://": library.HTTPTransport(proxy=proxy) for scheme, proxy in proxies}
        return library.Client(mounts=mounts)
    except Exception:  # its text may hold a password
        raise InputError("Not usable as proxies.", where="proxies", expected='such as {"https": "http://host:port"}') from None


class Remote:
    """One hub, and how to ask it.

    Args:
        token: sent to the host that is asked, not to those that it redirects to; None for none.
        where: what is asked for, for messages.
        proxies: scheme -> address of the proxy.
    """

    def __init__(self, token: str | None, *, where: str, proxies: Mapping[str, str] | None = None):
        from huggingface_hub import __version__
        from huggingface_hub.utils import get_session

        self.where, self.token, self.stop = where, token, threading.Event()
        kinds = type(get_session()).__mro__  # of httpx, or what huggingface_hub has in its place
        library = self._library = next(sys.modules[kind.__module__.partition(".")[0]] for kind in kinds if kind.__name__ == "Client")
        # huggingface_hub closes its session after some faults: it is asked for anew each time
        self._client = (lambda: _proxied(library, tuple(sorted(proxies.items())))) if proxies else get_session
        self._headers = {"User-Agent": f"darkroom; huggingface_hub/{__version__}", "Accept-Encoding": "identity"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"  # httpx takes it off where a redirect leads to another host

    def ask(
        self,
        url: str,
        read: Callable[[Any], T],
        *,
        span: Callable[[], str | None] = lambda: None,
        progress: Callable[[], int] = lambda: 0,
        waits: Sequence[float] | None = None,
    ) -> T:
        """What `read` makes of the answer to a GET, retried after faults that may pass, with `span` as its Range.

        A try after which `progress` is higher than ever does not count. Raises CheckpointError, or Stopped after `stop` was set.
        """
        waits = WAITS if waits is None else waits
        left, patience, best = list(waits), PATIENCE, progress()
        for _ in range(MOST_TRIES):
            if self.stop.is_set():
                raise Stopped
            delay, last = 0.0, False
            failure: CheckpointError
            try:
                headers = {**self._headers, **({"Range": byte_range} if (byte_range := span()) else {})}
                client = self._client()
                request = client.build_request("GET", url, headers=headers, timeout=_timeout())
                answer = client.send(request, stream=True, follow_redirects=True)
                with contextlib.closing(answer):
                    if answer.status_code in (200, 206):
                        return read(answer)
                    failure, delay = refusal(answer.status_code, answer.headers.get("X-Error-Code"), self.where), _retry_after(answer)
                    expired = answer.status_code == 403 and answer.history  # an address of the storage that has grown too old
                    last = answer.status_code not in _AGAIN and not expired
            except (self._library.HTTPError, self._library.InvalidURL) as error:
                what = f"The files could not be fetched from the hub: {cause(error)}."
                failure = CheckpointError(what, where=self.where, got=type(error).__name__, fix=_OFFLINE)
                unreachable = type(error).__name__.startswith("Connect") and len(left) <= len(waits) - 2
                last = unreachable or isinstance(error, self._library.TooManyRedirects)
            except Transient as error:
                what = f"The files could not be fetched from the hub: {error}."
                failure = CheckpointError(what, where=self.where, fix="Try again; a proxy between here and the hub may be the reason.")
            if progress() > best:
                left, patience, best = list(waits), PATIENCE, progress()
                delay = max(delay, 0.01)
            elif left:
                delay = max(delay, left.pop(0))
            else:
                last = True
            patience -= delay
            if last or patience < 0:
                raise failure from None
            self.stop.wait(delay)
        raise failure from None

    def json(self, url: str, limit: int, waits: Sequence[float] | None = None) -> bytes:
        """The body of an answer, a JSON object, of at most `limit` bytes."""

        def read(answer: Any) -> bytes:
            body = bytearray()
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > limit:
                    raise CheckpointError("An answer of the hub that is too long.", where=self.where, expected=f"at most {limit} bytes")
            if not body.lstrip().startswith(b"{"):
                what = "The hub answered with something else than JSON: another server may have answered in its place."
                raise CheckpointError(what, where=self.where, got=answer.headers.get("Content-Type", "no Content-Type")[:80], fix=_OFFLINE)
            return bytes(body)

        return self.ask(url, read, waits=waits)

    def span(self, url: str, start: int, length: int) -> bytes:
        """`length` bytes of a file from `start` on. Raises CheckpointError where the server does not answer with just these."""
        expected = f"bytes {start}-{start + length - 1}"

        def read(answer: Any) -> bytes:
            got = f"status {answer.status_code}, {answer.headers.get('Content-Range', 'no Content-Range')[:80]}"
            plain = answer.headers.get("Content-Encoding", "identity") == "identity"
            if answer.status_code != 206 or not answer.headers.get("Content-Range", "").startswith(f"{expected}/") or not plain:
                what = "The server does not answer with the range of bytes asked for."
                raise CheckpointError(what, where=url, got=got, expected=expected)
            body = bytearray()
            for chunk in answer.iter_raw():
                body += chunk
                if len(body) > length:
                    break
            if len(body) != length:
                raise Transient(f"a range of {length} bytes came with {len(body)}")
            return bytes(body)

        return self.ask(url, read, span=lambda: f"bytes={start}-{start + length - 1}")


def _timeout() -> float:
    from huggingface_hub import constants

    return float(constants.HF_HUB_DOWNLOAD_TIMEOUT)


def _retry_after(answer: Any) -> float:
    """Seconds that a server asks to wait, 0 if it does not."""
    said = answer.headers.get("Retry-After", "").strip()
    limited = re.search(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})", answer.headers.get("RateLimit", ""))
    return float(said) if re.fullmatch(r"\d{1,9}", said) else float(limited[1]) if limited else 0.0
