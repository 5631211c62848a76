"""A hub that cannot be reached is asked once, and its libraries go by their caches from then on."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import constants

from vitdistill.errors import UserError
from vitdistill.hub import hub_in_reach
from vitdistill.models.build import build


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("vitdistill.hub.getproxies", dict)
    hub_in_reach.cache_clear()
    yield
    hub_in_reach.cache_clear()


def test_without_a_network_it_is_tried_once_and_not_retried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    asked = []

    def refuse(address: tuple[str, int], timeout: float) -> None:
        asked.append(address)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", refuse)
    for _ in range(2):
        with pytest.raises(UserError, match="must be in timm's cache or downloadable"):
            build("vit_tiny_patch16_224", pretrained=True)
    assert asked == [("hub.invalid", 443)]
    assert "Retrying" not in caplog.text


def test_a_proxy_is_not_looked_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitdistill.hub.getproxies", lambda: {"https": "http://proxy:3128"})
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("asked past the proxy"))
    assert hub_in_reach()
    assert not constants.is_offline_mode()
