"""How a process is told to end, and how a block of it is: SIGTERM, Ctrl-C, and a time that comes.

Ray raises other exceptions than those that handlers of signals raise: inside `ray.get` every SystemExit comes as one of status 1. So
what came is remembered, and `as_told` raises it again.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_terminated: list[int] = []  # numbers of the signals that came


class Terminated(SystemExit):
    """SIGTERM came, as Kubernetes, `ray job stop` and systemd send it: blocks are left, so that leases are freed, and the job ends."""


class Cut(BaseException):
    """The time of a block is over; no Exception, as no step may take it for a mistake of its own."""


def listen() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt and SIGTERM Terminated, wherever the process is; in its main thread alone."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background processes are started to ignore
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: object) -> None:  # what a handler gets
    signal.signal(number, signal.SIG_IGN)  # once is enough: a second one would break off the clearing up
    _terminated.append(number)
    raise Terminated(128 + number)


def terminated() -> bool:
    """Whether SIGTERM came."""
    return bool(_terminated)


@contextmanager
def as_told() -> Iterator[None]:
    """A block that SIGTERM ends with Terminated, whatever became of it on the way."""
    try:
        yield
    except Terminated:
        raise
    except (SystemExit, KeyboardInterrupt) as error:
        if _terminated:
            raise Terminated(128 + _terminated[0]) from error
        raise


@contextmanager
def cut_if(over: Callable[[threading.Event], bool]) -> Iterator[None]:
    """A block that ends with Cut, wherever it is, once `over` returns True; outside of the main thread it is never asked.

    It is KeyboardInterrupt that the block gets, the one exception that Ray hands on as it is; but of a signal of its own, as Ray Train
    answers Ctrl-C by waiting for workers that may never come.

    Args:
        over: runs in a thread beside the block; the event that it gets is set when the block is left, and what it returns then is not
            heard.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    left, cut, lock = threading.Event(), threading.Event(), threading.Lock()

    def watch() -> None:
        if over(left):
            with lock:  # a signal that came when the block is left would end the process
                if not left.is_set():
                    cut.set()
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, signal.default_int_handler)
    try:
        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            with lock:
                left.set()  # and a signal that was sent is heard here
    except KeyboardInterrupt:
        if cut.is_set():
            raise Cut from None
        raise
    finally:
        signal.signal(signal.SIGUSR2, before)


@contextmanager
def cut_after(seconds: float | None) -> Iterator[None]:
    """A block that ends with Cut after so many seconds, as `cut_if`; None: never."""
    if seconds is None:
        yield
        return
    with cut_if(lambda left: not left.wait(max(seconds, 0.0))):
        yield
