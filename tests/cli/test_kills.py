"""Either side killed, stopped, or cut off, at exact places. Collaboration.

Real processes and real sockets. The invariant: whoever is left fails because of what
it sees, with one line that says why; nothing is left at the destination, and the
source's devices run again.

Nothing here compares times of two processes, which a busy machine delays as it likes.
Both sides get deadlines of an hour instead.
"""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Final

import attrs
import pytest
import trio

from tests.forms import form
from trio_vfio._link._address import listening, parse_address
from trio_vfio._wire._main_encode import (
    END_PAYLOAD,
    SETUP_PAYLOAD,
    data_mark,
    encode_command,
    encode_description,
    encode_end,
    encode_header,
    encode_section,
)
from trio_vfio._wire._main_events import CommandType, Section, SectionType
from trio_vfio._wire._multifd import (
    INITIAL_SIZE,
    STATE_FIXED_SIZE,
    STATE_HEADER_SIZE,
)
from trio_vfio._wire._return_path import pong
from trio_vfio._wire._vfio_section import VFIO_VERSION, encode_config

from .processes import HOUR, Running, names, running
from .proxy import Connection, Point, Proxy

pytestmark = pytest.mark.usefixtures("warm")

IDSTR: Final = "0000:00:04.0/vfio"
MIB: Final = 1 << 20

PRECOPY: Final = 100_000
PACKET: Final = 200_000
SMALL: Final = PRECOPY + PACKET
"""Bytes of a state that takes one packet: over channel 0. The config goes over 1."""
LARGE: Final = PRECOPY + 8 * MIB
"""Bytes of a state that no unix socket takes before somebody reads it."""


# What the source sends on main.

_SECTION: Final = Section(SectionType.START, 42, IDSTR, 0, VFIO_VERSION, 0)


def _section(type_: SectionType, payload: bytes) -> bytes:
    return encode_section(attrs.evolve(_SECTION, type=type_), payload)


PIECES: Final = {
    "header": encode_header("none"),
    "OPEN_RETURN_PATH": encode_command(CommandType.OPEN_RETURN_PATH),
    "PING": encode_command(CommandType.PING, bytes(4)),
    "START": _section(SectionType.START, SETUP_PAYLOAD),
    "PART": _section(
        SectionType.PART, data_mark(PRECOPY) + bytes(PRECOPY) + END_PAYLOAD
    ),
    "SWITCHOVER_START": encode_command(CommandType.SWITCHOVER_START),
    "END": _section(SectionType.END, END_PAYLOAD),
    "FULL": _section(SectionType.FULL, END_PAYLOAD),
    "description": encode_end(encode_description("none", [_SECTION])),
}
BEHIND: Final = dict(zip(PIECES, accumulate(map(len, PIECES.values())), strict=True))
"""Where on main each of them ends."""


def on_main(name: str, carried: int) -> Point:
    return Point(name, 0, carried, held=carried == 0)


def on_channel(channel: int, name: str, carried: int) -> Point:
    return Point(f"channel {channel} {name}", 1 + channel, carried, held=carried == 0)


