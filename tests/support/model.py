"""What a store should do, said with a dictionary."""

from typing import Any, NamedTuple


class Held(NamedTuple):
    """What the model keeps of a key.

    Attributes:
        value: the value.
        expires_at: in seconds of the clock, or None.
        write: a number that no other write has; it stands for the version.
    """

    value: Any
    expires_at: float | None
    write: int


def there(model, now):
    """The keys that are there at ``now``, in the order of their bytes, with what they hold."""
    held = {
        key: held for key, held in model.items() if held.expires_at is None or held.expires_at > now
    }
    return dict(sorted(held.items(), key=lambda pair: pair[0].encode()))


def select(  # noqa: PLR0913  # the arguments of keys()
    keys, prefix="", *, start=None, stop=None, reverse=False, limit=None
):
    """The keys that a scan gives, from any keys; said without any cleverness."""
    chosen = sorted(key.encode() for key in keys)
    chosen = [key for key in chosen if key.startswith(prefix.encode())]
    if start is not None:
        chosen = [key for key in chosen if key >= start.encode()]
    if stop is not None:
        chosen = [key for key in chosen if key < stop.encode()]
    if reverse:
        chosen.reverse()
    return [key.decode() for key in chosen[:limit]]
