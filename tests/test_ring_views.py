"""Loans and leases: records that are written and read where they lie."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from ring_help import LARGEST, PAGE_BYTES, edge_sizes, opened, pattern, roles

from shmbus import Closed, Consumer, Producer, Refused, TimedOut, WouldBlock

pytestmark = pytest.mark.patience(60)


def fill(tx: Producer) -> int:
    """Small records until the channel is full; how many."""
    count = 0
    while tx.try_send(None):
        count += 1
    return count


def drain(rx: Consumer) -> int:
    """How many records there are to receive."""
    return len(rx.recv_many(PAGE_BYTES))


# ---- loans


def test_what_is_written_into_a_loan_is_received() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        for number, size in enumerate(edge_sizes()):
            with tx.loan(size, timeout=0) as buffer:
                assert len(buffer) == size
                assert not buffer.readonly
                buffer[:] = pattern(number, size)
            assert rx.recv(timeout=0) == pattern(number, size)


def test_a_loan_can_be_committed_shorter_and_not_longer() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        loan = tx.loan(100)
        loan.buffer[:5] = b"short"
        with pytest.raises(ValueError, match="100 bytes long; 101"):
            loan.commit(101)
        loan.commit(5)
        assert rx.recv() == b"short"
        for end in (loan.commit, loan.abort):
            with pytest.raises(Closed):
                end()


def test_nothing_is_received_before_the_commit_not_even_what_comes_behind() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.producer() as other, jobs.consumer() as rx:
        with tx.loan(4) as buffer:
            other.send("behind")
            with pytest.raises(WouldBlock):
                rx.try_recv()
            assert rx.stats()["blocked_by_pid"] == jobs.stats()["participants"][0]["pid"]
            buffer[:] = b"loan"
        assert rx.recv_many(9) == [b"loan", "behind"]


def test_an_aborted_loan_is_stepped_over_however_it_ends() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        tx.loan(10).abort()
        with pytest.raises(RuntimeError, match="in the body"), tx.loan(10):
            raise RuntimeError("in the body")
        loan = tx.loan(10)
        tx.send("after")
        with pytest.raises(WouldBlock):
            rx.try_recv()
        del loan
        gc.collect()
        assert rx.recv_many(9) == ["after"]


def test_views_keep_a_loan_open() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        loan = tx.loan(8)
        array = np.frombuffer(loan.buffer, dtype=np.uint64)
        for end in (loan.commit, loan.abort):
            with pytest.raises(BufferError, match="release"):
                end()
        array[0] = 7
        with pytest.raises(WouldBlock):
            rx.try_recv()
        del array
        loan.commit()
        assert rx.recv() == (7).to_bytes(8, "little")


def test_a_send_that_waits_for_its_own_loan_is_refused_instead() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        loan = tx.loan(10)
        assert fill(tx) == PAGE_BYTES // 64 - 1
        assert not tx.try_send(None)
        with pytest.raises(Refused, match="loan"):
            tx.send(None)
        with pytest.raises(Refused, match="loan"):
            tx.loan(1, timeout=5)
        loan.abort()
        rx.recv()
        tx.send(None)


def test_a_loan_waits_for_space_no_longer_than_its_timeout() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        fill(tx)
        with pytest.raises(TimedOut):
            tx.loan(10, timeout=0)
        rx.recv()
        tx.loan(10, timeout=0).abort()


def test_closing_a_producer_waits_for_its_loan() -> None:
    with opened() as jobs, jobs.consumer() as rx:
        tx = jobs.producer()
        loan = tx.loan(4)
        tx.close()
        with pytest.raises(Closed):
            tx.send(1)
        with pytest.raises(TimedOut):
            rx.recv(timeout=0)
        loan.buffer[:] = b"last"
        loan.commit()
        assert list(rx) == [b"last"]
        assert roles(jobs) == ["consumer"]


def test_several_loans_end_in_any_order_and_arrive_in_that_of_their_beginning() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        loans = [tx.loan(1) for _ in range(10)]
        for place in (9, 0, 5, 1, 2, 8, 3, 4, 7):
            loans[place].buffer[0] = place
            loans[place].commit()
        loans[6].abort()
        assert rx.recv_many(99) == [bytes([place]) for place in range(10) if place != 6]


# ---- leases


def test_a_lease_shows_the_record_where_it_lies_and_read_only() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        for number, size in enumerate(edge_sizes()):
            tx.send_bytes(pattern(number, size), timeout=0)
            with rx.lease(timeout=0) as view:
                assert view.readonly
                assert view == pattern(number, size)


def test_a_lease_holds_producers_back_until_it_is_released() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        tx.send_bytes(b"held")
        lease = rx.lease()
        assert fill(tx) == PAGE_BYTES // 64 - 1
        assert drain(rx) == PAGE_BYTES // 64 - 1
        assert not tx.try_send(None)
        assert lease.view == b"held"
        lease.release()
        lease.release()
        assert fill(tx) == PAGE_BYTES // 64


def test_an_array_made_from_a_lease_keeps_the_record_for_as_long_as_it_lives() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        tx.send_bytes(np.arange(10).tobytes())
        lease = rx.lease()
        array = np.frombuffer(lease.view, dtype=np.int64)
        with pytest.raises(BufferError, match="still exist"):
            lease.release()
        del lease
        gc.collect()
        fill(tx)
        drain(rx)
        assert not tx.try_send(None)
        assert array.tolist() == list(range(10))
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        del array
        gc.collect()
        assert tx.try_send(None)


def test_an_array_outlives_its_consumer_and_its_channel_object() -> None:
    with opened() as jobs, jobs.producer() as tx:
        rx = jobs.consumer()
        tx.send_bytes(bytes(range(100)))
        array = np.frombuffer(rx.lease().view, dtype=np.uint8)
        rx.close()
        assert rx.closed
        with pytest.raises(Closed):
            rx.recv()
        assert roles(jobs) == ["consumer", "producer"]  # it stays until the view has gone
        tx.close()
        assert array.tolist() == list(range(100))
        del array
        gc.collect()
        assert roles(jobs) == []


def test_the_channel_can_be_put_away_under_an_array_and_the_array_stays_whole() -> None:
    with opened() as jobs:
        tx, rx = jobs.producer(), jobs.consumer()
        tx.send_bytes(bytes(range(100)))
        array = np.frombuffer(rx.lease().view, dtype=np.uint8)
        jobs.detach()
        with pytest.raises(BufferError):
            jobs.memory().close()
        del tx, rx
        gc.collect()
        assert array.tolist() == list(range(100))
        del array
        gc.collect()


def test_records_of_half_the_ring_are_leased_one_after_the_other() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        for number in range(50):
            tx.send_bytes(pattern(number, LARGEST), timeout=0)
            with rx.lease(timeout=0) as view:
                assert view == pattern(number, LARGEST)


def test_as_many_leases_as_there_are_can_be_held_and_one_more_is_refused() -> None:
    with opened("16 KiB") as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        tx.send_many(range(130))
        leases = [rx.lease(timeout=0) for _ in range(128)]
        with pytest.raises(Refused, match="leases"):
            rx.lease(timeout=0)
        assert rx.recv(timeout=0) == 128  # a copy needs none
        leases.pop().release()
        rx.lease(timeout=0).release()
        for lease in leases:
            lease.release()
