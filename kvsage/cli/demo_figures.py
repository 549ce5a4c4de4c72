"""What one run of the demo has measured, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from kvsage.cli import render

if TYPE_CHECKING:
    from kvsage.types import StoreStats


@dataclass(frozen=True, slots=True)
class Step:
    """One row of the table.

    Attributes:
        name: what was done.
        operations: how often.
        seconds: how long all of them took; None where that is no measure of kvsage.
        result: what it shows.
    """

    name: str
    operations: int
    seconds: float | None
    result: str

    @property
    def per_second(self) -> float | None:
        """Operations per second."""
        return render.ratio(self.operations, self.seconds or 0.0)

    def row(self) -> tuple[str, str, str, str, str]:
        """The cells of the table."""
        seconds = "" if self.seconds is None else f"{self.seconds:.2f}"
        rate = "" if self.per_second is None else f"{self.per_second:,.0f}"
        return self.name, f"{self.operations:,}", seconds, rate, self.result


@dataclass(slots=True, kw_only=True)
class Figures:
    """All that one run has measured.

    Attributes:
        python: version of the interpreter.
        source: the tree that was ingested.
        store: where the store was.
        steps: the rows of the table, in order.
        broken: promises that this run saw broken.
        files: what the store held after the files had been saved twice, and nothing else yet.
        stats: what it held at the end.
        talk_bytes: what all states of the conversation take, serialized.
        talk_log_bytes: what saving all of them has added to the log.
        acknowledged: writes that the killed process had been told are safe.
        reopen_seconds: opening the store after the kill.
        rebuild_seconds: opening it with its index thrown away.
        seconds: the whole run.
    """

    python: str
    source: str
    store: str
    steps: list[Step] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    files: StoreStats | None = None
    stats: StoreStats | None = None
    talk_bytes: int = 0
    talk_log_bytes: int = 0
    acknowledged: int = 0
    reopen_seconds: float = 0.0
    rebuild_seconds: float = 0.0
    seconds: float = 0.0

    def add(self, name: str, operations: int, seconds: float | None, result: str) -> None:
        """Keep a row, and tell it to whoever watches."""
        self.steps.append(Step(name, operations, seconds, result))
        time_taken = "" if seconds is None else f" in {render.duration(seconds)}"
        render.note(f"     {name}: {operations:,}{time_taken}, {result}")

    def promise(self, what: str, *, kept: bool) -> None:
        """Keep in mind what was not kept."""
        if not kept:
            self.broken.append(what)
            render.note(f"     BROKEN: {what}")

    def as_json(self) -> dict[str, Any]:
        """Every figure, for a program."""
        figures = asdict(self)
        figures["ok"] = not self.broken
        figures["steps"] = [{**asdict(step), "per_second": step.per_second} for step in self.steps]
        if self.files is not None:
            figures["logical_bytes"] = self.files.logical_bytes
            figures["stored_bytes"] = self.files.content_stored_bytes
            figures["dedup_ratio"] = self.files.dedup_ratio
            figures["compression_ratio"] = self.files.compression_ratio
        return figures

    def table(self) -> render.Table:
        """Every figure, for a person."""
        right, left = render.RIGHT, render.LEFT
        verdict = "every promise kept" if not self.broken else "PROMISES BROKEN"
        return render.Table(
            f"kvsage demo: {verdict}, in {render.duration(self.seconds)}",
            ("step", "count", "seconds", "per second", "result"),
            [[step.row() for step in self.steps], self._space(), self._recovery()],
            (left, right, right, right, left),
        )

    def _space(self) -> list[tuple[str, str, str, str, str]]:
        files, end, size = self.files, self.stats, render.byte_size
        if files is None or end is None:
            return []
        return [
            _fact("logical bytes", size(files.logical_bytes), "under both sets of keys"),
            _fact("distinct bytes", size(files.content_bytes), f"{files.contents:,} contents"),
            _fact("stored bytes", size(files.content_stored_bytes), "the same, compressed"),
            _fact("dedup ratio", render.times(files.dedup_ratio), "logical : distinct"),
            _fact("compression ratio", render.times(files.compression_ratio), "distinct : stored"),
            _fact("log", size(end.log_bytes), f"{end.commits:,} commits"),
            _fact("index", size(end.index_bytes), "derived from the log"),
        ]

    def _recovery(self) -> list[tuple[str, str, str, str, str]]:
        reopen, rebuild = (
            render.duration(self.reopen_seconds),
            render.duration(self.rebuild_seconds),
        )
        return [
            _fact("recovery from SIGKILL", reopen, "until open again"),
            _fact("recovery without index", rebuild, "from the log alone"),
        ]


def _fact(name: str, value: str, result: str) -> tuple[str, str, str, str, str]:
    return name, value, "", "", result
