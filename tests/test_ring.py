import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.ring import Ring, greeting

SECRET = b"known to the workers"


def free(count: int) -> list[str]:
    """Addresses on this machine that nobody listens on."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in held]
    for one in held:
        one.close()
    return addresses


def side_by_side(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(timeout=30) for future in [pool.submit(call) for call in calls]]


@contextmanager
def ring_of(workers: int) -> Iterator[list[Ring]]:
    addresses = free(workers)
    rings = side_by_side([lambda rank=rank: Ring(rank, addresses, secret=SECRET, seconds=10) for rank in range(workers)])
    try:
        yield rings
    finally:
        for one in rings:
            one.close()


def totals(rings: Sequence[Ring], values: Sequence[np.ndarray]) -> list[np.ndarray]:
    return side_by_side([lambda ring=ring, mine=mine: ring.total(mine) for ring, mine in zip(rings, values, strict=True)])


@settings(max_examples=25)
@given(st.integers(2, 5), st.integers(0, 40), st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32 - 1))
def test_every_worker_has_the_sum_with_the_same_bits(workers: int, size: int, dtype: Any, seed: int):
    values = list(np.random.default_rng(seed).standard_normal((workers, size)).astype(dtype))
    with ring_of(workers) as rings:
        found = totals(rings, values)
    assert {one.tobytes() for one in found} == {found[0].tobytes()}
    assert found[0].dtype == dtype
    np.testing.assert_allclose(found[0], np.sum(values, axis=0), rtol=1e-5, atol=1e-5)


def test_arrays_larger_than_the_buffers_between_workers_arrive_whole():
    values = [np.arange(3_000_000, dtype=np.float64) * (rank + 1) for rank in range(3)]
    with ring_of(3) as rings:
        found = totals(rings, values)
    for one in found:
        np.testing.assert_array_equal(one, np.arange(3_000_000) * (1.0 + 2.0 + 3.0))


def test_sums_follow_one_another_keep_their_shapes_and_leave_what_was_given_as_it_was():
    mine, theirs = np.ones((2, 3), np.float32), np.full((2, 3), 2.0, np.float32)
    mine.flags.writeable = False  # as TensorFlow hands its tensors over
    with ring_of(2) as rings:
        for _ in range(3):
            assert [one.tolist() for one in totals(rings, [mine, theirs])] == [[[3.0] * 3] * 2] * 2
        assert [float(one) for one in totals(rings, [np.array(1.5), np.array(2.0)])] == [3.5, 3.5]
    assert mine.tolist() == [[1.0] * 3] * 2
    assert theirs.tolist() == [[2.0] * 3] * 2


def test_who_does_not_know_the_secret_is_sent_away_and_the_ring_still_closes():
    addresses = free(2)
    host, _, port = addresses[0].partition(":")
    sent_away: list[bytes] = []
    said = threading.Event()

    def intrude() -> None:
        while True:
            try:
                connection = socket.create_connection((host, int(port)), timeout=10)
                break
            except OSError:
                continue
        with connection:
            connection.sendall(greeting(b"another secret", 1, addresses))
            said.set()
            sent_away.append(connection.recv(1))

    with ThreadPoolExecutor(3) as pool:
        stranger = pool.submit(intrude)
        first = pool.submit(Ring, 0, addresses, secret=SECRET, seconds=10)
        assert said.wait(10)  # it is the first in the queue
        second = pool.submit(Ring, 1, addresses, secret=SECRET, seconds=10)
        made = [first.result(), second.result()]
        stranger.result()
    assert sent_away == [b""]
    assert [one.tolist() for one in totals(made, [np.ones(2), np.ones(2)])] == [[2.0, 2.0]] * 2
    for one in made:
        one.close()


def test_a_worker_that_does_not_come_is_named():
    addresses = free(2)
    with pytest.raises(ConnectionError, match=rf"worker at {addresses[1]} must answer.*Let the nodes reach one another"):
        Ring(0, addresses, secret=SECRET, seconds=0.3)


def test_a_worker_that_leaves_ends_the_others_sum_with_a_sentence():
    with ring_of(3) as rings:
        rings[2].close()
        with pytest.raises(ConnectionError, match=r"training: worker 0 .*worker [12] at 127\.0\.0\.1:\d+.*starts the workers again"):
            rings[0].total(np.ones(9))


def test_a_dead_next_worker_is_seen_while_the_one_before_is_silent():
    """It used to wait at full speed for the one before: poll reports a broken connection whatever it is asked for."""
    with ring_of(3) as rings:
        rings[1].close()  # worker 0 sends to it; worker 2, whom worker 0 reads from, stays silent
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(rings[0].total, np.ones(9))
            with pytest.raises(ConnectionError, match="worker 1 at"):
                waiting.result(timeout=10)


def test_a_greeting_that_comes_in_pieces_is_the_neighbour_s():
    addresses = free(2)
    host, _, port = addresses[0].partition(":")
    listening = socket.create_server((addresses[1].partition(":")[0], int(addresses[1].rpartition(":")[2])))
    with listening, ThreadPoolExecutor(1) as pool:
        made = pool.submit(Ring, 0, addresses, secret=SECRET, seconds=10)
        theirs, _ = listening.accept()
        said = theirs.recv(1024)
        assert said == greeting(SECRET, 0, addresses)
        assert SECRET not in said
        mine = socket.create_connection((host, int(port)), timeout=10)
        whole = greeting(SECRET, 1, addresses)
        mine.sendall(whole[:5])
        time.sleep(0.3)
        mine.sendall(whole[5:])
        ring = made.result(timeout=10)
        ring.close()
        mine.close()
        theirs.close()


def test_a_port_that_is_taken_is_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        addresses = [f"127.0.0.1:{taken.getsockname()[1]}", *free(1)]
        with pytest.raises(ConnectionError, match=rf"training: worker 0 must listen on {addresses[0]}, got .*in use.*other ports"):
            Ring(0, addresses, secret=SECRET, seconds=1)


def test_a_connection_that_came_back_to_itself_is_none(monkeypatch: pytest.MonkeyPatch):
    addresses = free(2)
    connect = socket.create_connection
    tries: list[socket.socket] = []

    def to_itself_first(address: tuple[str, int], timeout: float) -> socket.socket:
        if not tries:
            mine = socket.socket()
            mine.bind(("127.0.0.1", 0))
            mine.connect(mine.getsockname())  # what TCP does by chance where nobody listens
            tries.append(mine)
            return mine
        return connect(address, timeout=timeout)

    monkeypatch.setattr("recsys.ring.socket.create_connection", to_itself_first)
    rings = side_by_side([lambda rank=rank: Ring(rank, addresses, secret=SECRET, seconds=5) for rank in range(2)])
    assert tries[0].fileno() == -1  # closed
    assert [one.tolist() for one in totals(rings, [np.ones(2), np.ones(2)])] == [[2.0, 2.0]] * 2
    for one in rings:
        one.close()
