"""Deliberate faults of the core, to see that simulated migrations find them.

Each replaces a few words in the source of one function, while a test runs.
"""

from __future__ import annotations
import __future__

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, Final

import attrs
import pytest

from trio_vfio._migration._calls import DeviceCalls
from trio_vfio._migration._migration import Migration
from trio_vfio._receive._ack import SwitchoverAck
from trio_vfio._receive._loader import IncomingDevice
from trio_vfio._receive._main import MainChannel
from trio_vfio._receive._reorder import ReorderQueue
from trio_vfio._receive._return_path import ReturnPath
from trio_vfio._receive._router import Router
from trio_vfio._receive._run import Run
from trio_vfio._receive._session import Session as IncomingSession
from trio_vfio._send._answers import Answers
from trio_vfio._send._buffers import BufferPool
from trio_vfio._send._packing import Packing
from trio_vfio._send._session import Session as OutgoingSession


@attrs.frozen
class Patch:
    """Words of a method, and what stands there instead."""

    method: Callable[..., Any]
    old: str
    new: str

    def apply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the changed method in the place of the true one."""
        source = textwrap.dedent(inspect.getsource(self.method))
        assert source.count(self.old) == 1, f"{self.old!r} in {source}"
        code = compile(
            source.replace(self.old, self.new),
            f"<mutant of {self.method.__qualname__}>",
            "exec",
            __future__.annotations.compiler_flag,
        )
        names: dict[str, Any] = {}
        exec(code, self.method.__globals__, names)  # noqa: S102
        owner = inspect.getmodule(self.method)
        class_name, name = self.method.__qualname__.split(".")
        monkeypatch.setattr(getattr(owner, class_name), name, names[name])


@attrs.frozen
class Mutant:
    """A fault, and the invariants of which one falls by it."""

    name: str
    falls: str
    seed: int
    """The first seed that catches it, or caught it before the core changed."""
    patches: tuple[Patch, ...]


def mutant(
    name: str, falls: str, seed: int, *patches: tuple[Callable[..., Any], str, str]
) -> Any:
    """Return a mutant as a parameter of a test."""
    made = Mutant(name, falls, seed, tuple(Patch(*patch) for patch in patches))
    return pytest.param(made, id=name.replace(" ", "-"))


MUTANTS: Final = (
    # Receiving: the queue and its condition.
    mutant(
        "notify for notify_all",
        "delivery",
        83,
        (IncomingDevice.wake, "notify_all()", "notify()"),
    ),
    mutant(
        "nobody is told of memory given back",
        "delivery",
        2,
        (IncomingDevice._made_room, "self.wake()", "pass"),
    ),
    mutant(
        "nobody is told that the window has moved",
        "delivery",
        165,
        (IncomingDevice._buffers, "self.home.call(self.wake)", "pass"),
    ),
    mutant(
        "nobody is told of memory given back before the device waits",
        "delivery",
        2,
        (IncomingDevice.written, "if self._waiters", "if False and self._waiters"),
    ),
    mutant(
        "nobody but the own channels is told before the device waits",
        "delivery",
        156,
        (IncomingDevice.written, "or self.others_wait()", ""),
    ),
    mutant(
        "nobody is told of bytes that all devices share",
        "delivery",
        136,
        (Router.wake_over_budget, "device.wake()", "pass"),
    ),
    mutant(
        "no exemption for the due packet",
        "no-fault",
        18,
        (ReorderQueue.admits, "header.idx == self.due and self.started", "False"),
    ),
    mutant(
        "lock held across the write",
        "delivery",
        7,
        (
            IncomingDevice._load,
            "await self._write(",
            "async with self.arrived: await self._write(",
        ),
    ),
    mutant(
        "queue cap off by one",
        "memory",
        107,
        (ReorderQueue.admits, "<= self.max_bytes", "<= self.max_bytes + 1"),
    ),
    mutant(
        "one packet of a device never given back",
        "no-fault leftovers delivery",
        2,
        (
            IncomingDevice.written,
            "self._release(buffer.data)",
            "buffer.idx == 1 or self._release(buffer.data)",
        ),
    ),
    mutant(
        "memory given back before it is written",
        "prefix complete memory",
        2,
        (Run._finish, "self._supply.written(buffer)", "pass"),
        (
            IncomingDevice._buffers,
            "buffers.append(buffer)",
            "buffers.append(buffer); self.written(buffer)",
        ),
    ),
    # Receiving: what comes when.
    mutant(
        "start before SWITCHOVER_START",
        "switchover",
        7,
        (
            MainChannel._handle,
            "device = await self.session.router.announce(event)",
            "device = await self.session.router.announce(event)\n"
            "            device.queue.started = True\n"
            "            self.session.load(device)",
        ),
        (IncomingSession.start_loading, "self.load(device)", "pass"),
    ),
    mutant(
        "config loaded early",
        "config-last",
        5,
        (
            IncomingDevice._load,
            "while await self._data_is_due():",
            "while self.queue.config_idx not in self.queue._waiting and"
            " await self._data_is_due():",
        ),
        (ReorderQueue.take_config, "pop(self.due)", "pop(self.config_idx)"),
    ),
    mutant(
        "success when the first device is done",
        "complete agreement devices cancel",
        8,
        (
            MainChannel._end,
            "in list(router.devices.values()):\n        await",
            "in list(router.devices.values())[:1]:\n        await",
        ),
    ),
    mutant(
        "ack sent twice",
        "acks",
        234,
        (SwitchoverAck._when_none_counts, " or self._sent", ""),
    ),
    # Receiving: the end.
    mutant(
        "SHUT(0) on failure",
        "agreement",
        17,
        (ReturnPath._run, "self._send_shut(1)", "self._send_shut(0)"),
    ),
    mutant(
        "cancel lost between buffers of a run",
        "cancel abort",
        566,
        (Run._has_next, "if self.position.stopping", "if False"),
    ),
    mutant(
        "abort forgotten for a device with no call under way",
        "devices",
        0,
        (DeviceCalls._end, "if not self.began and", "if"),
    ),
    mutant(
        "reset before the write returned",
        "abort",
        0,
        (DeviceCalls._end, "with trio.move_on_after(self.grace):", "if False:"),
    ),
    # Sending.
    mutant(
        "EOF taken for success",
        "agreement",
        773,
        (
            Answers._take_eof,
            "if self.return_path or not self.may_succeed",
            "if False",
        ),
    ),
    mutant(
        "no last chance for a last word",
        "agreement",
        756,
        (Answers._hear_last_word, "if not self.may_succeed", "if True"),
    ),
    mutant(
        "devices run again before the connections are closed",
        "agreement devices",
        145,
        (DeviceCalls.keep, "(self.stop.last_word, self.stop.abort_after)", "()"),
    ),
    mutant(
        "state read before the guest stands still",
        "switchover",
        2,
        (
            OutgoingSession._switch_over,
            "await self.call_back(",
            "self.spawn(self.call_back, ",
        ),
    ),
    mutant(
        "a device that holds one buffer too many",
        "memory",
        9,
        (BufferPool._room, "share.limit - share.held", "share.limit + 1 - share.held"),
    ),
    mutant(
        "a short read taken for a full one",
        "prefix complete no-fault",
        2,
        (Packing.add, "data = buffer[:count]", "data = buffer"),
    ),
    mutant(
        "an error after success fails the migration",
        "agreement devices",
        2,
        (Migration.succeed, "self.stop.succeed()", "pass"),
    ),
    mutant(
        "done before the source was told",
        "agreement devices",
        5,
        (IncomingSession.conclude, "return_path.succeed()", "self.complete()"),
    ),
)
