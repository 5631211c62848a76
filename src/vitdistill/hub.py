"""The Hugging Face hub: whether there is a way to it, found out once and at once."""

import socket
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

SECONDS = 5.0  # for a connection


@cache
def hub_in_reach() -> bool:
    """Whether the hub, or the mirror that HF_ENDPOINT names, can be reached; asked once in a process.

    Where it cannot, its libraries are told that they are offline: they use their caches at once, in place of trying
    again for a minute in twenty lines. To be called before `datasets` is imported, which looks but then.
    Behind a proxy it is the proxy that knows, so nothing is asked.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    address = urlsplit(constants.ENDPOINT)
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    proxies = getproxies()
    if (address.scheme in proxies or "all" in proxies) and not proxy_bypass(host):
        return True
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
        return False
    return True
