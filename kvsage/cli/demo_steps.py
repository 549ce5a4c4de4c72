"""The steps of the demo, each of which measures what it does and checks what it shows."""

from __future__ import annotations

import itertools
import shutil
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from kvsage.cli import render
from kvsage.cli.crash import kill_writer, survey
from kvsage.cli.ingest import Plan, Report, ingest, is_text
from kvsage.cli.opening import CONTENT_BYTES_MIN
from kvsage.cli.tree import File, key_of, read
from kvsage.errors import ConfigError
from kvsage.serialization import pack
from kvsage.stores.embedded import LMDBStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvsage.cli.demo_figures import Figures

STEPS = 6

FILES = "files/"
AGAIN = "again/"
SESSIONS = "sessions/"
BRIEF = "sessions/brief/"
LASTING = "sessions/lasting/"
DOOMED = "sessions/doomed/"

LASTING_COUNT = 2000
LASTING_TTL_S = 1800.0
BRIEF_COUNT = 1000
BRIEF_TTL_S = 2.0
EXPIRY_WAIT_S = (
    10.0  # far more than it takes, so that a machine that halts a while fails no promise
)
TURNS_MOST = 5000
LOADS = 10_000
DOOMED_COUNT = 500

STATES = "talk/states/"
WHOLE_TALK = "talk/whole"
TALK_TURNS = 400
APPENDED_TURNS = 50
PART = 20
PARTS = 500
# Characters of questions and answers, about 2,200 a turn; as many of each as never come round
# together, so that no turn is like another.
QUESTIONS = (60, 240, 120, 410, 90, 180, 300)
ANSWERS = (350, 2400, 800, 5200, 1200, 600, 3600, 500, 1900, 4300, 1400)
CHEAPER_AT_LEAST = 10  # times: what all states of a conversation take, over what they cost


def run(path: Path, plan: Plan, figures: Figures) -> None:
    """Do every step on a fresh store at ``path``.

    Args:
        path: where the store is made.
        plan: the files to work on.
        figures: filled as the steps go by.
    """
    began = time.perf_counter()
    with LMDBStore(path, content_bytes_min=CONTENT_BYTES_MIN) as store:
        _say(1, f"every text file below {figures.source}")
        files = _files(store, plan, figures)
        _say(2, "the same files again, under other keys")
        _again(store, plan, figures, files)
        _compare(store, plan, figures)
    with LMDBStore(path) as store:
        _say(
            3, f"session records: {LASTING_COUNT:,} for half an hour, {BRIEF_COUNT:,} for 2 seconds"
        )
        _sessions(store, figures)
        _roll_back(store, figures)
        _say(4, f"a conversation of {TALK_TURNS} turns, saved whole after each of them")
        _conversation(store, plan, figures)
    _say(
        5, "another process writes, each commit flushed to disk, until kill -9 hits it in mid-write"
    )
    _crash(path, figures)
    _say(6, "the index is thrown away, and the log, which is the database, brings everything back")
    _rebuild(path, figures)
    figures.seconds = time.perf_counter() - began


def _say(step: int, text: str) -> None:
    render.note(f"{step}/{STEPS}  {text}")


# -- files --------------------------------------------------------------------------------------


def _files(store: LMDBStore, plan: Plan, figures: Figures) -> Report:
    report = ingest(store, plan.under(FILES), label="ingest")
    result = (
        f"{render.byte_size(report.bytes)}, {render.plural(report.new_contents or 0, 'content')}"
    )
    figures.add("files saved as content", report.files, report.seconds, result)
    if not report.files:
        raise ConfigError(f"there is no text file below {figures.source}")
    return report


def _again(store: LMDBStore, plan: Plan, figures: Figures, first: Report) -> None:
    before = store.stats()
    report = ingest(store, plan.under(AGAIN), label="ingest again")
    after = store.stats()
    grown = after.content_stored_bytes - before.content_stored_bytes
    keys = render.byte_size(report.stored_bytes or 0)
    result = f"{report.new_contents:,} new; {keys} of keys"
    figures.add("same under other keys", report.files, report.seconds, result)
    figures.files = after
    stored_once = after.contents == before.contents and grown == 0
    # A tree that someone changed between the two is not one that was stored twice.
    unchanged = (report.files, report.bytes) == (first.files, first.bytes)
    figures.promise("nothing is stored twice", kept=stored_once or not unchanged)


def _compare(store: LMDBStore, plan: Plan, figures: Figures) -> None:
    """Load every file and compare it with the disk; only the loads are on the clock."""
    equal = different = total = 0
    seconds = 0.0
    for file, data in _read(plan):
        began = time.perf_counter()
        value = store.load(FILES + key_of(file.path))
        seconds += time.perf_counter() - began
        total += len(data)
        equal += value == data
        different += value != data
    verdict = f"{different:,} DIFFER" if different else "all equal"
    result = f"{verdict}; {render.byte_size(total / seconds)}/s"
    figures.add("files loaded", equal + different, seconds, result)
    figures.promise("every file comes back byte for byte", kept=not different)


