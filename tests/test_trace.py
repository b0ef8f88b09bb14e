"""Pure tests of the events: their names, their arguments, their lines."""

from __future__ import annotations

import ast
import json
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Any, Final

import pytest
import trio
import trio.testing

import trio_vfio
from trio_vfio._trace import ARGUMENTS, LINES, Trace, TraceEvent

from .captures_data import CAPTURES

_ROOT: Final = Path(trio_vfio.__path__[0])


def recorded_lines() -> Iterator[str]:
    """Every line of every trace that was recorded of a QEMU 10.0."""
    for files in CAPTURES:
        if files.name.startswith("v11"):
            # Of its lines one has other arguments: loadvm_approve_switchover.
            continue
        meta = json.loads((files.directory / "meta.json").read_bytes())
        for end in "source", "dest":
            yield from meta.get(end, {}).get("trace", ())


def parse(line: str) -> TraceEvent | None:
    """Turn a line of QEMU's into an event; None if it is of none of ours."""
    name, _, rest = line.partition(" ")
    if name not in LINES:
        return None
    pattern, kinds = "", []
    for literal, field, spec, _ in Formatter().parse(LINES[name]):
        pattern += re.escape(literal)
        if field is not None:
            kinds.append(spec)
            pattern += "(-?[0-9]+|0x[0-9a-f]+)" if spec else "(.*?)"
    found = re.fullmatch(pattern, rest)
    assert found, line
    values = [
        int(text, 0) if spec else text
        for text, spec in zip(found.groups(), kinds, strict=True)
    ]
    return TraceEvent(name, tuple(values))


def test_lines_are_those_of_qemu_byte_for_byte() -> None:
    seen: set[str] = set()
    for line in recorded_lines():
        if (event := parse(line)) is not None:
            assert str(event) == line
            seen.add(event.name)
    assert len(seen) > 30


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (("qemu_loadvm_state_section", 4), "qemu_loadvm_state_section 4"),
        (
            ("qemu_loadvm_state_section_startfull", 42, "0000:00:04.0/vfio", 0, 1),
            "qemu_loadvm_state_section_startfull 42(0000:00:04.0/vfio) 0 1",
        ),
        (
            ("loadvm_process_command", "SWITCHOVER_START", 0),
            "loadvm_process_command com=SWITCHOVER_START len=0",
        ),
        (("loadvm_process_command_ping", 7), "loadvm_process_command_ping 0x7"),
        (("loadvm_state_setup",), "loadvm_state_setup "),
        (("migrate_send_rp_message", 1, 4), "migrate_send_rp_message 1: len 4"),
        (
            ("multifd_recv_terminate_threads", True),
            "multifd_recv_terminate_threads error 1",
        ),
        (("savevm_command_send", 11, 0), "savevm_command_send com=0xb len=0"),
        (
            ("savevm_section_end", "ram", 2, 0),
            "savevm_section_end ram, section_id 2 -> 0",
        ),
    ],
)
def test_lines_that_were_not_recorded(event: tuple[Any, ...], line: str) -> None:
    name, *arguments = event
    assert str(TraceEvent(name, tuple(arguments))) == line


def test_arguments_have_names() -> None:
    event = TraceEvent("vfio_load_state_device_data", ("a/vfio", 24, 0))
    assert event.fields == {"name": "a/vfio", "data_size": 24, "ret": 0}
    assert ARGUMENTS["loadvm_state_setup"] == ()


def test_events_are_equal_whenever_they_happened() -> None:
    assert TraceEvent("a", (1,), 0) == TraceEvent("a", (1,), 1)
    assert TraceEvent("a", (1,)) != TraceEvent("a", (2,))


def _calls() -> Iterator[tuple[str, ast.Call]]:
    for path in _ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and re.search(
                r"(^|[._])trace$", ast.unparse(node.func)
            ):
                yield f"{path.relative_to(_ROOT)}:{node.lineno}", node


