"""Reading a log file: what follows, what is a torn tail, and what something later vouches for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsage.log import reader as reading
from kvsage.log.format import BATCH_BYTES, END_BYTES

SALT = int.from_bytes(bytes(range(1, 9)), "little")


# -- batches ------------------------------------------------------------------------------------


def test_batches_follow_one_another_to_the_end(log):
    for value in (b"", b"one", b"x" * 5000):
        log.append(value)
    found = list(log.reader().batches(log.start, log.first_chain, 0))
    assert [batch.offset for batch in found] == log.offsets
    assert [batch.header.seq for batch in found] == [1, 2, 3]
    assert [batch.header.checksum for batch in found] == log.chains
    assert [batch.end for batch in found] == [*log.offsets[1:], len(log.data)]
    assert found[2].body.endswith(b"x" * 5000)


def test_zeros_behind_the_last_batch_end_the_reading(log):
    log.append()
    log.data += bytes(10_000)
    assert log.read() == log.offsets
    assert log.vouched() == (log.offsets[0] + BATCH_BYTES + len(log.framed()), None)


def test_reading_stops_where_it_is_told(log):
    offsets = [log.append() for _ in range(4)]
    found = log.reader().batches(log.start, log.first_chain, 0, offsets[2])
    assert [batch.offset for batch in found] == offsets[:2]


def test_a_reading_may_begin_in_the_middle(log):
    offsets = [log.append() for _ in range(4)]
    found = log.reader().batches(offsets[2], log.chains[1], 2)
    assert [batch.offset for batch in found] == offsets[2:]


def test_every_flip_in_a_batch_ends_the_reading_before_it(log):
    first = log.append(b"first")
    second = log.append(b"second")
    clean = bytes(log.data)
    for position in range(second, len(clean)):
        for mask in (0x01, 0x80, 0xFF):
            log.data[:] = clean
            log.flip(position, mask)
            assert log.read() == [first]
    for position in range(first, second):
        log.data[:] = clean
        log.flip(position)
        assert log.read() == []


def test_every_cut_of_a_batch_ends_the_reading_before_it(log):
    first = log.append(b"first")
    second = log.append(b"second")
    clean = bytes(log.data)
    for length in range(second, len(clean)):
        log.data[:] = clean[:length]
        assert log.read() == [first]
        log.data += bytes(200)  # or the space ahead shows through
        assert log.read() == [first]


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=6), st.integers(1, 255), st.data())
def test_no_flip_anywhere_yields_a_wrong_batch(new_log, values, mask, data):
    log = new_log()
    for value in values:
        log.append(value)
    bodies = {b.offset: b.body for b in log.reader().batches(log.start, log.first_chain, 0)}
    log.flip(data.draw(st.integers(log.start, len(log.data) - 1)), mask)
    for batch in log.reader().batches(log.start, log.first_chain, 0):
        assert bodies[batch.offset] == batch.body
    assert len(log.read()) < len(values)


def test_a_batch_that_claims_more_than_the_file_has_is_not_read(log, memory_reader):
    offset = log.append()
    log.data[offset + 16 : offset + 20] = (1 << 30).to_bytes(4, "little")
    reader, reads = memory_reader(log.data)
    assert reader.batch_at(offset) is None
    assert max(length for length, _ in reads) <= reading.WINDOW_BYTES


def test_nothing_stands_at_or_behind_the_end(log):
    log.append()
    reader = log.reader()
    for offset in (len(log.data) - 1, len(log.data), len(log.data) + 1000):
        assert reader.batch_at(offset) is None
        assert reader.header_at(offset) is None
        assert list(reader.later_batches(offset)) == []


# -- order and place ----------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"seq": 2}, {"seq": 4}, {"seq": 0}, {"chain": 0}])
def test_a_batch_that_does_not_follow_is_not_read(log, changes):
    log.append()
    log.append()
    _, data = log.encoded(log.framed(), **changes)
    log.data += data
    assert log.reader().batch_at(len(log.data) - len(data)) is not None  # whole, but not next
    assert log.read() == log.offsets


@pytest.mark.parametrize(
    "at",
    [(SALT, 1, 0), (SALT, 2, None), (SALT ^ 1, 1, None), (0, 0, None)],
    ids=["another offset", "another segment", "another store", "no seed"],
)
def test_a_batch_counts_only_in_its_place(log, at):
    log.append()
    salt, segment, offset = at
    here = len(log.data)
    _, data = log.encoded(log.framed(), at=(salt, segment, here if offset is None else offset))
    log.data += data
    assert log.reader().batch_at(here) is None
    assert log.read() == log.offsets


def test_a_file_read_under_another_number_or_store_holds_nothing(log):
    log.append()
    assert log.read(segment=2) == []
    assert log.read(salt=SALT ^ 1) == []


def test_a_stale_batch_behind_a_rewritten_tail_does_not_follow(log, new_log):
    log.append(b"kept")
    log.append(b"voided")
    stale = log.append(b"stale")
    rewritten = new_log()
    rewritten.append(b"kept")
    rewritten.append(b"others")  # just as long, so that the stale one stands right behind it
    assert len(rewritten.data) == stale
    rewritten.data += log.data[stale:]
    assert rewritten.reader().batch_at(stale).header.seq == 3
    assert rewritten.read() == rewritten.offsets
    # And it does not make damage of the tail before it: its writer had flushed nothing.
    assert rewritten.vouched() == (stale, None)


# -- a value that looks like the log ------------------------------------------------------------


def test_a_batch_inside_a_value_is_no_batch(log):
    """Whoever reads the store's files can save their bytes; they do not count where they lie."""
    inner = log.append(b"inner")
    copied = bytes(log.data[inner:])
    outer = log.append(copied + b"BVK1" + copied)
    torn = log.append(b"torn")
    log.flip(torn + 20)
    reader = log.reader()
    assert [batch.offset for batch in reader.later_batches(log.start)] == [inner, outer]
    assert list(reader.later_batches(outer + 1)) == []
    assert log.vouched() == (torn, None)