def _read(plan: Plan) -> Iterator[tuple[File, bytes]]:
    """Every file of the plan with its bytes, as they are on the disk now."""
    for _, file in plan.found():
        if isinstance(file, File):
            data = read(file, plan.file_bytes_max)
            if data is not None and is_text(data):
                yield file, data


# -- sessions -----------------------------------------------------------------------------------


def _session(number: int) -> dict[str, Any]:
    return {
        "user": f"user-{number % 97:02}",
        "started": datetime.now(UTC),
        "language": ("en", "de", "fr", "ja")[number % 4],
        "topics": {"storage", f"topic-{number % 13}"},
        "turns": [{"role": "user", "text": f"Question {number} about what was said before."}],
    }


def _turn(session: dict[str, Any]) -> dict[str, Any]:
    """A session with one more turn, the last few kept."""
    turns = [*session["turns"], {"role": "assistant", "text": "An answer of ordinary length."}]
    return {**session, "turns": turns[-8:]}


def _sessions(store: LMDBStore, figures: Figures) -> None:
    lasting = [f"{LASTING}{number:05}" for number in range(LASTING_COUNT)]
    began = time.perf_counter()
    store.save_many({key: _session(n) for n, key in enumerate(lasting)}, ttl=LASTING_TTL_S)
    brief = {f"{BRIEF}{number:05}": _session(number) for number in range(BRIEF_COUNT)}
    brief_began = time.monotonic()
    store.save_many(brief, ttl=BRIEF_TTL_S)
    seconds = time.perf_counter() - began
    figures.add("sessions saved", len(lasting) + len(brief), seconds, "2 commits, with TTLs")
    render.note(f"     {store.count(BRIEF):,} brief sessions are there now")
    _turns(store, figures, lasting, brief_began + BRIEF_TTL_S)
    _loads(store, figures, lasting)
    _expiry(store, figures, brief_began)


def _turns(store: LMDBStore, figures: Figures, keys: list[str], until: float) -> None:
    """Change single sessions while the brief ones grow old: no second is slept away."""
    done = 0
    began = time.perf_counter()
    for key in itertools.islice(itertools.cycle(keys), TURNS_MOST):
        if time.monotonic() > until:
            break
        store.update(key, _turn)
        done += 1
    seconds = time.perf_counter() - began
    figures.add("session turns added", done, seconds, "each flushed to disk")


def _loads(store: LMDBStore, figures: Figures, keys: list[str]) -> None:
    began = time.perf_counter()
    found = sum(
        store.load(key) is not None for key in itertools.islice(itertools.cycle(keys), LOADS)
    )
    seconds = time.perf_counter() - began
    figures.add("sessions loaded", found, seconds, "checksums verified")
    figures.promise("every session within its TTL is there", kept=found == LOADS)


def _expiry(store: LMDBStore, figures: Figures, began: float) -> None:
    while (left := store.count(BRIEF)) and time.monotonic() < began + EXPIRY_WAIT_S:
        time.sleep(0.05)
    waited = render.duration(time.monotonic() - began)
    stay = store.count(LASTING)
    result = f"{left} left after {waited}"
    figures.add("sessions expired", BRIEF_COUNT - left, None, result)
    figures.promise("expired sessions are gone", kept=not left)
    figures.promise("sessions within their TTL stay", kept=stay == LASTING_COUNT)


class _ChangedMindError(Exception):
    """Raised to roll a transaction back."""


def _write_and_change_mind(store: LMDBStore, deleted: str) -> NoReturn:
    with store.transaction() as tx:
        for number in range(DOOMED_COUNT):
            tx.save(f"{DOOMED}{number:05}", _session(number))
        tx.delete(deleted)
        raise _ChangedMindError(tx.count(DOOMED))


def _roll_back(store: LMDBStore, figures: Figures) -> None:
    key = f"{LASTING}{0:05}"
    before = store.load(key)
    began = time.perf_counter()
    try:
        _write_and_change_mind(store, key)
    except _ChangedMindError as error:
        seen: int = error.args[0]
    seconds = time.perf_counter() - began
    left = store.count(DOOMED)
    restored = store.load(key) == before and before is not None
    result = f"{seen} seen, then {left}"
    figures.add("saves rolled back", seen, seconds, result)
    figures.promise("a transaction rolled back leaves nothing", kept=not left and restored)


# -- a conversation -----------------------------------------------------------------------------


