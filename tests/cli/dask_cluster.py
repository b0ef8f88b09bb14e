"""A Dask cluster on loopback, of real processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def scheduler() -> Generator[str]:
    """Run a scheduler, which says its address as soon as it listens there."""
    words = ("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    with _running(*words, "--no-show", stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = (line.partition("Scheduler at:") for line in process.stderr)
        yield next(address.strip() for _, found, address in said if found)


@contextmanager
def worker(address: str) -> Generator[None]:
    """Run a worker with one thread for the scheduler at *address*."""
    words = ("dask_worker", address, "--nthreads", "1", "--no-dashboard", "--no-nanny")
    with _running(*words, "--host", "127.0.0.1", stderr=subprocess.DEVNULL):
        yield


@contextmanager
def _running(module: str, *words: str, stderr: int) -> Generator[subprocess.Popen[str]]:
    command = (sys.executable, "-m", f"distributed.cli.{module}", *words)
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=stderr, text=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
