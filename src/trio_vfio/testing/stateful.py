"""A source that does what Hypothesis thinks of, against a session that receives.

Needs Hypothesis, which is for you to install. To test a sink of your own with it::

    class MySinks(IncomingMachine):
        def make_sink(self, idstr: str) -> MySink:
            return MySink()

        def loaded(self, sink: StateSink) -> bytes:
            return sink.content

    TestMySinks = MySinks.TestCase
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, Final

import trio
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from .. import Deadlines, StateSink
from ._devices import SimulatedSink
from ._links import Link, link
from ._main_stream import MainStream
from ._source import initial_packet
from ._stepped import SentChannel, SentDevice, SteppedReceiver
from ._steps import TrioSteps
from ._watched import WatchedSink

__all__ = ["IncomingMachine"]

_LARGEST: Final = 40
_SIZES: Final = (_LARGEST, 10, 0)
_WHOLE: Final = 1 << 30
_LAST_PACKETS: Final = 24
_MOST_CHANNELS: Final = 3
_NEVER: Final = Deadlines(handshake=None, silence=None)
_LONG: Final = 100_000.0
"""Seconds in which all that can happen has happened."""


class IncomingMachine(RuleBasedStateMachine):
    """Drives a receive session as a source does, and now and then as one should not.

    Rules open connections, announce devices, send pre-copy data, switch over, hand
    packets of devices to channels in order, let the channels send what they have, whole
    or in part, let time pass, make sinks slow, end the stream, close connections, send
    garbage, and cancel the receiver. After each of them it holds, and at the end:

    - what a sink has taken is a prefix of what was sent, in order; nothing but
      pre-copy data before SWITCHOVER_START; the config behind all data
    - no sink was called as none may be
    - what is queued is within ``max_queued_bytes``, but for two packets that were due
    - the migration has ended as complete, as failed with `MigrationFailed`, or as
      cancelled; each sink that began is finished or aborted, all the same way
    - it is complete only if all was sent; and if nothing was done to it that an
      honest source does not do, it is complete once all is sent

    All in virtual time, with a seed of Hypothesis; nothing depends on the machine.
    """

    idstrs: ClassVar[tuple[str, ...]] = ("0000:00:04.0/vfio", "0000:00:05.0/vfio")
    """The devices that the session waits for."""
    max_queued_bytes: ClassVar[int] = 100
    """So little that channels have to wait; packets hold up to 40 bytes."""

    channels: Bundle[SentChannel] = Bundle("channels")
    unsettled: Bundle[SentDevice] = Bundle("unsettled")
    """Devices that were announced and of which there is more to send."""

    def make_sink(self, idstr: str) -> StateSink:
        """Return a new sink for a device. To be overridden."""
        return SimulatedSink()

    def loaded(self, sink: StateSink) -> bytes | None:
        """Return the data that a sink of `make_sink` holds; None: nobody can say.

        To be overridden. Asked while no call of the sink is under way, and not after
        an abort.
        """
        return sink.loaded if isinstance(sink, SimulatedSink) else None

    def options(self) -> dict[str, Any]:
        """Return more arguments for `open_incoming`. To be overridden."""
        return {}

    def __init__(self) -> None:
        super().__init__()
        self._steps = TrioSteps()
        self._connect: Link
        self._receiver: SteppedReceiver
        self._stream = MainStream()
        self._main: trio.abc.Stream | None = None
        self._switched_over = False
        self._main_ended = False
        self._hostile = False
        """Whether rules may be taken that no honest source would."""
        self._honest = True
        """Whether none was taken so far."""
        self._all_channels: list[SentChannel] = []
        self._devices: list[SentDevice] = []

    @initialize(hostile=st.booleans())
    def open(self, hostile: bool) -> None:  # noqa: FBT001 - by Hypothesis
        """The receiver listens, to a source that may be hostile."""
        self._hostile = hostile
        self._devices = [
            SentDevice(idstr, WatchedSink(self.make_sink(idstr)))
            for idstr in self.idstrs
        ]
        self._connect, there = link()

        sinks = {device.idstr: device.sink for device in self._devices}
        options = {"deadlines": _NEVER, "max_queued_bytes": self.max_queued_bytes}
        self._receiver = SteppedReceiver(there, sinks, options | self.options())
        self._steps.start(self._receiver.run)

    # Rules

    @precondition(lambda self: self._main is None)
    @rule(return_path=st.booleans())
    def connect_main(self, return_path: bool) -> None:  # noqa: FBT001 - by Hypothesis
        """Open main, and send the header."""
        self._main = self._steps.do(self._connect)
        self._say(self._stream.begin(return_path=return_path))

    @precondition(lambda self: self._can_connect)
    @rule(target=channels)
    def connect_channel(self) -> SentChannel:
        """Open a channel, which says its id."""
        number = len(self._all_channels)
        channel = SentChannel(number, self._steps.do(self._connect))
        self._all_channels.append(channel)
        self._send(channel.stream, initial_packet(number))
        return channel

    @precondition(lambda self: self._can_announce)
    @rule(target=unsettled)
    def announce(self) -> SentDevice:
        """Announce the next device."""
        device = next(device for device in self._devices if not device.announced)
        device.announced = True
        self._say(self._stream.announce(device.idstr))
        return device

    @precondition(lambda self: self._main and not self._switched_over)
    @rule(device=unsettled, data=st.binary(min_size=1, max_size=_LARGEST))
    def precopy(self, device: SentDevice, data: bytes) -> None:
        """Send pre-copy data."""
        device.precopy += data
        self._say(self._stream.precopy(device.idstr, data))

    @precondition(lambda self: self._can_switch_over)
    @rule()
    def switch_over(self) -> None:
        """Send SWITCHOVER_START."""
        self._switched_over = True
        self._say(self._stream.switch_over())

    @rule(
        device=unsettled,
        channel=channels,
        sizes=st.lists(st.sampled_from(_SIZES), min_size=1, max_size=5),
    )
    def hand_out(
        self, device: SentDevice, channel: SentChannel, sizes: list[int]
    ) -> None:
        """Give a device's next packets to a channel, which sends them when told to."""
        for size in sizes:
            channel.left.append((device.next_packet(size), device))

    @rule(device=consumes(unsettled), channel=channels)
    def hand_out_config(self, device: SentDevice, channel: SentChannel) -> None:
        """Give a device's config to a channel: its state ends here."""
        channel.left.append((device.last_packet(), device))

    @rule(channel=channels, count=st.integers(1, 5))
    def send(self, channel: SentChannel, count: int) -> None:
        """Let a channel send its next packets."""
        for _ in range(count):
            self.send_part(channel, _WHOLE)

    @rule(channel=channels, size=st.sampled_from([1, 100, 300]))
    def send_part(self, channel: SentChannel, size: int) -> None:
        """Let a channel send some more bytes of its next packet."""
        if channel.left and channel.open:
            self._send(channel.stream, channel.take(size))

    @precondition(lambda self: self._switched_over)
    @rule(seconds=st.sampled_from([0.5, 5.0, 50.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self._steps.do(partial(trio.sleep, seconds))

    @rule(number=st.integers(0, 1), seconds=st.sampled_from([0.0, 3.0]))
    def slow_down(self, number: int, seconds: float) -> None:
        """Let each call of a sink take so long."""
        self._devices[number % len(self._devices)].sink.delay = seconds

    @precondition(lambda self: self._can_end_main)
    @rule()
    def end_main(self) -> None:
        """End the main stream. What channels have not sent may still come."""
        self._main_ended = True
        self._say(self._stream.end())

    @precondition(lambda self: self._hostile)
    @rule(channel=channels)
    def close_channel(self, channel: SentChannel) -> None:
        """Close a channel, whatever it has not sent."""
        # More may be handed to it later.
        self._honest = False
        channel.open = False
        self._steps.do(channel.stream.aclose)

    @precondition(lambda self: self._hostile)
    @rule(channel=channels, data=st.binary(min_size=12, max_size=40))
    def send_garbage(self, channel: SentChannel, data: bytes) -> None:
        """Send what is no packet, where one has to begin."""
        if channel.open and not channel.part:
            self._honest = False
            self._send(channel.stream, b"\xee" + data)

    @precondition(lambda self: self._hostile and self._main and not self._main_ended)
    @rule(data=st.binary(max_size=40))
    def send_garbage_on_main(self, data: bytes) -> None:
        """Send what is no section."""
        self._honest = False
        self._main_ended = True
        self._say(b"\xee" + data)

    @precondition(lambda self: self._hostile and self._ended is None)
    @rule()
    def cancel(self) -> None:
        """Cancel the receiver."""
        self._honest = False

        self._steps.do(self._receiver.cancel)

    # What holds

    @invariant()
    def sinks_have_what_was_sent_in_order(self) -> None:
        """A prefix of it, and nothing before its time."""
        for device in self._devices:
            sink, most = device.sink, device.most
            if not self._switched_over:
                most = bytes(device.precopy)
                assert sink.config is None, "config before SWITCHOVER_START"
            assert most.startswith(sink.accepted), (device.idstr, sink.accepted, most)
            if sink.config is not None:
                assert sink.config == device.config
                assert sink.accepted == device.state, "config before the last buffer"
            assert sink.complaints == []

    @invariant()
    def sinks_hold_what_they_were_given(self) -> None:
        """As far as anybody can say."""
        for device in self._devices:
            sink = device.sink
            if sink.began and not sink.busy and not sink.aborted:
                loaded = self.loaded(sink.sink)
                given = bytes(sink.accepted)
                assert loaded is None or loaded == given, (
                    f"{device.idstr} was given {given!r} and holds {loaded!r}"
                )

    @invariant()
    def memory_is_limited(self) -> None:
        """A packet that is due is always let in, and another while that is written."""
        if self._ended is None and self._devices:
            for progress in self._receiver.incoming.devices.values():
                due = 2 * max(
                    _LARGEST, *(len(device.idstr) + 32 for device in self._devices)
                )
                queued = progress.queued_bytes
                assert queued <= self.max_queued_bytes + due, f"{queued} bytes queued"

    @invariant()
    def the_end_is_one_there_can_be(self) -> None:
        """Of the migration, and of each device."""
        if self._ended is None:
            return
        assert self._ended in ("completed", "failed", "cancelled"), self._ended
        for device in self._devices:
            sink, completed = device.sink, self._ended == "completed"
            assert not sink.busy, f"{device.idstr}: a call outlives the migration"
            assert sink.aborted == (sink.began and not completed)
            if completed:
                assert sink.finished
                assert device.config is not None and sink.accepted == device.state
                assert device.all_arrived
        if self._honest:
            assert self._ended == "completed", "it failed, and all was honest"

    def teardown(self) -> None:
        """Send what is left, if all was honest; else leave. Look at the end."""
        try:
            if self._devices:
                self._end()
        finally:
            self._steps.close()

    def _end(self) -> None:
        if self._honest and self._ended is None:
            self._send_all()
        self._steps.do(partial(trio.sleep, _LONG))
        if self._honest:
            assert self._ended == "completed", self._receiver.incoming.waiting_for()
        for stream in (self._main, *(channel.stream for channel in self._all_channels)):
            if stream is not None:
                self._steps.do(stream.aclose)
        self._steps.do(partial(trio.sleep, _LONG))
        if self._ended is None:
            # Nothing that is a migration has come, or main has not ended its header.
            self.cancel()
            self._steps.do(partial(trio.sleep, _LONG))
        assert self._ended is not None, "it does not end"
        self.sinks_have_what_was_sent_in_order()
        self.sinks_hold_what_they_were_given()
        self.the_end_is_one_there_can_be()

    def _send_all(self) -> None:
        """Be an honest source to the end, one whose channels race each other."""
        if self._main is None:
            self.connect_main(return_path=True)
        while len(self._all_channels) < 2 and self._can_connect:
            self.connect_channel()
        while self._can_announce:
            self.announce()
        if self._can_switch_over:
            self.switch_over()
        channels = self._all_channels
        for device in self._devices:
            if device.config is None:
                for number in range(_LAST_PACKETS):
                    size = _SIZES[number % len(_SIZES)]
                    self.hand_out(device, channels[number % len(channels)], [size])
                self.hand_out_config(device, channels[0])
        if self._can_end_main:
            self.end_main()
        for channel in reversed(channels):
            self.send(channel, len(channel.left))
            self.memory_is_limited()
            self.sinks_have_what_was_sent_in_order()

    # How far it has come

    @property
    def _ended(self) -> str | None:
        return self._receiver.ended if self._devices else None

    @property
    def _can_connect(self) -> bool:
        return len(self._all_channels) < _MOST_CHANNELS and not self._main_ended

    @property
    def _can_announce(self) -> bool:
        if self._main is None or self._switched_over or self._main_ended:
            return False
        return not all(device.announced for device in self._devices)

    @property
    def _can_switch_over(self) -> bool:
        if self._main is None or self._switched_over or self._main_ended:
            return False
        return all(device.announced for device in self._devices)

    @property
    def _can_end_main(self) -> bool:
        # No channel comes behind the end of main.
        if not (self._switched_over and self._all_channels):
            return False
        return not self._main_ended

    def _say(self, data: bytes) -> None:
        assert self._main is not None
        self._send(self._main, data)

    def _send(self, stream: trio.abc.Stream, data: bytes) -> None:
        async def send() -> None:
            # The receiver may have left, or this end was closed.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await stream.send_all(data)

        self._steps.do(send)