def test_an_end_mark_inside_a_value_vouches_for_nothing(log, new_log):
    other = new_log()
    other.append()
    at = other.end()
    torn = log.append(b"." * 100 + bytes(other.data[at:]) + b".")
    log.flip(torn)
    assert log.vouched() == (torn, None)


def test_a_batch_made_for_its_place_inside_a_torn_one_vouches_only_by_its_flush(log):
    """Where bytes that check lie in a torn batch, only what they say of the flush counts."""
    outer = len(log.data)
    inside = outer + BATCH_BYTES + 32 + 1
    _, forged = log.encoded(b"", entries=0, seq=77, at=(SALT, 1, inside), flushed_seq=0)
    assert log.append(forged) == outer
    assert log.reader().batch_at(inside) is not None
    assert log.read() == [outer]
    assert [batch.offset for batch in log.reader().later_batches(log.start)] == [outer]
    log.flip(outer)
    assert log.vouched() == (outer, None)


# -- torn tail, or damage -----------------------------------------------------------------------


def test_a_torn_tail_is_vouched_for_by_nothing(log):
    log.append()
    torn = log.append(flushed_seq=1)
    log.flip(torn + 60)
    assert log.vouched() == (torn, None)


def test_later_batches_that_were_never_known_to_be_on_disk_prove_nothing(log):
    """Unflushed writes reach the disk in any order: the one before may never have come."""
    log.append()
    torn = log.append(flushed_seq=1)
    log.append(flushed_seq=1)
    log.append(flushed_seq=1)
    log.flip(torn + 60)
    assert log.vouched() == (torn, None)


def test_a_later_batch_that_says_flushed_makes_it_damage(log):
    log.append()
    torn = log.append(flushed_seq=1)
    log.append(flushed_seq=1)
    says = log.append(flushed_seq=2)
    log.flip(torn + 60)
    assert log.vouched() == (torn, says)