MAIN: Final = [
    on_main("before the header", 0),
    on_main("inside the header", 5),
    on_main("after PING", BEHIND["PING"]),
    on_main("after START", BEHIND["START"]),
    on_main("inside PART", BEHIND["START"] + PRECOPY // 2),
    on_main("before SWITCHOVER_START", BEHIND["PART"]),
    on_main("after SWITCHOVER_START", BEHIND["SWITCHOVER_START"]),
    on_main("inside END", BEHIND["END"] - 3),
    on_main("inside FULL", BEHIND["FULL"] - 3),
    on_main("in the description", BEHIND["description"] - 1),
]

PONG_SIZE: Final = len(pong(1).encode())
LAST_WORD: Final = Point("at the last word", 0, PONG_SIZE, held=True, back=True)

CHANNEL: Final = [
    on_channel(0, "before the initial packet", 0),
    on_channel(0, "inside the initial packet", 30),
    on_channel(0, "after the initial packet", INITIAL_SIZE),
    on_channel(0, "inside a header", INITIAL_SIZE + 10),
    on_channel(0, "before the index", INITIAL_SIZE + STATE_FIXED_SIZE),
    on_channel(0, "before the data", INITIAL_SIZE + STATE_HEADER_SIZE),
    on_channel(0, "inside the data", INITIAL_SIZE + STATE_HEADER_SIZE + PACKET // 2),
    on_channel(
        0, "before its last byte", INITIAL_SIZE + STATE_HEADER_SIZE + PACKET - 1
    ),
    on_channel(1, "inside the config", INITIAL_SIZE + STATE_HEADER_SIZE + 4),
    on_channel(
        1,
        "before the config's last byte",
        INITIAL_SIZE + STATE_HEADER_SIZE + len(encode_config(b"")) - 1,
    ),
]

LOST: Final = (
    r"main: (never came|stream ends in|broke|the destination closed)"
    r"|channel \d: (channel ends inside|broke|the destination closed)"
    r"|all channels have ended without"
)
"""What somebody says who has lost all connections: the first that was noticed."""

TOLD: Final = "the destination says that the migration failed"


@attrs.frozen
class Way:
    """Which way the two sides go."""

    transport: str
    options: Mapping[str, str] = attrs.field(factory=dict[str, str])
    """Of the commands ``send`` and ``receive``, one each."""

    def option(self, command: str) -> list[str]:
        """Return what *command* is given."""
        return [self.options[command]] if command in self.options else []


UNIX: Final = Way("unix")
TCP: Final = Way("tcp")


@attrs.define(eq=False)
class Journey:
    """A source, a destination, and the proxy between them."""

    proxy: Proxy
    send: Running
    receive: Running
    fd: int
    into: Path

    def side(self, name: str) -> Running:
        """Return the one or the other."""
        return self.send if name == "send" else self.receive

    def check_failed(self, name: str, why: str, *, after: float = 0) -> str:
        """Check that one side has failed, for one reason, and cleaned up.

        Args:
          after: seconds that have to pass, by its own clock, before it can know.

        Returns: the reason.
        """
        run = self.side(name)
        assert run.process.returncode == 1, run.lines
        (error,) = run.errors
        assert re.match(why, error)
        expected = r"trio-vfio: error: |listening on |\d+ s: |dropped a connection"
        assert all(re.match(expected, line) for line in run.lines), run.lines
        assert (run.result["status"], run.result["errors"]) == ("failed", [error])
        assert self.proxy.struck
        assert run.result["seconds"] >= after
        if name == "send":
            check_runs(self.fd)
        else:
            assert not self.into.exists() or names(self.into) == []
        return error

    def check_killed(self, name: str) -> None:
        """Check that one side had no time to say anything."""
        run = self.side(name)
        assert (run.process.returncode, run.errors) == (-signal.SIGKILL, [])

    def check_completed(self, name: str) -> None:
        """Check that one side has done its part."""
        run = self.side(name)
        assert (run.process.returncode, run.errors) == (0, []), run.lines
        assert run.result["status"] == "completed"
        if name == "receive":
            (data,) = self.into.glob("*.data")
            assert data.read_bytes() == state(SMALL)


def state(size: int) -> bytes:
    """Return a device's state."""
    return random.Random(size).randbytes(size)


@contextmanager
def device(size: int) -> Generator[int, None, None]:
    """Make a descriptor that has a device's state."""
    fd = os.memfd_create("state")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(state(size))
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def check_runs(fd: int) -> None:
    """Check that nobody has the device any more: it is as it was made."""
    assert os.get_blocking(fd)
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0


Lend = Callable[[str], int]


@pytest.fixture(name="lend", scope="module")
def make_lend() -> Generator[Lend, None, None]:
    """Return a device by a name: each test gets it as another has left it.

    So each of them shows that a device whose migration has failed can be sent.
    """
    made: dict[str, int] = {}
    with ExitStack() as stack:

        def lend(name: str) -> int:
            if name not in made:
                made[name] = stack.enter_context(device(SMALL))
            return made[name]

        yield lend


Strike = Callable[[Journey, Connection], None]


def kills(name: str) -> Strike:
    """Kill one side."""

    def strike(journey: Journey, _: Connection) -> None:
        journey.side(name).process.kill()
        journey.proxy.killed = True

    return strike


def stops(name: str) -> Strike:
    """Let one side stand still: it is there, and says nothing."""

    def strike(journey: Journey, _: Connection) -> None:
        process = journey.side(name).process
        process.send_signal(signal.SIGSTOP)
        # Not a moment later.
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)

    return strike


def finishes(_: Journey, connection: Connection) -> None:
    """Cut one connection, as if both sides had closed it."""
    connection.finish()


def resets(_: Journey, connection: Connection) -> None:
    """Cut one connection, as if it broke."""
    connection.reset()


async def nothing_else(_: Journey) -> None:
    """Wait for nothing."""


async def travel(
    into: Path,
    fd: int,
    point: Point,
    strike: Strike,
    way: Way = UNIX,
    *,
    meanwhile: Callable[[Journey], Awaitable[None]] = nothing_else,
) -> Journey:
    """Migrate *fd* to *into*, with a strike at *point*; return when all is over."""

    def at(name: str) -> str:
        unix = way.transport == "unix"
        return f"unix:{into}.{name}" if unix else "tcp:127.0.0.1:0"

    sink = [at("there"), f"--into={into}", "--json", *HOUR, *way.option("receive")]
    source = [
        f"--device={IDSTR}=fd:{fd}",
        f"--precopy={PRECOPY}",
        "--json",
        *HOUR,
        *way.option("send"),
    ]
    async with (
        listening(parse_address(at("proxy"))) as (listener,),
        running("receive", *sink) as there,
    ):
        proxy = Proxy(listener, there.address, 3, point)
        async with (
            running("send", proxy.address, *source, pass_fds=(fd,)) as here,
            trio.open_nursery() as nursery,
        ):
            journey = Journey(proxy, here, there, fd, into)
            proxy.strike = partial(strike, journey)
            nursery.start_soon(proxy.run)
            await meanwhile(journey)
    return journey


@pytest.mark.parametrize(
    ("point", "way", "other_way"),
    [
        pytest.param(point, *((UNIX, TCP), (TCP, UNIX))[n % 2], id=str(point))
        for n, point in enumerate(form(short=MAIN[::2], long=MAIN))
    ],
)
async def test_one_side_is_killed(
    point: Point, way: Way, other_way: Way, lend: Lend, tmp_path: Path
) -> None:
    async def kill_source() -> None:
        with device(SMALL) as fd:
            it = await travel(tmp_path / "1", fd, point, kills("send"), way)
        it.check_killed("send")
        it.check_failed("receive", LOST)

    async def kill_destination() -> None:
        fd = lend("killed")
        it = await travel(tmp_path / "2", fd, point, kills("receive"), other_way)
        it.check_killed("receive")
        it.check_failed("send", LOST)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill_source)
        nursery.start_soon(kill_destination)


