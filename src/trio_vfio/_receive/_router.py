"""Packets to the devices they are for, with memory for each, or not yet.

QEMU: ``qemu_loadvm_load_state_buffer`` in migration/savevm.c and
``vfio_multifd_load_state_buffer`` in hw/vfio/migration-multifd.c, which do not
know how to wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import final

import attrs
import trio

from .._errors import ConnectionLost, PeerProtocolError, device_name
from .._migration._activity import Activity
from .._result import ChannelResult, Transfer
from .._values import AsyncValue
from .._wire._channel_decoder import ChannelDecoder
from .._wire._main_events import Section
from .._wire._multifd import INITIAL_SIZE, StateHeader
from ._loader import IncomingDevice

DeviceKey = tuple[str, int]


@final
@attrs.define(eq=False)
class Channel:
    """One multifd channel that has said its id."""

    id: int
    decoder: ChannelDecoder | None = attrs.field(default=None, init=False)
    """None until the page size is known, before which nothing can be decoded."""
    packets: int = attrs.field(default=0, init=False)
    device_state_packets: int = attrs.field(default=0, init=False)
    ended: bool = attrs.field(default=False, init=False)
    paused_at: tuple[IncomingDevice, StateHeader] | None = attrs.field(
        default=None, init=False
    )
    """The packet that waits for room, and so holds up the channel."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"channel {self.id}"

    @property
    def bytes(self) -> int:
        """How many have come."""
        return INITIAL_SIZE if self.decoder is None else self.decoder.position

    def result(self) -> ChannelResult:
        """Return what has come so far."""
        return ChannelResult(
            self.id, self.bytes, self.packets, self.device_state_packets
        )

    @property
    def inside_packet(self) -> bool:
        """Whether it is open and has brought a part of a packet."""
        decoder = self.decoder
        return decoder is not None and decoder.inside_packet and not self.ended

    @property
    def is_stuck(self) -> bool:
        """Whether it waits for room that is not there."""
        if self.paused_at is None:
            return False
        device, header = self.paused_at
        return not device.queue.admits(header)