def _messages(plan: Plan) -> list[dict[str, Any]]:
    """Two for each turn, of the text below the source; it comes round where it is too little."""
    sizes = list(
        itertools.islice(
            itertools.chain.from_iterable(
                zip(itertools.cycle(QUESTIONS), itertools.cycle(ANSWERS), strict=False)
            ),
            2 * (TALK_TURNS + APPENDED_TURNS),
        )
    )
    text = ""
    for _, data in _read(plan):
        text += data.decode()
        if len(text) >= sum(sizes):
            break
    text *= -(-sum(sizes) // len(text))
    return [
        {"number": number, "role": ("user", "assistant")[number % 2], "text": text[start:end]}
        for number, (start, end) in enumerate(
            itertools.pairwise(itertools.accumulate(sizes, initial=0))
        )
    ]


def _conversation(store: LMDBStore, plan: Plan, figures: Figures) -> None:
    messages = _messages(plan)
    talk, more = messages[: 2 * TALK_TURNS], messages[2 * TALK_TURNS :]
    before = store.stats().log_bytes
    began = time.perf_counter()
    for turn in range(1, TALK_TURNS + 1):
        store.save(f"{STATES}{turn:05}", talk[: 2 * turn])
    seconds = time.perf_counter() - began
    figures.talk_log_bytes = store.stats().log_bytes - before
    figures.talk_bytes = sum(len(pack(talk[: 2 * turn])) for turn in range(1, TALK_TURNS + 1))
    size = render.byte_size
    result = f"{size(figures.talk_bytes)} in {size(figures.talk_log_bytes)} of log"
    figures.add("conversation saved", TALK_TURNS, seconds, result)
    cheap = figures.talk_log_bytes * CHEAPER_AT_LEAST < figures.talk_bytes
    figures.promise("a conversation saved again costs what changed", kept=cheap)
    same = all(
        store.load(f"{STATES}{turn:05}") == talk[: 2 * turn] for turn in range(1, TALK_TURNS + 1)
    )
    figures.promise("every state of the conversation is there", kept=same)
    _grow(store, figures, talk, more)
    _look_into(store, figures, messages)


def _grow(
    store: LMDBStore, figures: Figures, talk: list[dict[str, Any]], more: list[dict[str, Any]]
) -> None:
    """Add to the end of the conversation, without the rest of it."""
    store.save(WHOLE_TALK, talk)
    before = store.stats().log_bytes
    began = time.perf_counter()
    for message in more:
        store.append(WHOLE_TALK, message)
    seconds = time.perf_counter() - began
    each = (store.stats().log_bytes - before) // len(more)
    result = f"flushed; {render.byte_size(each)} of log each"
    figures.add("messages appended", len(more), seconds, result)
    kept = store.load(WHOLE_TALK) == talk + more
    figures.promise("what is appended stands at the end", kept=kept)


def _look_into(store: LMDBStore, figures: Figures, messages: list[dict[str, Any]]) -> None:
    """Load parts of the conversation, without the rest of it."""
    places = [number * 7919 % (len(messages) - PART) for number in range(PARTS)]
    began = time.perf_counter()
    parts = [store.load_range(WHOLE_TALK, place, place + PART) for place in places]
    seconds = time.perf_counter() - began
    figures.add("parts of it loaded", PARTS, seconds, f"{PART} of {len(messages):,} messages")
    same = all(
        part == messages[place : place + PART] for part, place in zip(parts, places, strict=True)
    )
    figures.promise("a part of a list is what stands there", kept=same)


# -- crash and recovery -------------------------------------------------------------------------


def _crash(path: Path, figures: Figures) -> None:
    killed = kill_writer(path)
    began = time.perf_counter()
    with LMDBStore(path) as store:
        figures.reopen_seconds = time.perf_counter() - began
        found = survey(store, killed)
    acknowledged = len(killed.acknowledged)
    figures.acknowledged = acknowledged
    result = f"{len(found.lost)} LOST" if found.lost else "all there after kill -9"
    render.note(f"     {killed.last_words}; {found.last_write}")
    figures.add("writes acknowledged", acknowledged, killed.seconds, result)
    figures.promise("an acknowledged write survives kill -9", kept=not found.lost)
    figures.promise("a write is there whole or not at all", kept=found.interrupted != "torn")
    figures.promise("the writer was killed while it wrote", kept=acknowledged > 0)


def _rebuild(path: Path, figures: Figures) -> None:
    with LMDBStore(path) as store:
        before = _content(store)
    shutil.rmtree(path / "index")
    began = time.perf_counter()
    with LMDBStore(path) as store:
        figures.rebuild_seconds = time.perf_counter() - began
        figures.promise("the log brings everything back", kept=_content(store) == before)
        began = time.perf_counter()
        report = store.verify(deep=True)
        seconds = time.perf_counter() - began
        figures.add(
            "log entries replayed", report.entries, figures.rebuild_seconds, "index made anew"
        )
        verdict = "no problem" if report.ok else render.plural(len(report.problems), "problem")
        result = f"{verdict} in {render.byte_size(report.bytes)}"
        figures.add("log entries verified", report.entries, seconds, result)
        for problem in report.problems:
            figures.promise(f"verify finds nothing: {problem}", kept=False)
        figures.stats = store.stats()


def _content(store: LMDBStore) -> tuple[int, ...]:
    stats = store.stats()
    return store.count(), stats.contents, stats.content_nodes, stats.content_references
