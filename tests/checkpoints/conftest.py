"""A hub that is this process's hub, and a guard against connections."""

from __future__ import annotations
import socket
from collections.abc import Iterator
from pathlib import Path
import huggingface_hub
import pytest
from hub_server import HubServer
from huggingface_hub import constants
from darkroom.checkpoints import remote


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with the repository org/model, which is this process's hub; short waits."""
    with HubServer() as server:
        settings = {
            "ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}", "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_TOKEN_PATH": str(tmp_path / "token"), "HF_HUB_DISABLE_XET": True,
            "AGENT_HARNESSES_PATH": str(tmp_path / "none"), "HF_STORED_TOKENS_PATH": str(tmp_path / "tokens"),
        }  # fmt: skip
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(remote, "WAITS", (0.01,) * 5)
        yield server
        huggingface_hub.utils.close_session() if hasattr(huggingface_hub.utils, "close_session") else None


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda *a: pytest.fail("a connection"))
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, lambda *a, **k: pytest.fail("a connection"))