def test_the_last_batch_that_says_flushed_counts(log):
    torn = log.append()
    log.append(flushed_seq=1)
    last = log.append(flushed_seq=2)
    log.append(flushed_seq=0)
    log.flip(torn + 8)
    assert log.vouched() == (torn, last)


def test_a_whole_damaged_file_is_vouched_for_by_its_last_batch(log):
    first = log.append()
    log.append(flushed_seq=1)
    third = log.append(flushed_seq=2)
    log.flip(first + 8)
    assert log.vouched() == (first, third)


def test_an_end_mark_makes_it_damage(log):
    log.append()
    torn = log.append()
    log.append()
    end = log.end()
    assert log.vouched() == (end, None)  # whole: the reading stops at the mark itself
    log.flip(torn + 60)
    assert log.vouched() == (torn, end)


def test_an_end_mark_where_the_reading_stopped_is_no_gap(log):
    log.append()
    end = log.end()
    log.data += bytes(500)
    assert log.vouched() == (end, None)


def test_a_damaged_end_mark_vouches_for_nothing(log):
    torn = log.append()
    log.flip(torn + 60)
    end = log.end()
    for position in range(end, end + END_BYTES):
        log.flip(position)
        assert log.vouched() == (torn, None)
        log.flip(position)
    assert log.vouched() == (torn, end)


def test_the_mark_of_an_earlier_close_under_a_later_batch_is_gone(log):
    log.append()
    mark = log.end()
    del log.data[mark:]
    log.append()
    assert log.read() == log.offsets
    assert log.vouched() == (len(log.data), None)


# -- windows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [64, 100, 300])
def test_every_window_reads_the_same(log, monkeypatch, window):
    monkeypatch.setattr(reading, "WINDOW_BYTES", window)
    for number in range(20):
        log.append(bytes(number * 17))
    assert log.read() == log.offsets
    assert [batch.offset for batch in log.reader().later_batches(log.start)] == log.offsets


def test_batches_larger_than_the_window(log, memory_reader):
    sizes = (10, reading.WINDOW_BYTES + 1, 3 * reading.WINDOW_BYTES, 10)
    for size in sizes:
        log.append(b"\xa5" * size)
    assert log.read() == log.offsets
    log.flip(log.offsets[2] + 2 * reading.WINDOW_BYTES)
    reader, _ = memory_reader(log.data)
    assert [batch.offset for batch in reader.later_batches(log.start)] == [
        *log.offsets[:2],
        log.offsets[3],
    ]


def test_a_magic_that_straddles_windows_is_found(new_log, monkeypatch):
    window = 64
    monkeypatch.setattr(reading, "WINDOW_BYTES", window)
    for gap in range(1, 3 * window):
        log = new_log()
        torn = len(log.data)
        log.data += b"\xee" * gap
        behind = log.append(flushed_seq=1)
        reader = log.reader()
        assert [batch.offset for batch in reader.later_batches(torn)] == [behind]
        assert reader.vouched_end(torn, 0) == behind
        end = log.end()
        assert log.reader().vouched_end(torn, 0) == end


def test_small_reads_share_a_window(log, memory_reader):
    for _ in range(1000):
        log.append(b"small")
    reader, reads = memory_reader(log.data)
    assert len(list(reader.batches(log.start, log.first_chain, 0))) == 1000
    # Few, but not one for each batch: the last window ends with the file and is asked for again.
    assert len(reads) < 10


def test_bytes_behind_the_window_and_before_it(memory_reader, monkeypatch):
    monkeypatch.setattr(reading, "WINDOW_BYTES", 16)
    data = bytes(range(100))
    reader, _ = memory_reader(data)
    for offset, length in [(0, 4), (4, 12), (4, 13), (50, 40), (0, 1), (99, 1), (90, 30), (98, 8)]:
        assert reader.bytes_at(offset, length) == data[offset : offset + length]
