"""Joining a Ray cluster, or starting one. Ray is imported only where this is asked for.

A cluster that is started listens on this machine alone, asks for a token, has no dashboard and reports to nobody. One that is there is
joined with the token that Ray's own settings name (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token). Every machine of it needs
the same Safelight, and sees models, pictures and results under the same paths.
"""
from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

STORE = 256 * 2**20
"""Bytes that a local cluster may hold in memory; what passes through it are numbers, paths and previews."""


@contextmanager
def joined(address: str | None) -> Iterator[Any]:
    """Ray, joined to the cluster at an address (`host:port`, `auto`), or to one that is there as long as the block lasts. ImportError when
    Ray is not installed; ValueError when there is no cluster at the address."""
    _settle(local=address is None)
    if address not in (None, "auto"):
        _knock(address or "")
    try:
        ray = import_module("ray")
    except ImportError as error:
        raise ImportError("--engine ray needs Ray: pip install 'safelight[ray]'") from error
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    alone = {"include_dashboard": False, "object_store_memory": STORE} if address is None else {}
    try:
        ray.init(address=address or "local", **quiet, **alone)
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise ValueError(f"address: no Ray cluster could be joined at {address}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ValueError(f"address: nothing answers at {address}: {error}; give HOST:PORT of a cluster's head, or auto") from error


def _settle(*, local: bool) -> None:
    """Ray's switches, which it reads when it is imported; what the user has set is kept, but a local cluster is always closed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if local:
        os.environ["RAY_AUTH_MODE"] = "token"
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the one switch that makes every server listen on the loopback alone
