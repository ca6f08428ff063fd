# SPDX-License-Identifier: Apache-2.0
"""Where evaluations run: in this process, on all cores, or on the machines of a Dask scheduler. Results come as they are ready."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from lutra.exploration.evaluate import Figures, Task, evaluate, models_hash
from lutra.hls_models.errors import LutraError, ToolError

SCHEMES = ("tcp", "tls", "ucx", "ws", "wss")
"""Of addresses that the distributed scheduler listens at."""
__all__ = ["CONNECT_SECONDS", "Run", "workers"]

CONNECT_SECONDS = 5.0

Run = Callable[[Sequence[Task]], Iterator[tuple[int, Figures]]]
"""(place in the sequence, figures) of every task, in the order in which they finish."""


@contextmanager
def workers(jobs: int | None = None, scheduler: str | None = None) -> Iterator[Run]:
    """Evaluations on ``jobs`` processes (default: all cores; 1: here), or on a Dask ``scheduler`` (tcp://host:port).

    Raises
    ------
    LutraError : the scheduler cannot be reached, is lost later, or has workers of another version or that die
    ToolError : a scheduler is given and the package `distributed` is missing
    """
    if scheduler is not None:
        with _dask(scheduler) as run:
            yield run
    elif (jobs or os.cpu_count() or 1) == 1:
        yield _here
    else:
        with _pool(jobs or os.cpu_count() or 1) as run:
            yield run


def _here(tasks: Sequence[Task]) -> Iterator[tuple[int, Figures]]:
    for place, task in enumerate(tasks):
        yield place, evaluate(task)


@contextmanager
def _pool(jobs: int) -> Iterator[Run]:
    """Spawned processes: an interrupt is the parent's affair."""
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))

    def run(tasks: Sequence[Task]) -> Iterator[tuple[int, Figures]]:
        futures: dict[Future[Figures], int] = {pool.submit(evaluate, task): place for place, task in enumerate(tasks)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise ToolError(f"a process of the search ended before its result (out of memory?); fewer may do: --jobs {max(1, jobs // 2)}") from None

    try:
        yield run
        pool.shutdown()
    except BaseException:
        running = list((pool._processes or {}).values())  # before 3.14 no public way to end what is being computed
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.terminate()
        raise


@contextmanager
def _dask(address: str) -> Iterator[Run]:
    try:
        import distributed
    except ImportError:
        raise ToolError("--scheduler needs the package distributed: pip install 'lutra[explore]'") from None
    import logging
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(address)
        sound = parts.scheme in SCHEMES and bool(parts.hostname) and bool(parts.port)
    except ValueError:  # no number for a port
        sound = False
    if not sound:
        raise LutraError(f"scheduler must be tcp://HOST:PORT (or tls://), not {address!r}; nearest: tcp://127.0.0.1:8786, what dask scheduler listens at")
    # a connection that fails is told in one line by us
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client: Any = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError, ImportError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise LutraError(f"scheduler {address}: cannot be reached within {CONNECT_SECONDS:g} s ({reason}); dask scheduler starts one") from None
    try:
        with _lost(address):
            _check_workers(client, address)

        def run(tasks: Sequence[Task]) -> Iterator[tuple[int, Figures]]:
            with _lost(address):
                futures = {future: place for place, future in enumerate(client.map(evaluate, tasks, pure=False, retries=2))}
                for future in distributed.as_completed(futures, loop=client.loop):
                    yield futures[future], future.result()

        yield run
    finally:
        client.close(timeout=CONNECT_SECONDS)


@contextmanager
def _lost(address: str) -> Iterator[None]:
    """What goes wrong beyond our own code while a scheduler works for us, in one line. Whoever searches has kept each result as it came."""
    import distributed
    from distributed.client import ClosedClientError

    kept = "what was counted is kept: the same command goes on from there"
    try:
        yield
    except distributed.KilledWorker:
        raise LutraError(f"scheduler {address}: its workers died one after another at the same core (out of memory?); {kept}") from None
    except (CancelledError, ClosedClientError, OSError) as error:  # a connection that is closed or times out is an OSError
        raise LutraError(f"scheduler {address}: was lost during the search ({type(error).__name__}); {kept}") from None


def _check_workers(client: Any, address: str) -> None:
    """Refuses machines without lutra or with other models: they would count other cycles."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError:
        raise LutraError(f"scheduler {address}: has no workers; dask worker {address} starts one") from None
    try:
        hashes = client.run(models_hash)
    except ModuleNotFoundError:
        raise LutraError(f"scheduler {address}: its workers lack lutra; install the same version there") from None
    others = [worker for worker, found in hashes.items() if found != models_hash()]
    if others:
        raise LutraError(f"scheduler {address}: worker {others[0]} has another version of lutra; install the same there")