@final
@attrs.define(eq=False)
class Router:
    """The devices of a session and the channels that carry their packets."""

    _make: Callable[[str, int], IncomingDevice | None] = attrs.field(alias="make")
    """Makes a device that the caller did not name; None if it takes no others."""
    _keep: Callable[[IncomingDevice], None] = attrs.field(alias="keep")
    """Sees to it that a device that begins is released or aborted."""
    activity: Activity

    devices: dict[DeviceKey, IncomingDevice] = attrs.field(
        factory=dict[DeviceKey, IncomingDevice], init=False
    )
    channels: dict[int, Channel] = attrs.field(factory=dict[int, Channel], init=False)
    open_channels: AsyncValue[int] = attrs.field(
        factory=lambda: AsyncValue(0), init=False
    )
    handshakes: int = attrs.field(default=0, init=False)
    """Connections that have not yet said what they are."""
    started: bool = attrs.field(default=False, init=False)
    """Whether SWITCHOVER_START was handled."""
    listeners: int = attrs.field(default=0, init=False)
    """From which more connections may come."""
    main_ended: bool = attrs.field(default=False, init=False)
    _stuck: bool = attrs.field(default=False, init=False)
    """Whether `check_progress` has found it so: it is one fault, whoever asks."""
    _news: trio.Condition = attrs.field(factory=trio.Condition, init=False)
    """Notified when a device is announced, and at SWITCHOVER_START."""
    _over_budget: dict[IncomingDevice, None] = attrs.field(
        factory=dict[IncomingDevice, None], init=False
    )
    """Devices with packets that wait for room in the session's budget. In order: who
    is woken first must not depend on where it lies in memory."""

    def open_channel(self, channel_id: int) -> Channel:
        """Add a channel that has said its id."""
        self.channels[channel_id] = channel = Channel(channel_id)
        self.open_channels.value += 1
        return channel

    def end_channel(self, channel: Channel) -> None:
        """Take note that *channel* brings nothing any more."""
        channel.ended = True
        self.open_channels.value -= 1

    async def announce(self, section: Section) -> IncomingDevice:
        """Return the device of a START section, begun, and let its packets in.

        Raises:
          PeerProtocolError: if it is a device that the caller does not want.
          DeviceError: if the device cannot begin.
        """
        key = (section.idstr, section.instance_id)
        device = self.devices.get(key) or self._make(*key)
        if device is None:
            raise PeerProtocolError(
                f"the source sends {device_name(*key)}, which was not asked for",
                offset=section.offset,
                channel="main",
            )
        self.devices[key] = device
        self._keep(device)
        await device.calls.begin(device.sink.begin)
        device.announced = True
        async with self._news:
            self._news.notify_all()
        return device

    async def start(self) -> list[IncomingDevice]:
        """Handle SWITCHOVER_START; return the devices, to be loaded now.

        Raises:
          PeerProtocolError: if a device that the caller named was never announced.
        """
        self.check_announced()
        # All in one step: the stall test must not see some of them started.
        self.started = True
        for device in self.devices.values():
            device.queue.started = True
        async with self._news:
            self._news.notify_all()
        for device in self.devices.values():
            device.wake()
        return list(self.devices.values())

    def check_announced(self) -> None:
        """Check that every device that the caller named was announced.

        Raises:
          PeerProtocolError: if one was not.
        """
        for device in self.devices.values():
            if not device.announced:
                reason = f"the source never announced {device.name}"
                raise PeerProtocolError(reason, channel="main")

    async def end_main(self) -> None:
        """Take note that the main stream has ended: all is announced.

        Raises:
          PeerProtocolError: if what is missing can no longer come.
        """
        self.main_ended = True
        async with self._news:
            self._news.notify_all()
        self.check_progress()

    def admit_now(
        self, header: StateHeader, patience: float = 0.0
    ) -> memoryview | None:
        """Return memory for *header*'s packet; None if that has to be waited for.

        May be called in any thread.

        Raises:
          PeerProtocolError: if the packet is not of its device's state.
        """
        device = self._announced(header)
        if device is None:
            return None
        device.transfer_is(Transfer.MULTIFD, offset=header.offset)
        memory = device.queue.admit_untrusted(header, patience)
        if memory is not None:
            device.progress.queued_bytes = device.queue.bytes
        return memory

    async def admit(self, channel: Channel, header: StateHeader) -> memoryview:
        """Wait until *header*'s packet may have memory, and return that.

        If cancelled, nothing is reserved.

        Raises:
          PeerProtocolError: if the packet is for no device, or not of its state,
            or if it can never be admitted.
        """
        device = self._announced(header) or await self._wait_announced(header)
        while (memory := self.admit_now(header)) is None:
            await self._wait_for_room(channel, device, header)
        return memory

    def is_over_budget(self) -> bool:
        """Whether packets wait for room in the session's budget. In any thread."""
        return bool(self._over_budget)

    def wake_over_budget(self) -> None:
        """Let packets look again that wait for room in the session's budget."""
        over_budget, self._over_budget = self._over_budget, {}
        for device in over_budget:
            device.wake()

    def device(self, header: StateHeader) -> IncomingDevice:
        """Return the device of a packet that was admitted."""
        return self.devices[header.idstr, header.instance_id]

    def check_progress(self) -> None:
        """Check that what is missing can still come.

        To be called whenever a channel pauses or ends and a device call ends.

        Raises:
          PeerProtocolError: if all channels are gone, or all wait for packets
            that are behind them: a source that keeps the order cannot do that.
        """
        if self._stuck or not self.started:
            return
        channels = [each for each in self.channels.values() if not each.ended]
        if channels and not self._all_stuck(channels):
            return
        if not (missing := list(self._missing())):
            return
        what = ", ".join(f"{name}: packet {idx}" for name, idx in missing)
        if channels:
            self._stuck = True
            raise PeerProtocolError(f"all channels are full, and none brings {what}")
        # Channels connect before main says a word, so none is still to come
        # once main has ended; before, only where some have been and gone.
        if not self.handshakes and (self.channels or self.main_ended):
            self._stuck = True
            reason = f"all channels have ended without {what}"
            raise PeerProtocolError(reason, ended=True)

    def _all_stuck(self, channels: list[Channel]) -> bool:
        """Whether nothing can go on but by a connection that is still to come."""
        if self.handshakes or self.activity.calls:
            return False
        if not all(each.is_stuck for each in channels):
            return False
        return not any(each.queue.has_due for each in self.devices.values())

    def waiting_for(self) -> str:
        """Say what has not come, for a deadline that has passed."""
        if not self.activity.main_came.is_set():
            return "no main channel has come"
        what = [] if self.main_ended else ["the end of main"]
        for channel in self.channels.values():
            if channel.paused_at is not None:
                what.append(f"{channel.name}: room for {channel.paused_at[1]}")
            elif channel.inside_packet and channel.decoder is not None:
                at = channel.decoder.packet_offset
                what.append(f"{channel.name}: the rest of the packet at byte {at}")
        for device in self.devices.values():
            if device.calls.running is not None:
                what.append(f"{device.name}: {device.calls.running} to end")
            elif (missing := device.missing) is not None:
                what.append(f"{device.name}: packet {missing}")
        return "waiting for " + ", ".join(what)

    def check_main(self) -> None:
        """Check that a main channel can still come.

        Raises:
          ConnectionLost: if all connections of a source are gone without one.
        """
        if self.activity.main_came.is_set() or self.handshakes:
            return
        gone = all(channel.ended for channel in self.channels.values())
        if gone and (self.channels or not self.listeners):
            reason = "never came, and all other connections are gone"
            raise ConnectionLost(reason, channel="main")

    def _missing(self) -> Iterator[tuple[str, int]]:
        for device in self.devices.values():
            # Until its FULL section a device may still turn out to be main's.
            if (
                device.progress.transfer is Transfer.MULTIFD
                and device.missing is not None
            ):
                yield device.name, device.missing

    def _announced(self, header: StateHeader) -> IncomingDevice | None:
        device = self.devices.get((header.idstr, header.instance_id))
        return device if device is not None and device.announced else None

    async def _wait_announced(self, header: StateHeader) -> IncomingDevice:
        async with self._news:
            while True:
                if (device := self._announced(header)) is not None:
                    return device
                if self.started or self.main_ended:
                    raise PeerProtocolError(
                        f"{header} of a device that was never announced",
                        offset=header.offset,
                    )
                await self._news.wait()

    async def _wait_for_room(
        self, channel: Channel, device: IncomingDevice, header: StateHeader
    ) -> None:
        def has_room() -> bool:
            if device.queue.admits(header):
                return True
            if not device.queue.memory.has_room(header.size):
                self._over_budget[device] = None
            self.check_progress()
            return False

        channel.paused_at = (device, header)
        try:
            await device.wait_until(has_room)
        finally:
            channel.paused_at = None
