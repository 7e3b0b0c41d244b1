"""Reading pictures from files and the network, and small helpers around results."""

from __future__ import annotations

import http.client
import io
import ipaddress
import os
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from .errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["load_image", "make_image_grid", "numpy_to_pil", "pt_to_pil"]

MAX_PIXELS = 178_956_970  # twice Image.MAX_IMAGE_PIXELS as PIL ships it: where PIL refuses too
WEB_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # PIL runs Ghostscript for EPS
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def load_image(
    source: str | os.PathLike[str] | Image.Image,
    convert: Callable[[Image.Image], Image.Image] | None = None,
    *,
    allow_private: bool = False,
    max_bytes: int = 64 << 20,
    timeout: float = 30.0,
) -> Image.Image:
    """A picture as RGB, turned upright as its EXIF data say.

    Args:
        source: a path, an http or https URL, or a PIL image.
        convert: used instead of the conversion to RGB.
        allow_private: also follow URLs to addresses that are not public (loopback, local networks), and the environment's proxies.
            Without it, every address that the host and its redirects resolve to has to be public.
        max_bytes: the limit of a download.
        timeout: the limit in seconds for each answer of the server and for the whole body.
    Raises:
        InputError: no such file, an address that is not allowed, a failed or too large download, no picture, over 178 million pixels.
    """
    formats, data = None, source
    if isinstance(source, Image.Image):
        where = "PIL image"
    elif not isinstance(source, (str, os.PathLike)):
        raise InputError("No picture.", where="source", got=type(source).__name__, expected="path, URL or PIL image")
    elif (where := os.fspath(source)).lower().startswith(("http://", "https://")):
        where = re.sub(r"(?<=//)[^/]*@|[?#].*", "", where)  # user name, password and query may be secret
        data = io.BytesIO(_download(os.fspath(source), where, allow_private, max_bytes, timeout))
        Image.init()
        formats = [name for name in WEB_FORMATS if name in Image.OPEN]
    elif not os.path.isfile(data := os.path.expanduser(where)):
        raise InputError("No such file.", where=where, expected="a file's path, or a URL with http:// or https://")
    try:
        image = source if isinstance(source, Image.Image) else Image.open(data, formats=formats)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
        upright = ImageOps.exif_transpose(image)  # decodes
    except Image.DecompressionBombError as error:
        raise InputError("It is too large.", where=where, got=str(error), expected=f"<= {MAX_PIXELS} pixels") from None
    except Exception as error:  # a damaged file can raise nearly anything from a decoder
        raise InputError("The picture cannot be read.", where=where, got=f"{type(error).__name__}: {error}") from error
    return convert(upright) if convert else upright.convert("RGB")


def make_image_grid(images: Sequence[Image.Image], rows: int, cols: int, resize: int | None = None) -> Image.Image:
    """The pictures row by row on one RGB sheet whose cells have the first one's size; `resize` makes them squares of so many pixels."""
    if len(images) != rows * cols or not images:
        raise InputError("The grid does not fit.", where="images", got=len(images), expected=f"{rows} x {cols}")
    if resize is not None:
        images = [image.resize((resize, resize)) for image in images]
    width, height = images[0].size
    grid = Image.new("RGB", (cols * width, rows * height))
    for i, image in enumerate(images):
        grid.paste(image, (i % cols * width, i // cols * height))
    return grid


def pt_to_pil(images: Tensor) -> list[Image.Image]:
    """(B, C, H, W) in [-1, 1] as PIL images."""
    from .core.media import tensor_to_images

    return tensor_to_images(images)


def numpy_to_pil(images: np.ndarray) -> list[Image.Image]:
    """(B, H, W, C) or (H, W, C) in [0, 1] as PIL images."""
    from .core.media import VaeImageProcessor

    return VaeImageProcessor.numpy_to_pil(images)


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):  # an IPv4 address may travel inside
        low = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        ip = ip.ipv4_mapped or ip.sixtofour or (low if ip in _NAT64 else ip)
    return ip.is_global and not ip.is_multicast


def _dial(host: str, port: int, timeout: float) -> socket.socket:
    """A connection to one of the very addresses that were checked: a name may resolve to another one a moment later."""
    found = list(dict.fromkeys(info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    for address in found:
        if not _is_public(address):
            fix = "Pass allow_private=True if you trust the URL."
            raise InputError("This address is not public.", where=host, got=address, fix=fix)
    error: OSError = OSError(f"no address of {host}")
    for address in found:
        try:
            return socket.create_connection((address, port), timeout)
        except OSError as failed:
            error = failed
    raise error


class _Http(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = _dial(self.host, self.port, self.timeout)


class _Https(_Http):
    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


class _PublicHandler(urllib.request.AbstractHTTPHandler):
    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Http, request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Https, request)


def _download(url: str, where: str, allow_private: bool, max_bytes: int, timeout: float) -> bytes:
    of = urllib.request
    transport = [of.ProxyHandler(), of.HTTPHandler(), of.HTTPSHandler()] if allow_private else [_PublicHandler()]
    answers = of.UnknownHandler(), of.HTTPRedirectHandler(), of.HTTPDefaultErrorHandler(), of.HTTPErrorProcessor()
    opener = of.OpenerDirector()  # not build_opener: that one also speaks ftp, file and data
    for handler in (*transport, *answers):
        opener.add_handler(handler)
    deadline, data = time.monotonic() + timeout, bytearray()
    try:
        with opener.open(of.Request(url, headers={"User-Agent": "darkroom"}), timeout=timeout) as response:
            while chunk := response.read1(1 << 16):
                data += chunk
                if len(data) > max_bytes:
                    raise InputError("The download is too large.", where=where, expected=f"at most {max_bytes} bytes")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not finished after {timeout:g} seconds")
    except InputError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        detail = f": {error}" if isinstance(error, OSError) else ""  # the others may repeat the URL with its secrets
        raise InputError("The download failed.", where=where, got=f"{type(error).__name__}{detail}") from None
    return bytes(data)
