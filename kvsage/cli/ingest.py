"""Files into a store: `ingest` as a function, which the demo uses too, and as a verb."""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvsage.cli import render
from kvsage.cli.call import Call, verb
from kvsage.cli.exits import OK, UNAVAILABLE
from kvsage.cli.opening import (
    CONTENT_BYTES_MIN,
    local_path,
    open_or_create,
    value_bytes_max,
)
from kvsage.cli.tree import File, LeftOut, Selection, key_of, read, walk
from kvsage.errors import InvalidKeyError, UnsupportedError, ValueTooLargeError
from kvsage.store import PersistenceStore, encode_key
from kvsage.types import StoreStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

BATCH_BYTES = 8 << 20
BATCH_FILES = 500
"""What one commit holds at most; a larger file is a commit of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to ingest.

    Attributes:
        sources: files and directories.
        file_bytes_max: leave out, and report, what is larger.
        prefix: what every key begins with.
        selection: which files below a directory are meant.
        text_only: leave out what is not UTF-8.
    """

    sources: tuple[str, ...]
    file_bytes_max: int
    prefix: str = ""
    selection: Selection = field(default_factory=Selection)
    text_only: bool = False

    def under(self, prefix: str) -> Plan:
        """The same files under other keys."""
        return replace(self, prefix=prefix)

    def found(self) -> Iterator[tuple[str, File | LeftOut]]:
        """Every file in order, with the source that it belongs to."""
        for source in self.sources:
            for each in walk(source, self.selection):
                yield source, each


@dataclass(slots=True)
class Report:
    """What an ingest did; sizes in bytes, None where the store cannot tell.

    Attributes:
        files: files saved.
        bytes: bytes of those files.
        skipped: what is left out by rule: links, special files, and binaries where text was asked.
        failed: what should have been saved and could not be.
        new_contents: contents that the store did not have before.
        stored_bytes: what the log has grown by.
        seconds: how long it took.
    """

    files: int = 0
    bytes: int = 0
    skipped: int = 0
    failed: int = 0
    new_contents: int | None = None
    stored_bytes: int | None = None
    seconds: float = 0.0


class Ingest:
    """One ingest on its way.

    Args:
        store: where to.
        plan: what.
        progress: told of each file.
        complain: told, in a line, of each file that could not be saved.
    """

    def __init__(
        self,
        store: PersistenceStore,
        plan: Plan,
        progress: render.Progress,
        complain: Callable[[str], None],
    ) -> None:
        self.store = store
        self.plan = plan
        self.progress = progress
        self.complain = complain
        self.report = Report()
        self.batch: dict[str, bytes] = {}
        self.sources: dict[str, str] = {}
        self.batch_bytes = 0

    def run(self) -> Report:
        """Save every file; what fails is reported and the rest goes on."""
        before = figures_of(self.store)
        began = time.perf_counter()
        for root, found in self.plan.found():
            if isinstance(found, File):
                self._take(root, found)
                self.progress.step(found.size)
            elif found.failed:
                self._fail(found.source, found.why)
            else:
                self.report.skipped += 1
        self._commit()
        self.report.seconds = time.perf_counter() - began
        after = figures_of(self.store)
        if before is not None and after is not None:
            self.report.new_contents = after.contents - before.contents
            self.report.stored_bytes = after.log_bytes - before.log_bytes
        return self.report

    def _take(self, root: str, file: File) -> None:
        key = self.plan.prefix + key_of(file.path)
        try:
            data = self._content(root, file, key)
        except InvalidKeyError as error:
            self._fail(file.source, f"{error}: try a shorter --prefix or a deeper PATH")
        except OSError as error:
            self._fail(file.source, error.strerror or str(error))
        else:
            if self.plan.text_only and not is_text(data):
                self.report.skipped += 1
            else:
                self._add(key, data, file.source)

    def _content(self, root: str, file: File, key: str) -> bytes:
        """The bytes of a file that may be saved under ``key``.

        Raises:
            InvalidKeyError: the key is too long.
            OSError: the file cannot be read, is too large, or another one has its key.
        """
        encode_key(key)
        rival = self._rival(root, file.path)
        if rival is not None:
            raise FileExistsError(None, f"its key {key!r} is that of {str(rival)!r}")
        limit = self.plan.file_bytes_max
        data = read(file, limit) if file.size <= limit else None
        if data is None:
            raise OSError(None, f"larger than {limit:,} bytes, the most for one value")
        return data

    def _rival(self, root: str, path: str) -> Path | None:
        """The file of an earlier source with the same key: the disk remembers, not we."""
        for source in map(Path, itertools.takewhile(lambda each: each != root, self.plan.sources)):
            other = source / path if source.is_dir() else source
            if other.is_file() and (other is not source or source.name == path):
                return other
        return None

    def _add(self, key: str, data: bytes, source: str) -> None:
        if self.batch_bytes + len(data) > BATCH_BYTES or len(self.batch) >= BATCH_FILES:
            self._commit()
        self.batch[key] = data
        self.sources[key] = source
        self.batch_bytes += len(data)

    def _commit(self) -> None:
        """Save what was gathered: together, or one by one where something of it is refused."""
        if self.batch:
            try:
                self.store.save_many(self.batch)
                self._count(self.batch.values())
            except (ValueTooLargeError, UnsupportedError):
                self._commit_singly()
        self.batch.clear()
        self.sources.clear()
        self.batch_bytes = 0

    def _commit_singly(self) -> None:
        for key, data in self.batch.items():
            try:
                self.store.save(key, data)
                self._count([data])
            except (ValueTooLargeError, UnsupportedError) as error:
                self._fail(self.sources[key], str(error))

    def _count(self, saved: Iterable[bytes]) -> None:
        for data in saved:
            self.report.files += 1
            self.report.bytes += len(data)

    def _fail(self, source: str, why: str) -> None:
        self.report.failed += 1
        self.complain(render.one_line(f"{source}: {why}"))


