"""Connections come in, say what they are, and get the task that fits.

QEMU: ``migration_ioc_process_incoming`` in migration/migration.c, which peeks;
here the first bytes are read and handed on, so that any stream will do.
"""

from __future__ import annotations

import errno
import math
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, final
from uuid import UUID

import attrs
import trio

from .._errors import ConnectionLost, PeerProtocolError, describe
from .._link._stream import reset
from .._link._tls import (
    is_secure,
    secure,
)
from .._migration._stop import log
from .._values import AsyncValue
from .._wire._main_decoder import MainDecoder
from .._wire._multifd import INITIAL_SIZE, InitialPacket
from ._channel import receive_channel
from ._first_bytes import NotAPeerError, first_bytes, origin_of
from ._main import MainChannel
from ._parting import Parting, discard
from ._refused import RefusedChannels, RefusedError
from ._return_path import SHUT_GRACE
from ._router import Channel
from ._session import LINGER, Session

# What accept says of the listener itself. All else is about one connection, or
# this process or the machine is out of something: that passes.
_BAD_LISTENER: Final = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP}
_ACCEPT_PAUSE: Final = 0.1

MAX_HANDSHAKES: Final = 512
"""Connections that may be about to say what they are. More are dropped."""

_TURNS: Final = 3
"""How often Trio comes round until a connection that waits is accepted."""

_TO_SAY_WHAT_IT_IS: Final = 0.5
"""Seconds that a connection has for that when the migration has failed, if no channel
is open."""


