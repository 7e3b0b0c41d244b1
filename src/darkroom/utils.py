"""Pictures from files and the network, and sheets of pictures."""

import contextlib
import http.client
import io
import ipaddress
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib import request
from PIL import Image, ImageOps
from ._public import lazy
from .errors import InputError

if TYPE_CHECKING:
    from .video import export_to_gif, export_to_video, load_video

__all__ = ["export_to_gif", "export_to_video", "load_image", "load_video", "make_image_grid", "without_secrets"]

Source = str | os.PathLike[str] | Image.Image
MAX_PIXELS = 178_956_970  # twice Image.MAX_IMAGE_PIXELS as PIL ships it: where PIL refuses too
MAX_BYTES, TIMEOUT = 64 << 20, 30.0  # of a download; seconds, for each answer of the server and for the whole body
WEB_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # PIL runs Ghostscript for EPS
__getattr__, _ = lazy("darkroom", dict.fromkeys(("export_to_gif", "export_to_video", "load_video"), "video"))  # it imports this file
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def load_image(
    image: Source, convert_method: Callable[[Image.Image], Image.Image] | None = None, *, allow_private: bool = False
) -> Image.Image:
    """A file's path, an http or https URL (at most 64 MiB) or a PIL image as RGB, or as `convert_method` gives it, upright as its EXIF data say.
    `allow_private` also follows URLs to addresses that are not public (loopback, local networks), and the environment's proxies. Without it, every
    address that the host and its redirects resolve to has to be public. InputError is raised for no such file, an address that is not allowed,
    a failed or too large download, no picture and over 178 million pixels.
    """
    if not isinstance(image, (str, os.PathLike, Image.Image)):
        raise InputError("No picture.", where="image", got=type(image).__name__, expected="path, URL or PIL image")
    name = "image" if isinstance(image, Image.Image) else os.path.expanduser(image)
    remote = name.lower().startswith(("http://", "https://"))
    where = without_secrets(name) if remote else name
    try:
        Image.init()  # fills Image.OPEN
        formats = [known for known in WEB_FORMATS if known in Image.OPEN] if remote else None
        source = io.BytesIO(_download(name, where, allow_private)) if remote else name
        opened = image if isinstance(image, Image.Image) else Image.open(source, formats=formats)
        if opened.width * opened.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{opened.width}x{opened.height} pixels")
        upright = ImageOps.exif_transpose(opened)  # decodes
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything from a decoder
        detail = f": {error}" if isinstance(error, OSError) or not remote else ""  # the others may repeat the URL with its secrets
        expected = f"a file's path, or a URL with http:// or https://, of a picture of at most {MAX_PIXELS} pixels"
        raise InputError("The picture cannot be read.", where=where, got=type(error).__name__ + detail, expected=expected) from None
    return convert_method(upright) if convert_method else upright.convert("RGB")


def make_image_grid(images: Sequence[Image.Image], rows: int, cols: int, resize: int | None = None) -> Image.Image:
    """The pictures row by row on one RGB sheet whose cells have the first one's size; `resize` makes them squares of so many pixels."""
    if len(images) != rows * cols or not images:
        raise InputError("The grid does not fit.", where="images", got=len(images), expected=f"{rows} x {cols}")
    width, height = (resize, resize) if resize else images[0].size
    grid = Image.new("RGB", (cols * width, rows * height))
    for i, image in enumerate(images):
        grid.paste(image.resize((width, height)) if resize else image, (i % cols * width, i // cols * height))
    return grid


def without_secrets(url: str) -> str:
    """A URL without user name, password and query, which may be secret."""
    return re.sub(r"(?<=//)[^/]*@|[?#].*", "", url)


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):  # an IPv4 address may travel inside
        ip = ip.ipv4_mapped or ip.sixtofour or (ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip)
    return ip.is_global and not ip.is_multicast


class _Http(http.client.HTTPConnection):
    def connect(self) -> None:
        """Connect to one of the very addresses that were checked: a name may resolve to another one a moment later."""
        found = dict.fromkeys(info[4][0] for info in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM))
        if refused := [address for address in found if not _is_public(address)]:
            raise InputError("This address is not public.", where=self.host, got=refused[0], fix="Pass allow_private=True if you trust it.")
        for address in found:
            with contextlib.suppress(OSError):
                self.sock = socket.create_connection((address, self.port), self.timeout)
                return
        raise ConnectionError(f"no answer from {self.host}")


class _Https(http.client.HTTPSConnection, _Http):
    """Its `connect` wraps the socket of the next class in line, which is `_Http`."""


class _PublicHandler(request.HTTPHandler, request.HTTPSHandler):
    def http_open(self, asked: request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Https if asked.type == "https" else _Http, asked)

    https_open = http_open


def _download(url: str, where: str, allow_private: bool, times: int = 1) -> bytearray:
    """The body; `times` the bytes and seconds that a picture may take."""
    transport = [request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler] if allow_private else [_PublicHandler]
    answers = request.UnknownHandler, request.HTTPRedirectHandler, request.HTTPDefaultErrorHandler, request.HTTPErrorProcessor
    opener, data = request.OpenerDirector(), bytearray()  # not build_opener: that one also speaks ftp, file and data
    for handler in (*transport, *answers):
        opener.add_handler(handler())
    limit, seconds = times * MAX_BYTES, times * TIMEOUT
    deadline = time.monotonic() + seconds
    with opener.open(request.Request(url, headers={"User-Agent": "darkroom"}), timeout=TIMEOUT) as response:
        while chunk := response.read1(1 << 16):
            data += chunk
            if len(data) > limit or time.monotonic() > deadline:
                raise InputError("Too large or slow.", where=where, expected=f"at most {limit} bytes in {seconds:g} seconds")
    return data
