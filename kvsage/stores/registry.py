"""From a URL to a store: ``kvsage.open``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from kvsage.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvsage.store import PersistenceStore

TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off"})


def _truth(text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise ValueError(text)


QUERY: dict[str, Callable[[str], Any]] = {
    "durability": str,
    "readonly": _truth,
    "sync_interval": float,
    "value_bytes_max": int,
    "ttl_default": float,
}


def open(url: str | os.PathLike[str], **options: Any) -> PersistenceStore:
    """The store that a URL or a plain path names.

    Args:
        url: ``lmdb:///absolute/path``, or a plain path for the same; in a URL the path is
            percent-decoded, in a plain path ``~`` is expanded. Options may stand in a URL's query:
            ``durability``, ``readonly``, ``sync_interval``, ``value_bytes_max``, ``ttl_default``.
        **options: options of the store; they win over the query.

    Raises:
        ConfigError: a URL or an option that cannot be meant.
    """
    text = os.fspath(url)
    if "://" not in text:
        from kvsage.stores.embedded import LMDBStore  # loaded when first needed

        if not text:
            raise ConfigError("a store needs a path or a URL")
        return LMDBStore(text, **options)
    from urllib.parse import unquote, urlsplit

    try:
        parts = urlsplit(text)
        path = unquote(parts.path, errors="strict")
    except UnicodeDecodeError as error:
        raise ConfigError(f"the path of {text!r} is not percent-encoded UTF-8") from error
    except ValueError as error:
        raise ConfigError(f"{text!r} is no URL: {error}") from error
    if parts.scheme != "lmdb":
        raise ConfigError(f"no store has the scheme {parts.scheme!r}; there is lmdb")
    if parts.netloc or not parts.path.startswith("/"):
        raise ConfigError(f"the path of {text!r} is not absolute: three slashes follow lmdb:")
    if parts.fragment:
        raise ConfigError(f"{text!r} has a fragment; write # as %23")
    from kvsage.stores.embedded import LMDBStore

    return LMDBStore(path, **{**_query(parts.query), **options})


def _query(query: str) -> dict[str, Any]:
    """The options in a URL's query, checked."""
    from urllib.parse import parse_qsl

    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in QUERY:
            raise ConfigError(f"unknown option {name!r}; there are {', '.join(QUERY)}")
        if name in options:
            raise ConfigError(f"the option {name!r} is given twice")
        try:
            options[name] = QUERY[name](value)
        except ValueError as error:
            raise ConfigError(f"{name}={value!r} cannot be meant") from error
    return options
