"""What one run was told whatever its verb, and the options that tell it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

STORE_VARIABLE = "KVSAGE_STORE"
DEBUG_VARIABLE = "KVSAGE_DEBUG"


@dataclass(slots=True)
class Call:
    """The options of one run that do not depend on its verb.

    Attributes:
        store: URL or path of the store, or None where only the environment may tell.
        as_json: print JSON, for programs.
        debug: show where an error came from.
    """

    store: str | None = None
    as_json: bool = False
    debug: bool = field(
        default_factory=lambda: os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")
    )

    def url(self) -> str:
        """The store to work on.

        Raises:
            click.UsageError: nobody said which.
        """
        url = self.store or os.environ.get(STORE_VARIABLE)
        if not url:
            raise click.UsageError(
                f"which store? Give --store PATH (or a URL), or set {STORE_VARIABLE}"
            )
        return url


def _remember(context: click.Context, option: click.Parameter, value: Any) -> None:
    """Keep what was given, so that an option counts before the verb as well as after it."""
    if value:
        setattr(context.ensure_object(Call), str(option.name), value)


def _option(*names: str, **settings: Any) -> click.Option:
    return click.Option(names, callback=_remember, expose_value=False, **settings)


def store_option() -> click.Option:
    """``--store``."""
    where = f"Path or URL of the store.  [default: ${STORE_VARIABLE}]"
    return _option("-s", "--store", metavar="URL", help=where)


def json_option() -> click.Option:
    """``--json``."""
    return _option("--json", "as_json", is_flag=True, help="Print JSON.")


def debug_option() -> click.Option:
    """``--debug``."""
    return _option("--debug", is_flag=True, help="Show where an error came from.")


def verb(
    name: str, *, prints: bool = True, store: bool = True
) -> Callable[[Callable[..., int | None]], click.Command]:
    """A command that gets the ``Call`` first, and has the options of all commands after its own.

    Args:
        name: what a user types.
        prints: it has results, which ``--json`` may want.
        store: it works on a store that the user names.
    """

    def decorate(function: Callable[..., int | None]) -> click.Command:
        command = click.command(name)(click.pass_obj(function))
        command.params += [json_option()] if prints else []
        command.params += [store_option()] if store else []
        command.params.append(debug_option())
        return command

    return decorate
