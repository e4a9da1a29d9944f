"""Check the environment variables that configure the network."""

from __future__ import annotations

import errno
import importlib.util
import os
import ssl

import httpx

from .errors import ConfigurationError

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
SCHEMES = ("http", "https", "socks5", "socks5h")


def check_certificates() -> None:
    """Raise `ConfigurationError` if SSL_CERT_FILE is not a file of certificates."""
    path = os.environ.get("SSL_CERT_FILE")
    if not path:
        return
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        if error.errno == errno.ENOMEM:
            raise
        raise ConfigurationError(
            f"SSL_CERT_FILE: {path} cannot be read as certificates ({error.strerror or type(error).__name__}); set it "
            "to a PEM file, or unset it"
        ) from None


def check_proxies() -> None:
    """Raise `ConfigurationError` for proxy settings that httpx cannot read, without quoting the proxy's password."""
    for name, value in os.environ.items():
        if name.upper() in PROXIES and value:
            _check_proxy(name, value)
        elif name.upper() == "NO_PROXY":
            for host in filter(None, (part.strip() for part in value.split(","))):
                _check_host(name, host)


def _check_proxy(name: str, value: str) -> None:
    try:
        scheme = httpx.URL(value if "://" in value else f"http://{value}").scheme
    except httpx.InvalidURL:
        scheme = ""
    if scheme not in SCHEMES:
        raise ConfigurationError(
            f'{name} is not the address of a proxy; set it to one like "http://proxy.example.com:3128", or unset it'
        )
    if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise ConfigurationError(f'{name} is a SOCKS proxy, which needs another package: pip install "httpx[socks]"')


def _check_host(name: str, host: str) -> None:
    try:
        httpx.URL(f"all://{host}")
        is_good = "[" not in host
    except httpx.InvalidURL:
        is_good = ":" in host and "[" not in host  # an IPv6 address
    if not is_good:
        bare = host.lstrip("[").partition("]")[0]
        raise ConfigurationError(f"{name}: {host} cannot be read; write an IPv6 address without brackets, as {bare}")