async def test_one_side_is_killed_at_the_last_word(lend: Lend, tmp_path: Path) -> None:
    """Who has said it has the device; who has not heard it has it, too.

    This is where a machine that is killed costs the guest, and none runs twice.
    """
    with device(SMALL) as fd:
        it = await travel(tmp_path / "1", fd, LAST_WORD, kills("send"))
    it.check_killed("send")
    it.check_completed("receive")
    it = await travel(tmp_path / "2", lend("killed"), LAST_WORD, kills("receive"))
    it.check_killed("receive")
    it.check_failed("send", LOST)


@pytest.mark.parametrize("point", form(short=CHANNEL[::2], long=CHANNEL), ids=str)
async def test_a_channel_is_cut(point: Point, lend: Lend, tmp_path: Path) -> None:
    """Either side may notice it first, and tells the other."""

    async def cut(name: str, strike: Strike, way: Way) -> None:
        it = await travel(tmp_path / name, lend(name), point, strike, way)
        it.check_failed("receive", LOST)
        said = it.check_failed("send", f"channel {point.connection - 1}: |{TOLD}")
        if said == TOLD:
            it.check_failed("receive", f"channel {point.connection - 1}: ")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cut, "finished", finishes, UNIX)
        nursery.start_soon(cut, "reset", resets, TCP)


