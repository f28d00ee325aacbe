"""The sum of an array over the workers of a fit on CPUs: a ring of TCP connections, each worker sending to the next.

The array is cut into as many parts as there are workers. Going round once, each part gathers the sum on its way and ends whole at one
worker; going round again it is copied to the others, so all hold the same bits. Each worker sends 2 (N - 1) / N of the array, whatever
N. (Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations)

Ours, as TensorFlow's goes through gRPC: it took 2.1 ms for the 0.8 MB gradient of the original model between two processes with one
core each, this takes 0.6 (docs/log.md), and a step of 2,048 rows computes for some 30.
"""

import hmac
import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

import numpy as np

JOIN_SECONDS = 60.0  # until all workers must have come to listen; Ray Train starts them together
GREETING_SECONDS = 5.0  # that one who connects has to say who it is
RETRY_SECONDS = 0.05  # between two tries to reach a worker that does not listen yet
RANK_BYTES = 4


class Ring:
    """One worker's place in the ring; made by all workers at about the same time.

    Args:
        rank: of this worker.
        addresses: host:port of every worker, by rank, two at least; this worker listens on its own.
        secret: known to the workers alone: who connects without it is sent away.
        seconds: to wait for the others.

    Raises:
        OSError: the port is taken, or a neighbour did not come; a fit that Ray starts again gets other ports.
    """

    def __init__(self, rank: int, addresses: Sequence[str], *, secret: bytes, seconds: float = JOIN_SECONDS) -> None:
        self.rank, self.workers = rank, len(addresses)
        self._next, self._before = (rank + 1) % self.workers, (rank - 1) % self.workers
        deadline = time.monotonic() + seconds
        host, port = _parsed(addresses[rank])
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
            self._to = _connected(addresses[self._next], deadline)
            self._to.sendall(secret + rank.to_bytes(RANK_BYTES))
            greeting = secret + self._before.to_bytes(RANK_BYTES)
            try:
                self._from = _accepted(listener, greeting, deadline, f"worker {self._before} at {addresses[self._before]}")
            except BaseException:
                self._to.close()
                raise
        for connection in (self._to, self._from):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum of the workers' arrays, the same bits in each; all must call it, with one shape and dtype.

        Raises:
            ConnectionError: a neighbour is gone.
        """
        summed = np.array(values).reshape(-1)
        parts = [summed[start:stop] for start, stop in pairwise(len(summed) * part // self.workers for part in range(self.workers + 1))]
        arrived = np.empty(max(map(len, parts)), summed.dtype)
        for turn in range(self.workers - 1):
            leaving, coming = parts[(self.rank - turn) % self.workers], parts[(self.rank - turn - 1) % self.workers]
            here = arrived[: len(coming)]
            self._pass(leaving, here)
            coming += here
        for turn in range(self.workers - 1):
            self._pass(parts[(self.rank - turn + 1) % self.workers], parts[(self.rank - turn) % self.workers])
        return summed.reshape(values.shape)

    def _pass(self, leaving: np.ndarray, coming: np.ndarray) -> None:
        """Send to the next worker while the one before fills `coming`: who only sent would wait until somebody reads."""
        unsent, unfilled = leaving.data.cast("B"), coming.data.cast("B")
        waiting = select.poll()
        waiting.register(self._to, select.POLLOUT if unsent else 0)
        waiting.register(self._from, select.POLLIN if unfilled else 0)
        while unsent or unfilled:
            for descriptor, _ in waiting.poll():
                if descriptor == self._from.fileno() and unfilled:
                    count = self._from.recv_into(unfilled)
                    if not count:
                        raise ConnectionError(f"training: worker {self._before} left worker {self.rank} waiting for a gradient")
                    unfilled = unfilled[count:]
                elif descriptor == self._to.fileno() and unsent:
                    unsent = unsent[self._to.send(unsent) :]
            waiting.modify(self._to, select.POLLOUT if unsent else 0)
            waiting.modify(self._from, select.POLLIN if unfilled else 0)

    def close(self) -> None:
        """Leave the ring."""
        self._to.close()
        self._from.close()


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _connected(address: str, deadline: float) -> socket.socket:
    """A connection to the worker at the address, which may not listen yet."""
    while True:
        try:
            connection = socket.create_connection(_parsed(address), timeout=max(deadline - time.monotonic(), 0.1))
        except OSError as error:
            if time.monotonic() >= deadline:
                raise ConnectionError(
                    f"training: the worker at {address} must answer, got {error}. Let the nodes reach one another on every port."
                ) from error
        else:
            if connection.getsockname() != connection.getpeername():
                return connection
            connection.close()  # to itself, as TCP allows where nobody listens yet and the port it comes from is by chance the same
        time.sleep(RETRY_SECONDS)


def _accepted(listener: socket.socket, greeting: bytes, deadline: float, whom: str) -> socket.socket:
    """The connection of the worker that greets so; others are sent away."""
    while (left := deadline - time.monotonic()) > 0:
        listener.settimeout(left)
        with suppress(TimeoutError, ConnectionError):  # of strangers too
            connection, _ = listener.accept()
            try:
                connection.settimeout(min(left, GREETING_SECONDS))
                if hmac.compare_digest(connection.recv(len(greeting), socket.MSG_WAITALL), greeting):
                    return connection
            except BaseException:
                connection.close()
                raise
            connection.close()
    raise ConnectionError(
        f"training: {whom} must connect, nobody with the fit's secret did. Let the nodes reach one another on every port."
    )
