"""Stores as a command needs them: reading must not create what is not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from kvsage.errors import NotAStoreError, UnsupportedError
from kvsage.stores.embedded import LMDBStore
from kvsage.stores.registry import open as open_url

if TYPE_CHECKING:
    from kvsage.store import PersistenceStore

CONTENT_BYTES_MIN = 64
"""Files are stored once from this size on: source trees are full of small ones that are alike."""

VALUE_BYTES_MAX = 256 << 20
"""What other stores are offered at most; they refuse by themselves what they cannot hold."""

LOCAL_SCHEMES = {"", "lmdb", "sqlite", "file"}


def local_path(url: str) -> Path | None:
    """Where on this machine a store is, or None for one that is elsewhere."""
    if "://" not in url:
        return Path(url).expanduser()
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme in LOCAL_SCHEMES else None


def shown(url: str) -> str:
    """``url`` without its password."""
    parts = urlsplit(url) if "://" in url else None
    if parts is None or parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username}:***@{host}").geturl()


def open_existing(url: str, *, readonly: bool = False) -> PersistenceStore:
    """Open a store that is there already.

    Raises:
        NotAStoreError: nothing is there; a store was not created either.
    """
    _refuse_vacant(local_path(url))
    return open_url(url, readonly=True) if readonly else open_url(url)


def open_or_create(url: str, **embedded_options: Any) -> PersistenceStore:
    """Open a store; where there is none, make one. The options are for embedded stores alone."""
    return open_url(url, **embedded_options) if _is_embedded(url) else open_url(url)


def embedded(store: PersistenceStore, verb: str) -> LMDBStore:
    """``store``, when it has the verbs that only the embedded store has.

    Raises:
        UnsupportedError: it is of another kind.
    """
    if not isinstance(store, LMDBStore):
        raise UnsupportedError(f"{verb} works on embedded stores, not on {type(store).__name__}")
    return store


def embedded_path(url: str) -> Path:
    """Where the embedded store of ``url`` is.

    Raises:
        UnsupportedError: it is of another kind.
        NotAStoreError: nothing is there.
    """
    path = local_path(url)
    if path is None or not _is_embedded(url):
        raise UnsupportedError(f"this works on embedded stores, not on {shown(url)}")
    _refuse_vacant(path)
    return path


def value_bytes_max(store: PersistenceStore) -> int:
    """The largest value worth reading into memory for ``store``."""
    return store.options.value_bytes_max if isinstance(store, LMDBStore) else VALUE_BYTES_MAX


def _is_embedded(url: str) -> bool:
    return "://" not in url or urlsplit(url).scheme == "lmdb"


def _refuse_vacant(path: Path | None) -> None:
    if path is None:
        return
    try:
        with os.scandir(path) as entries:
            vacant = next(entries, None) is None
    except FileNotFoundError:
        vacant = True
    except OSError:  # a file, or a directory that may not be read: the store says it better
        vacant = False
    if vacant:
        raise NotAStoreError(f"no store at {path}: `kvsage set` or `kvsage ingest` creates one")