def ingest(
    store: PersistenceStore,
    plan: Plan,
    *,
    label: str = "ingest",
    complain: Callable[[str], None] = render.note,
) -> Report:
    """Save the exact bytes of files, each under the prefix and its path, and show the progress.

    Memory stays bounded: one batch is held, or one file where that is larger.

    Args:
        store: where to.
        plan: what.
        label: what the progress is called.
        complain: told, in a line, of each file that could not be saved.
    """
    count = total = 0
    for _, found in plan.found():
        if isinstance(found, File):
            count += 1
            total += found.size
    with render.progress(label, count, total) as progress:
        return Ingest(store, plan, progress, complain).run()


def is_text(data: bytes) -> bool:
    """Whether ``data`` is UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def figures_of(store: PersistenceStore) -> StoreStats | None:
    """What an embedded store counts, None for any other."""
    try:
        stats = store.stats()
    except UnsupportedError:
        return None
    return stats if isinstance(stats, StoreStats) else None


def summary(report: Report) -> str:
    """A report in a line."""
    amount, time_taken = render.byte_size(report.bytes), render.duration(report.seconds)
    parts = [f"{render.plural(report.files, 'file')}, {amount} in {time_taken}"]
    if report.new_contents is not None and report.stored_bytes is not None:
        parts.append(
            f"{render.plural(report.new_contents, 'new content')}, "
            f"{render.byte_size(report.stored_bytes)} stored"
        )
    if report.skipped:
        parts.append(f"{report.skipped:,} skipped")
    if report.failed:
        parts.append(f"{report.failed:,} failed")
    return "; ".join(parts)


@verb("ingest")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--prefix", default="", metavar="P", help="What every key begins with.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only files that match.")
@click.option(
    "--exclude", multiple=True, metavar="GLOB", help="No files or directories that match."
)
def ingest_command(call: Call, paths: tuple[str, ...], prefix: str, **patterns: Any) -> int:
    """Save files, and all files below directories, byte for byte.

    The store is made where there is none. The key of a file is P and its path below PATH (its name,
    where PATH is a file); `kvsage get KEY` gives it back. What is not UTF-8 in a name becomes %XX.
    Links are followed only to files of the same tree. A GLOB is compared with the name and with the
    path below PATH; give several by repeating the option.

    Exit 3 when a file could not be read or saved; the others are saved.
    """
    url = call.url()
    with open_or_create(url, content_bytes_min=CONTENT_BYTES_MIN) as store:
        selection = Selection(**patterns, avoid=_place(local_path(url)))
        plan = Plan(
            sources=paths,
            prefix=prefix,
            selection=selection,
            file_bytes_max=value_bytes_max(store),
        )
        report = ingest(store, plan, complain=lambda text: render.note(f"kvsage: {text}"))
    if call.as_json:
        render.json_line(asdict(report))
    else:
        render.line(summary(report))
    return UNAVAILABLE if report.failed else OK


def _place(path: Path | None) -> tuple[int, int] | None:
    """Device and inode of the store's directory, so that a store does not swallow itself."""
    if path is None:
        return None
    found = path.stat()
    return found.st_dev, found.st_ino
