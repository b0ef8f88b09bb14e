"""Trio a step at a time, for callers that are not async themselves."""

from __future__ import annotations

import queue
import threading
from collections.abc import Awaitable, Callable
from typing import TypeAlias, TypeVar, final

import attrs
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

_T = TypeVar("_T")
_Command: TypeAlias = Callable[[], Awaitable[None]]


@final
@attrs.define(eq=False)
class TrioSteps:
    """A Trio run in virtual time that moves only while `do` is called.

    It has a thread of its own, but the two never run at the same time: between two
    steps Trio's thread waits for the next one, with all its tasks where they are.
    So nothing depends on real time, and the same steps do the same. A guest run
    would need no thread for Trio, but one for each wait.
    """

    _commands: queue.SimpleQueue[_Command | None] = attrs.field(
        factory=queue.SimpleQueue[_Command | None], init=False
    )
    _done: queue.SimpleQueue[BaseException | None] = attrs.field(
        factory=queue.SimpleQueue[BaseException | None], init=False
    )
    _nursery: trio.Nursery = attrs.field(init=False)
    _thread: threading.Thread = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="Trio", daemon=True)
        self._thread.start()

    def do(self, function: Callable[[], Awaitable[_T]]) -> _T:
        """Await *function* in Trio and then let all tasks run until they wait.

        No time passes but what *function* sleeps.

        Raises:
          Whatever *function* raises, or a task that was started.
        """
        result: list[_T] = []

        async def command() -> None:
            result.append(await function())

        self._commands.put(command)
        self._wait()
        return result[0]

    def start(self, task: Callable[[], Awaitable[None]]) -> None:
        """Start a task and let it run until it waits."""

        async def start() -> None:
            self._nursery.start_soon(task)
            await trio.lowlevel.checkpoint()

        self.do(start)

    def close(self) -> None:
        """Cancel what still runs, and end the run.

        Raises:
          Whatever a task raises.
        """
        if self._thread.is_alive():
            self._commands.put(None)
            self._wait()
        self._thread.join()

    def _wait(self) -> None:
        error = self._done.get()
        if error is not None:
            raise error

    def _run(self) -> None:
        try:
            trio.run(self._main, clock=MockClock(autojump_threshold=0))
        except BaseException as error:  # noqa: ASYNC103, BLE001 - raised in the other thread
            self._done.put(error)
        else:
            self._done.put(None)

    async def _main(self) -> None:
        async with trio.open_nursery() as self._nursery:
            # Blocks Trio, on purpose: nothing moves between two steps.
            while (command := self._commands.get()) is not None:
                error: BaseException | None = None
                try:
                    await command()
                except Exception as raised:  # noqa: BLE001 - raised in the other thread
                    error = raised
                # The clock does not jump while this waits.
                await wait_all_tasks_blocked()
                self._done.put(error)
            self._nursery.cancel_scope.cancel(reason="there are no more steps")
