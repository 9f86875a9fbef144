"""Opening the record: an MLflow client for a tracking URI that is known to answer."""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from ddray.errors import MissingExtra, RequestError
from ddray.tracking.sqlite import follow_artefacts, make_database, sqlite_file, sqlite_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.store.entities.paged_list import PagedList

T = TypeVar("T")
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_PATIENCE = 10.0  # seconds that a server has to answer before anything runs
_TALKATIVE = ("alembic", "mlflow.store.db.utils", "mlflow.store.model_registry.abstract_store")
_QUIET = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
_FORMS = "sqlite:///FILE, http(s)://HOST:PORT, postgresql://…, mysql://… or mssql://…"


def default_tracking_uri(storage: Path | str = "sweeps") -> str:
    """`MLFLOW_TRACKING_URI`, else a SQLite file in the sweeps' storage."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(f"{storage}/mlflow.db")


def open_client(uri: str, *, create: bool) -> MlflowClient:
    """A client for the tracking store and the registry at `uri`, after one successful request.

    Args:
        uri: where the record is.
        create: make a SQLite file and its folder if they are missing, and make sure that it can be written.

    Raises:
        RequestError: the URI is of another kind, or what it names does not answer.
        MissingExtra: MLflow is not installed.

    """
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise MissingExtra("mlflow", "the record of sweeps") from error
    try:
        _check_reachable(uri, create)
        with quiet():
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
    except RequestError:
        raise
    except Exception as error:  # drivers and servers fail in their own ways; all mean that this URI cannot be used
        raise _refusal(uri, _first_line(error)) from error
    return client


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to itself what MLflow says of tables made, versions awaited, runs ended (on standard output!), bytes moved."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    settings = {name: os.environ.get(name) for name in _QUIET}
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    os.environ.update(_QUIET)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, before in settings.items():
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


@contextmanager
def unless_there() -> Iterator[None]:
    """Make something in the record; that another process has made it since it was looked for is no failure."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def pages(search: Callable[[str | None], PagedList[T]]) -> Iterator[T]:
    """Everything that a paged search finds; `search` takes the token of a page, None for the first."""
    token: str | None = None
    while True:
        page = search(token)
        yield from page
        token = page.token
        if not token:
            return


def _check_reachable(uri: str, create: bool) -> None:
    """MLflow waits minutes for a server or file that is not there; this does not."""
    kind = urlsplit(uri).scheme.partition("+")[0]
    if kind == "sqlite":
        _check_sqlite(uri, create)
    elif kind in ("http", "https"):
        _check_http(uri)
    elif kind in _PORTS:
        parts = urlsplit(uri)
        if parts.hostname:  # otherwise a socket in the file system
            socket.create_connection((parts.hostname, parts.port or _PORTS[kind]), timeout=_PATIENCE).close()
    else:
        raise _refusal(uri, f"use {_FORMS}")


def _check_sqlite(uri: str, create: bool) -> None:
    file = sqlite_file(uri)
    if file is None or file.name == ":memory:":
        raise _refusal(uri, "name a file: sqlite:///FILE, with four slashes for an absolute path")
    if not create:
        if not file.is_file():
            raise _refusal(uri, f"there is no record yet: {file} does not exist")
        follow_artefacts(file)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        make_database(file)
    with closing(sqlite3.connect(file, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # fails at once where the file or its folder is read-only
        connection.rollback()
    follow_artefacts(file)


def _check_http(uri: str) -> None:
    try:
        urlopen(uri.rstrip("/") + "/health", timeout=_PATIENCE).close()
    except HTTPError as answer:
        if answer.code >= 500:
            raise
        # Anything else is an answer; whether it is MLflow that answers, the first request will show.
    except URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # MLflow has its own settings for certificates
            raise


def _refusal(uri: str, why: str) -> RequestError:
    return RequestError("--tracking-uri", re.sub(r"://[^/@]*@", "://…@", uri), why)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