def test_every_call_names_an_event_and_has_its_arguments() -> None:
    """What is called *trace* is a `Trace`, and a mistake shows here."""
    wrong: list[str] = []
    for where, call in _calls():
        name, *arguments = call.args
        if not isinstance(name, ast.Constant) or name.value not in ARGUMENTS:
            wrong.append(f"{where}: no event")
        elif call.keywords or any(isinstance(a, ast.Starred) for a in arguments):
            wrong.append(f"{where}: not only plain arguments")
        elif len(arguments) != len(ARGUMENTS[str(name.value)]):
            wrong.append(f"{where}: takes {ARGUMENTS[str(name.value)]}")
    assert wrong == []


def test_every_event_is_said_somewhere() -> None:
    said = {
        call.args[0].value
        for _, call in _calls()
        if isinstance(call.args[0], ast.Constant)
    }
    assert set(LINES) == said


class _Unprintable:
    def __str__(self) -> str:
        raise AssertionError("formatted")

    def __format__(self, spec: str) -> str:
        raise AssertionError("formatted")

    __repr__ = __str__


async def test_nothing_is_made_when_nobody_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = Trace()
    assert not trace.listening
    monkeypatch.setattr("trio_vfio._trace.TraceEvent", None)
    trace("migrate_error", _Unprintable())


async def test_nothing_is_formatted_for_a_hook() -> None:
    events: list[TraceEvent] = []
    value = _Unprintable()
    Trace(events.append)("migrate_error", value)
    assert events[0].arguments == (value,)


async def test_events_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "trio_vfio.trace"):
        Trace()("migrate_set_state", "active")
    assert [(each.name, each.levelname) for each in caplog.records] == [
        ("trio_vfio.trace", "DEBUG")
    ]
    assert caplog.messages == ["migrate_set_state new state active"]


async def test_log_handler_that_raises_stops_nothing() -> None:
    """Neither the migration nor the hook, nor the report of a hook that fails."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("the log is full")

    heard: list[TraceEvent] = []

    def hook(event: TraceEvent) -> None:
        heard.append(event)
        raise ValueError("so is this")

    logger = logging.getLogger("trio_vfio.trace")
    handler, level = Broken(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        trace = Trace(hook)
        for _ in range(2):
            trace("loadvm_state_setup")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert [str(event) for event in heard] == ["loadvm_state_setup "]


async def test_a_hook_that_raises_is_called_no_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[TraceEvent] = []

    def hook(event: TraceEvent) -> None:
        calls.append(event)
        raise OSError("no space")

    trace = Trace(hook)
    trace("loadvm_state_setup")
    trace("loadvm_state_cleanup")
    assert [event.name for event in calls] == ["loadvm_state_setup"]
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], OSError)


async def test_events_of_a_thread_come_in_its_order_before_its_result() -> None:
    threads: set[int] = set()
    seen: list[object] = []

    def hook(event: TraceEvent) -> None:
        threads.add(threading.get_ident())
        seen.append(event.arguments[0])

    trace = Trace(hook)

    def work() -> None:
        for number in range(100):
            trace("multifd_recv_thread_start", number)

    await trio.to_thread.run_sync(work)
    trace("multifd_recv_thread_start", 100)
    assert seen == list(range(101))
    assert threads == {threading.get_ident()}


async def test_what_a_thread_has_said_is_heard_before_what_trio_says() -> None:
    """Trio's thread may have seen what that thread has done, though not yet its end."""
    events: list[TraceEvent] = []
    trace = Trace(events.append)
    thread = threading.Thread(target=trace, args=("multifd_recv_thread_start", 0))
    thread.start()
    thread.join()
    trace("multifd_recv_thread_start", 1)
    assert [each.arguments for each in events] == [(0,), (1,)]
    await trio.testing.wait_all_tasks_blocked()
    assert len(events) == 2


async def test_time_is_the_time_of_day_and_goes_on() -> None:
    events: list[TraceEvent] = []
    trace = Trace(events.append)
    for _ in range(2):
        trace("loadvm_state_setup")
    assert events[0].time <= events[1].time
    assert (
        abs(events[0].time - logging.LogRecord("", 0, "", 0, "", (), None).created) < 60
    )