@final
@attrs.define(eq=False)
class Connections:
    """All connections of a session, and the tasks that serve them."""

    session: Session
    listeners: Sequence[trio.abc.Listener[trio.abc.Stream]]
    given: Sequence[trio.abc.Stream]
    """Streams that the caller opened, and closes."""
    ssl_context: ssl.SSLContext | None

    _accepted: list[trio.abc.Stream] = attrs.field(
        factory=list[trio.abc.Stream], init=False
    )
    _multifd: list[trio.abc.Stream] = attrs.field(
        factory=list[trio.abc.Stream], init=False
    )
    """Those that have said that they are a multifd channel."""
    _others: AsyncValue[int] = attrs.field(init=False)
    """How many connections are served that are not main, or not yet."""
    _channels: AsyncValue[int] = attrs.field(init=False)
    """How many of them have said that they are a multifd channel."""
    _refused: RefusedChannels = attrs.field(init=False)
    _admitted: int = attrs.field(default=0, init=False)
    """How many connections have come."""
    _accepting: list[trio.CancelScope] = attrs.field(
        factory=list[trio.CancelScope], init=False
    )
    """The scopes of the tasks that wait for connections."""
    _parting: Parting = attrs.field(factory=Parting, init=False)
    _uuid: bytes | None = attrs.field(default=None, init=False)
    _main: MainChannel | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._others = AsyncValue(0)
        self._channels = AsyncValue(0)
        self._refused = RefusedChannels(self.session)

    async def serve(self) -> None:
        """Serve connections until the migration is complete and they are closed.

        If it fails or this is cancelled, the source hears of it, main is closed, and
        the channels are read until the source closes them, for 5 s at most. Then all
        that were accepted are closed. No device is waited for.
        """
        try:
            await self._serve_all()
        finally:
            try:
                if not self.session.stop.completed:
                    # Whoever has cancelled it: what ends from now on is no fault.
                    self.session.stop.tasks.cancel(reason="the migration was cancelled")
                    with trio.CancelScope(shield=True):
                        await self._part()
            finally:
                self._parting.end()
                self._stop_accepting()

    async def close(self) -> None:
        """Close all connections that were accepted. Waits for no peer."""
        completed = self.session.stop.completed
        # Without the shield a cancel would end the loop at the first of them.
        with trio.CancelScope(shield=True):
            for stream in [*self._accepted]:
                if not completed:
                    await self._break_off(stream)
                    continue
                if is_secure(stream):
                    with trio.move_on_after(SHUT_GRACE):
                        await stream.aclose()
                await trio.aclose_forcefully(stream)

    async def _serve_all(self) -> None:
        self.session.watch()
        self.session.router.listeners = len(self.listeners)
        for stream in self.given:
            self._admit(self._secured(stream))
        for listener in self.listeners:
            self.session.spawn(self._listen, listener)
        await self.session.ended.wait()
        with trio.move_on_after(LINGER):
            # It closes all of them, and this one shows it.
            if self._main is not None:
                await self._main.source_left.wait()
            if not self.session.was_told:
                await self._others.wait_value(0)

    async def _part(self) -> None:
        """Let go of the source's connections as it can bear it; see `Parting`."""
        self._parting.begin()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._part_from_main)
            # Else there is no source, whoever may have connected.
            if self.session.activity.connected.is_set():
                with self._parting.shielded():
                    await self._part_from_others()
            if self._main is None:
                nursery.cancel_scope.cancel(reason="there is no main channel")
        self._parting.end()
        await self.close()

    async def _part_from_others(self) -> None:
        # What waits in a queue is accepted one by one, each time that Trio comes round.
        admitted = -1
        while admitted != self._admitted:
            admitted = self._admitted
            for _ in range(_TURNS):
                await trio.lowlevel.checkpoint()
        self._stop_accepting()
        async with trio.open_nursery() as nursery:
            for listener in self.listeners:
                nursery.start_soon(self._accept_late, listener)
            # What has not said what it is in that time is not waited for any longer.
            with trio.move_on_after(_TO_SAY_WHAT_IT_IS):
                await self._others.wait_value(0)
            await self._channels.wait_value(0)
            nursery.cancel_scope.cancel(reason="the source has left")

    async def _accept_late(self, listener: trio.abc.Listener[trio.abc.Stream]) -> None:
        """Look now and then whether the source has opened one more channel.

        To wait in `accept` would take what comes when the source has left, and that is
        for the next session.
        """
        # What is wrong with a listener does not matter any more.
        with suppress(OSError):
            while self._channels.value:
                await trio.sleep(_ACCEPT_PAUSE)
                with trio.move_on_after(_ACCEPT_PAUSE / 10):
                    await self._accept(listener)

    def _stop_accepting(self) -> None:
        for scope in self._accepting:
            scope.cancel(reason="nobody is expected any more")

    async def _part_from_main(self) -> None:
        await self.session.activity.main_came.wait()
        assert self._main is not None
        await self._main.last_word_is_out()
        if self.session.stop.completed:
            # The cancel came too late: the source was told of success.
            self._parting.end()
        elif self._main.stream in self._accepted:
            await self._break_off(self._main.stream)
        elif self._channels.value:
            # It is the caller's to close, and a source that is stuck here stays so.
            with self._parting.shielded():
                await discard(self._main.stream)

    async def _break_off(self, stream: trio.abc.Stream) -> None:
        """Close *stream* so that its end looks like no success."""
        if self._may_be_mute_main(stream):
            await reset(stream)
        await trio.aclose_forcefully(stream)

    def _may_be_mute_main(self, stream: trio.abc.Stream) -> bool:
        if self._main is not None and self._main.stream is stream:
            return self._main.is_mute
        # What has not yet said what it is may be main, with all of it on its way.
        return stream not in self._multifd

    async def _listen(self, listener: trio.abc.Listener[trio.abc.Stream]) -> None:
        # What waits to be accepted when the migration fails may be a channel.
        with trio.CancelScope(shield=True) as scope:
            self._accepting.append(scope)
            await self._accept(listener)
        await trio.lowlevel.checkpoint_if_cancelled()
        log.info("a listener was closed: no more connections from there")
        self.session.router.listeners -= 1
        self.session.router.check_main()

    async def _accept(self, listener: trio.abc.Listener[trio.abc.Stream]) -> None:
        """Accept connections until *listener* is closed."""
        # Not trio.serve_listeners: that closes a connection when its task is
        # cancelled, while ours has to stay open until the last word is said.
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if error.errno in _BAD_LISTENER:
                    raise
                log.warning("cannot accept a connection: %s", describe(error))
                await trio.sleep(_ACCEPT_PAUSE)
                continue
            if self.session.router.handshakes >= MAX_HANDSHAKES:
                why = f"{MAX_HANDSHAKES} have not said what they are"
                self.session.dropped.add(origin_of(stream), why)
                await trio.aclose_forcefully(stream)
                continue
            stream = self._secured(stream)
            self._accepted.append(stream)
            self._admit(stream)

    def _secured(self, stream: trio.abc.Stream) -> trio.abc.Stream:
        if self.ssl_context is None:
            return stream
        return secure(stream, self.ssl_context, server_side=True)

    def _admit(self, stream: trio.abc.Stream) -> None:
        # Not yet served, but there.
        self.session.router.handshakes += 1
        self._others.value += 1
        self._admitted += 1
        self.session.spawn(self._serve, stream)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        try:
            await self.session.guard(self._receive, stream)
        finally:
            if stream in self._multifd:
                if self.session.is_failing():
                    with self._parting.shielded():  # which has a deadline
                        await discard(stream)  # noqa: ASYNC102
                self._channels.value -= 1
            self._others.value -= 1

    async def _receive(self, stream: trio.abc.Stream) -> None:
        """Find out what *stream* is, and receive it if it is a channel."""
        channel = None
        with self._parting.shielded():
            channel = await self._identify(stream)
        await trio.lowlevel.checkpoint_if_cancelled()
        router = self.session.router
        router.check_main()
        router.check_progress()
        if channel is not None:
            await self._receive_channel(stream, channel)
        elif stream in self._multifd:
            await discard(stream)

    async def _identify(self, stream: trio.abc.Stream) -> Channel | None:
        """Find out what *stream* is: main gets its task, what is no peer is closed.

        Returns: the channel, if it is one.
        """
        # Once it has broken, nobody can tell.
        origin = origin_of(stream)
        try:
            with trio.fail_after(self.session.options.deadlines.handshake or math.inf):
                first = await first_bytes(stream)
            return self._recognize(stream, first)
        except NotAPeerError as error:
            self.session.dropped.add(origin, str(error))
        except RefusedError as error:
            self.session.dropped.add(origin, str(error))
            self._refused.add(str(error))
            # One that may be this source's is read by its own task.
            if stream in self._multifd or self._refused.keep(stream):
                return None
        except (
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            trio.TooSlowError,
        ) as error:
            self.session.dropped.add(origin, describe(error))
        finally:
            self.session.router.handshakes -= 1
        if stream in self._accepted:
            self._accepted.remove(stream)
            if self._parting.has_begun:
                # It may be a main channel that comes late.
                await reset(stream)
            await trio.aclose_forcefully(stream)
        return None

    def _recognize(self, stream: trio.abc.Stream, first: bytes) -> Channel | None:
        session = self.session
        if session.stop.completed:
            raise NotAPeerError("the migration is complete")
        if len(first) == INITIAL_SIZE:
            channel = self._new_channel(stream, first)
            session.activity.connection_came(is_main=False)
            return channel
        if self._main is not None:
            raise NotAPeerError("a second main channel")
        decoder = MainDecoder(session.options.page_size)
        self._main = MainChannel(session, stream, decoder)
        session.activity.connection_came(is_main=True)
        session.spawn(self._main.receive, first)
        return None

    def _new_channel(self, stream: trio.abc.Stream, first: bytes) -> Channel:
        """Open the channel that *first* is the initial packet of.

        Raises:
          PeerProtocolError: if it says to be of this migration, and cannot be.
        """
        uuid = InitialPacket.uuid_of(first)
        if self._uuid not in (None, uuid):
            raise RefusedError(f"a channel of another machine, {UUID(bytes=uuid)}")
        # Whatever is wrong with it: this source may be sending over it.
        self._multifd.append(stream)
        self._channels.value += 1
        channels = self.session.router.channels
        try:
            packet = InitialPacket.decode_untrusted(first)
            if packet.channel_id in channels:
                raise PeerProtocolError(f"channel {packet.channel_id} came twice")
        except PeerProtocolError as error:
            if self._uuid is None or self._parting.has_begun:
                # It may be anybody's, or the migration has failed already.
                raise RefusedError(str(error)) from error
            raise
        self._uuid = uuid
        self.session.trace("multifd_recv_new_channel", packet.channel_id)
        return self.session.router.open_channel(packet.channel_id)

    async def _receive_channel(self, stream: trio.abc.Stream, channel: Channel) -> None:
        session = self.session
        session.trace("multifd_recv_thread_start", channel.id)
        try:
            await receive_channel(
                stream, channel, session.router, session.wait_for_page_size
            )
        except (PeerProtocolError, ConnectionLost):
            session.trace("multifd_recv_terminate_threads", 1)
            raise
        finally:
            session.trace("multifd_recv_thread_end", channel.id, channel.packets)
