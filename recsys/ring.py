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
from contextlib import ExitStack, suppress
from itertools import pairwise

import numpy as np

JOIN_SECONDS = 300.0  # until all workers must have come to listen; each imports TensorFlow first, on a cold disk slowly
GREETING_SECONDS = 5.0  # that one who connects has to say who it is
RETRY_SECONDS = 0.05  # between two tries to reach a worker that does not listen yet
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}  # seconds, seconds, tries; as far as the system has them
BROKEN = select.POLLERR | select.POLLHUP | select.POLLNVAL
OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),  # a link that a firewall dropped without a word fails after two minutes
    *((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in KEEPALIVE.items() if hasattr(socket, name)),
)


class Ring:
    """One worker's place in the ring; made by all workers at about the same time.

    Args:
        rank: of this worker.
        addresses: host:port of every worker, by rank, two at least; this worker listens on its port.
        secret: known to the workers alone: who connects without it is sent away. What is summed is not encrypted.
        seconds: to wait for the others.

    Raises:
        ConnectionError: the port is taken, or a neighbour did not come; a fit that Ray starts again gets other ports.
    """

    def __init__(self, rank: int, addresses: Sequence[str], *, secret: bytes, seconds: float = JOIN_SECONDS) -> None:
        self.rank, self.workers, self.addresses = rank, len(addresses), tuple(addresses)
        self._next, self._before = (rank + 1) % self.workers, (rank - 1) % self.workers
        deadline = time.monotonic() + seconds
        whom = f"worker {self._before} at {addresses[self._before]}"
        with _listener(rank, addresses[rank]) as listener, ExitStack() as opened:
            self._to = opened.enter_context(_connected(addresses[self._next], greeting(secret, rank, addresses), deadline))
            self._from = _accepted(listener, greeting(secret, self._before, addresses), deadline, whom)
            opened.pop_all()  # both are there and stay open
        for connection in (self._to, self._from):
            for level, option, value in OPTIONS:
                connection.setsockopt(level, option, value)
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
        to, before = self._to.fileno(), self._from.fileno()
        waiting = select.poll()
        waiting.register(to, select.POLLOUT if unsent else 0)
        waiting.register(before, select.POLLIN if unfilled else 0)
        while unsent or unfilled:
            for descriptor, event in waiting.poll():
                if descriptor == before and unfilled:
                    try:
                        count = self._from.recv_into(unfilled)
                    except BlockingIOError:
                        continue
                    except OSError as error:
                        raise self._gone(self._before, str(error)) from error
                    if not count:
                        raise self._gone(self._before, "the end of the connection")
                    unfilled = unfilled[count:]
                    if not unfilled:
                        waiting.unregister(before)
                elif descriptor == to:
                    # reported whatever was asked for: passed over, the loop would turn at full speed
                    if event & BROKEN:
                        raise self._gone(self._next, "a broken connection")
                    if unsent:
                        try:
                            unsent = unsent[self._to.send(unsent) :]
                        except BlockingIOError:
                            continue
                        except OSError as error:
                            raise self._gone(self._next, str(error)) from error
                        if not unsent:
                            waiting.modify(to, 0)

    def _gone(self, neighbour: int, seen: str) -> ConnectionError:
        return ConnectionError(
            f"training: worker {self.rank} must sum gradients with worker {neighbour} at {self.addresses[neighbour]}, got {seen}. "
            "Ray Train starts the workers again from the last checkpoint; see that worker's log for why it ended."
        )

    def close(self) -> None:
        """Leave the ring; the neighbours hear of it at once."""
        self._to.close()
        self._from.close()


def greeting(secret: bytes, rank: int, addresses: Sequence[str]) -> bytes:
    """What a worker says first to the next: it knows the secret, without telling it."""
    return hmac.digest(secret, f"{rank} of {' '.join(addresses)}".encode(), "sha256")


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _listener(rank: int, address: str) -> socket.socket:
    """On the port of every interface: the address that others know a node by need not be one of its own."""
    host, port = _parsed(address)
    try:
        return socket.create_server(("", port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConnectionError(
            f"training: worker {rank} must listen on {address}, got {error}. Ray Train starts the workers again, on other ports."
        ) from error


def _connected(address: str, greeting: bytes, deadline: float) -> socket.socket:
    """A connection to the worker at the address, which may not listen yet; it has been greeted."""
    while True:
        seen = "a connection of this worker to itself"  # TCP allows it where nobody listens yet and both ports are by chance the same
        try:
            with ExitStack() as opened:
                connection = opened.enter_context(
                    socket.create_connection(_parsed(address), timeout=max(deadline - time.monotonic(), 0.1))
                )
                if connection.getsockname() != connection.getpeername():
                    connection.sendall(greeting)
                    opened.pop_all()
                    return connection
        except OSError as error:
            seen = str(error)
        if time.monotonic() >= deadline:
            raise ConnectionError(
                f"training: the worker at {address} must answer, got {seen}. Let the nodes reach one another on every port."
            )
        time.sleep(RETRY_SECONDS)


def _accepted(listener: socket.socket, greeting: bytes, deadline: float, whom: str) -> socket.socket:
    """The connection of the worker that greets so; others are sent away."""
    while (left := deadline - time.monotonic()) > 0:
        listener.settimeout(left)
        with suppress(TimeoutError, ConnectionError), ExitStack() as opened:  # of strangers too
            connection = opened.enter_context(listener.accept()[0])
            if hmac.compare_digest(_said(connection, len(greeting), min(left, GREETING_SECONDS)), greeting):
                opened.pop_all()
                return connection
    raise ConnectionError(
        f"training: {whom} must connect, nobody with the fit's secret did. Let the nodes reach one another on every port."
    )


def _said(connection: socket.socket, length: int, seconds: float) -> bytes:
    """The first bytes that the other side sends, fewer if it ends before."""
    said, deadline = b"", time.monotonic() + seconds
    while len(said) < length:
        connection.settimeout(max(deadline - time.monotonic(), 0.01))
        more = connection.recv(length - len(said))
        if not more:
            break
        said += more
    return said
