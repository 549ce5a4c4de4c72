"""One engine for each store and process, shared by all handles and counted.

LMDB and ``flock`` both count by process, so a second opening of a store shares the first one's
engine. The last handle closes it, and so does the end of the process. After a fork every engine is
told.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import sys
import threading
from typing import TYPE_CHECKING

from kvsage.engine.engine import Engine
from kvsage.engine.flusher import EngineThread
from kvsage.errors import ConfigError, KvsageError, NotAStoreError, StoreUnavailableError
from kvsage.fs.locks import identity

if TYPE_CHECKING:
    from pathlib import Path

    from kvsage.clock import Clock
    from kvsage.fs import Disk
    from kvsage.options import StoreOptions

ON_FIRST_USE = tuple(
    f"kvsage.engine.{name}"
    for name in (
        "backup",
        "catalogue",
        "check",
        "consumers",
        "feed",
        "later",
        "repair",
        "restore",
        "stats",
    )
)
_registry: dict[tuple[int, int], Engine] = {}
_registry_lock = threading.RLock()  # guards the registry, and that no store is opened twice at once


def acquire(path: Path, options: StoreOptions, disk: Disk, clock: Clock, *, create: bool) -> Engine:
    """The engine of the store at ``path``, opened or shared; pair it with ``release``.

    Raises:
        ConfigError: this process has it open with another clock or disk.
        NotAStoreError: it is not there and ``create`` is false, or something else is.
    """
    with _registry_lock:
        _make_directory(path, disk, create=create)
        place = identity(path)
        engine = _registry.get(place)
        if engine is not None and engine.is_gone():
            # Its inode was used again. It stays known, for a fork and for the end of the process.
            engine.poisoned = True
            _registry[-1, id(engine)] = _registry.pop(place)
            engine = None
        if engine is not None:
            if engine.clock is not clock or engine.disk is not disk:
                raise ConfigError(f"{path} is open in this process with another clock or disk")
            engine.handles += 1
            engine.flusher.hasten(options.sync_interval)
            if not (options.readonly or engine.inherited):
                engine.upkeep.start()
            return engine
        engine = Engine(path.resolve(), options, disk, clock)
        engine.open(create=create)
        _registry[place] = engine
        return engine


def _make_directory(path: Path, disk: Disk, *, create: bool) -> None:
    """The store's directory, made with its parents where that is asked for."""
    try:
        if path.exists() or path.is_symlink():
            if path.is_dir():  # asked second: another process may be making it
                return
            raise NotAStoreError(f"{path} is not a directory")
        if not create:
            raise NotAStoreError(f"there is no store at {path}")
        missing = [parent for parent in path.parents if not parent.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        for made in missing:
            disk.sync_directory(made.parent)
        with contextlib.suppress(FileExistsError):
            disk.make_directory(path)
    except PermissionError as error:
        raise StoreUnavailableError(f"permission denied: {path}") from error
    except OSError as error:
        raise StoreUnavailableError(f"cannot make {path}: {error.strerror}") from error


def is_open(path: Path) -> bool:
    """Whether this process has the store at ``path`` open."""
    with _registry_lock:
        return identity(path) in _registry


def release(engine: Engine) -> None:
    """One handle less; the last one closes."""
    if isinstance(threading.current_thread(), EngineThread):
        # The collector came by here and found a handle. Closing waits for threads, this one too.
        threading.Thread(target=_release_quietly, args=(engine,), name="kvsage-closer").start()
        return
    with _registry_lock:
        if engine.handles > 1:
            engine.handles -= 1
            return
        try:
            engine.close()
        finally:
            if engine.closed or engine.inherited:
                engine.handles = 0
                for place in [place for place, known in _registry.items() if known is engine]:
                    del _registry[place]


def _release_quietly(engine: Engine) -> None:
    with contextlib.suppress(KvsageError):
        release(engine)


def _close_all() -> None:
    """At exit: what was not closed is flushed and closed now."""
    with _registry_lock:
        engines = list(_registry.values())
        _registry.clear()
        for engine in engines:
            with contextlib.suppress(KvsageError):
                engine.close()


def _before_fork() -> None:
    """Wait for modules that another thread is loading: in the child nobody would finish that."""
    looked_for = getattr(importlib._bootstrap, "_module_locks", {})  # noqa: SLF001  # there is no other way to ask
    for name in ON_FIRST_USE:
        if name in sys.modules or name in looked_for:
            importlib.import_module(name)


def _after_fork_in_child() -> None:
    global _registry_lock  # noqa: PLW0603  # its owner may be a thread that did not come along
    _registry_lock = threading.RLock()
    for engine in _registry.values():
        engine.forked()


atexit.register(_close_all)
os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
