"""What one run was told whatever its verb, and the options that tell it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

STORE_VARIABLE = "KVSAGE_STORE"
DEBUG_VARIABLE = "KVSAGE_DEBUG"

Function = TypeVar("Function", bound=Callable[..., Any])


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


def _option(*names: str, **settings: Any) -> Callable[[Function], Function]:
    return click.option(*names, callback=_remember, expose_value=False, **settings)


store_option = _option(
    "-s",
    "--store",
    metavar="URL",
    help=f"Path or URL of the store.  [default: ${STORE_VARIABLE}]",
)
json_option = _option("--json", "as_json", is_flag=True, help="Print JSON.")
debug_option = _option("--debug", is_flag=True, help="Show where an error came from.")


def verb(name: str, *, prints: bool = True) -> Callable[[Callable[..., int | None]], click.Command]:
    """A command that works on a store and gets the ``Call`` first; ``--json`` where it prints."""

    def decorate(function: Callable[..., int | None]) -> click.Command:
        wrapped = debug_option(store_option(click.pass_obj(function)))
        return click.command(name)(json_option(wrapped) if prints else wrapped)

    return decorate
