"""Where studies are kept: Optuna's storages, a lock where they are files, and which worker is still alive."""

from __future__ import annotations

import itertools
import os
import socket
import sqlite3
import warnings
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import filelock
import optuna
import psutil
from optuna.storages import BaseStorage
from sqlalchemy.exc import SQLAlchemyError

from recloom.errors import RecloomError

SQLITE_TIMEOUT = 120  # seconds that a worker waits for another's transaction
_SQLITE = "sqlite:///"
_count = itertools.count()
_open: weakref.WeakSet[Worker] = weakref.WeakSet()


def open_storage(where: str | Path) -> tuple[BaseStorage, AbstractContextManager[Any]]:
    """Return Optuna's storage at a database URL or in an SQLite file, and a lock for one worker at a time.

    An SQLite file is put into write-ahead mode, so that readers (a dashboard) and writers do not stop each other; that
    needs a local disk. Its lock is a file beside it, freed by the system when its holder dies. A database server has
    none: there the study tells by its own means who was first.

    Args:
        where: A path, or a URL as SQLAlchemy takes it.

    Raises:
        RecloomError: It cannot be opened.
    """
    text = str(where)
    path = Path(text.removeprefix(_SQLITE)) if text.startswith(_SQLITE) or "://" not in text else None
    try:
        if path is None:
            return _open_url(text), nullcontext()
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(f"{path}.lock")
        with lock, closing(sqlite3.connect(path, timeout=SQLITE_TIMEOUT)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            return _open_url(f"{_SQLITE}{path}", connect_args={"timeout": SQLITE_TIMEOUT}), lock
    except ImportError as error:
        raise RecloomError(
            f"the storage {text!r} needs a database driver: {error}", "pip install psycopg2-binary, or pymysql"
        ) from error
    except (OSError, sqlite3.Error, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        raise RecloomError(
            f"the storage {text!r} cannot be opened: {error}", "Give a path to write to, or a database URL."
        ) from error


def _open_url(url: str, **engine: Any) -> BaseStorage:
    with quiet():
        return optuna.storages.get_storage(optuna.storages.RDBStorage(url, engine_kwargs=engine))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's notes and its warnings about experimental arguments off the terminal."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


class Worker:
    """Who tries candidates: an open study in a process of a machine."""

    def __init__(self) -> None:
        process = psutil.Process()
        self.name = f"{_machine()}|{process.pid}|{process.create_time():.2f}|{next(_count)}"
        _open.add(self)

    def close(self) -> None:
        """Count as dead from now on."""
        _open.discard(self)


def alive(name: str) -> bool | None:
    """Return whether the worker named `name` is still there; None if that cannot be told from this machine."""
    machine, pid, started, _ = name.rsplit("|", 3)
    if machine != _machine():
        return None
    if int(pid) == os.getpid() and started == f"{psutil.Process().create_time():.2f}":
        return any(worker.name == name for worker in _open)
    try:
        process = psutil.Process(int(pid))
        return f"{process.create_time():.2f}" == started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _machine() -> str:
    """Return a name of where process ids mean the same: the host, and the container."""
    space = Path("/proc/self/ns/pid")
    return socket.gethostname() + (f"/{space.stat().st_ino}" if space.exists() else "")