async def test_a_channel_is_cut_between_packets(tmp_path: Path) -> None:
    """The destination cannot tell that from its end, but the source can.

    Unless its machine has taken all packets, as one may with TCP: then nobody can
    before the destination wonders at the silence. Cut by a reset it would not be
    between packets, since that drops what was passed on and not yet taken.
    """
    where = INITIAL_SIZE + STATE_HEADER_SIZE + MIB
    point = on_channel(0, "between packets", where)

    async def cut(way: Way, there: str, here: str) -> None:
        with device(LARGE) as fd:
            it = await travel(tmp_path / way.transport, fd, point, finishes, way)
            it.check_failed("receive", there)
            it.check_failed("send", here)

    tcp = Way("tcp", {"receive": "--silence=1"})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cut, UNIX, LOST, "channel 0: ")
        nursery.start_soon(cut, tcp, f"{LOST}|silence ", f"channel 0: |{TOLD}")


@pytest.mark.parametrize("stopped", ["send", "receive"])
async def test_one_side_stands_still(stopped: str, tmp_path: Path) -> None:
    """Only a deadline ends that. When it goes on, it learns that all is over."""
    point = on_main("stopped", BEHIND["SWITCHOVER_START"])
    other = "receive" if stopped == "send" else "send"

    async def stop(deadline: str, size: int) -> None:
        async def let_go_on(it: Journey) -> None:
            await it.side(other).process.wait()
            it.side(stopped).process.send_signal(signal.SIGCONT)

        way = Way("unix", {other: f"--{deadline}=1"})
        with device(size) as fd:
            it = await travel(
                tmp_path / deadline, fd, point, stops(stopped), way, meanwhile=let_go_on
            )
            why = f"{deadline} deadline of 1 s passed: waiting for "
            it.check_failed(other, why, after=1)
            it.check_failed(stopped, f"{LOST}|{TOLD}")

    async with trio.open_nursery() as nursery:
        # Of a smaller one there would be nothing left to be silent about.
        nursery.start_soon(stop, "silence", LARGE)
        nursery.start_soon(stop, "switchover", SMALL)


async def test_a_source_without_a_return_path_is_not_misled(tmp_path: Path) -> None:
    """Over TCP it finds main broken where the destination has failed."""
    way = Way("tcp", {"send": "--no-return-path"})
    with device(SMALL) as fd:
        it = await travel(tmp_path / "1", fd, CHANNEL[-1], finishes, way)
        it.check_failed("receive", "channel 1: channel ends inside the packet")
        it.check_failed("send", "main: broke before the destination's last word: ")


@pytest.mark.parametrize("way", [UNIX, TCP], ids=lambda way: way.transport)
async def test_in_the_end_all_goes_well(way: Way, lend: Lend, tmp_path: Path) -> None:
    """Also with a device that the tests above have left behind.

    And the points are where they are thought to be.
    """
    point = on_main("at the end", BEHIND["description"])
    name = {"unix": "killed", "tcp": "reset"}[way.transport]
    it = await travel(tmp_path, lend(name), point, lambda _, __: None, way)
    it.check_completed("send")
    it.check_completed("receive")
    packets = [PACKET, len(encode_config(b""))]
    assert [each.carried[False] for each in it.proxy.connections] == [
        point.carried,
        *(INITIAL_SIZE + STATE_HEADER_SIZE + size for size in packets),
    ]
    assert it.proxy.connections[0].carried[True] == 2 * PONG_SIZE
