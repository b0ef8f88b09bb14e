"""What happens in a migration, in QEMU's words, for whoever listens.

An event has the name and the arguments of the trace event that QEMU has at the
same moment, so that a log of ours and one of ``qemu -trace`` lie side by side.
But where QEMU prints the name of a device on its host, there is its idstr.

Events go to the logger ``trio_vfio.trace``, level DEBUG, and to a hook. When
nobody listens none is made, and nothing is formatted unless somebody asks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from string import Formatter
from types import MappingProxyType
from typing import Final, final

import attrs
import trio

log: Final = logging.getLogger("trio_vfio.trace")

LINES: Final = MappingProxyType(
    {
        # A device while it is loaded: hw/vfio.
        "vfio_load_bufs_thread_start": " ({name})",
        "vfio_load_bufs_thread_end": " ({name})",
        "vfio_load_cleanup": " ({name})",
        "vfio_load_device_config_state_start": " ({name})",
        "vfio_load_device_config_state_end": " ({name})",
        "vfio_load_state": " ({name}) data {data:#x}",
        "vfio_load_state_device_data": " ({name}) size {data_size} ret {ret}",
        "vfio_load_state_device_buffer_incoming": " ({name}) idx {idx}",
        "vfio_load_state_device_buffer_start": " ({name})",
        "vfio_load_state_device_buffer_starved": " ({name}) idx {idx}",
        "vfio_load_state_device_buffer_load_start": " ({name}) idx {idx}",
        "vfio_load_state_device_buffer_load_end": " ({name}) idx {idx}",
        "vfio_load_state_device_buffer_end": " ({name})",
        # A device while it is saved.
        "vfio_save_setup": " ({name}) data buffer size {data_buffer_size}",
        "vfio_save_iterate_start": " ({name})",
        "vfio_save_iterate": " ({name}) precopy initial size {precopy_init_size}"
        " precopy dirty size {precopy_dirty_size}",
        "vfio_save_block": " ({name}) data_size {data_size}",
        "vfio_save_block_precopy_empty_hit": " ({name})",
        "vfio_save_complete_precopy_thread_start": " ({name}) idstr {idstr}"
        " instance {instance_id}",
        # Its ret is 1 for success, unlike that of all others.
        "vfio_save_complete_precopy_thread_end": " ({name}) ret {ret:d}",
        "vfio_save_device_config_state": " ({name})",
        "vfio_save_cleanup": " ({name})",
        "vfio_state_pending_exact": " ({name}) precopy {precopy}"
        " postcopy {postcopy} stopcopy size {stopcopy_size}"
        " precopy initial size {precopy_init_size}"
        " precopy dirty size {precopy_dirty_size}",
        # The main channel at the destination: migration/savevm.c, migration.c.
        "qemu_loadvm_state_section": "{section_type:d}",
        "qemu_loadvm_state_section_startfull": "{section_id}({idstr})"
        " {instance_id} {version_id}",
        "qemu_loadvm_state_section_partend": "{section_id}",
        "qemu_loadvm_state_section_command": "{ret}",
        "qemu_loadvm_state_post_main": "{ret}",
        "loadvm_state_setup": "",
        "loadvm_state_cleanup": "",
        "loadvm_process_command": "com={command} len={len}",
        "loadvm_process_command_ping": "{val:#x}",
        "loadvm_approve_switchover": "Switchover ack pending num={num}",
        "migrate_send_rp_message": "{type:d}: len {len}",
        "process_incoming_migration_co_end": "ret={ret} postcopy-state={ps}",
        # The multifd channels at the destination: migration/multifd.c.
        "multifd_recv_new_channel": "channel {id}",
        "multifd_recv_thread_start": "{id}",
        "multifd_recv_thread_end": "channel {id} packets {packets}",
        "multifd_recv_terminate_threads": "error {error:d}",
        # The main channel at the source.
        "savevm_state_header": "",
        "savevm_state_setup": "",
        "savevm_state_iterate": "",
        "savevm_section_start": "{idstr}, section_id {section_id}",
        "savevm_section_end": "{idstr}, section_id {section_id} -> {ret}",
        "savevm_command_send": "com={command:#x} len={len}",
        "savevm_send_switchover_start": "",
        "savevm_send_ping": "{val:#x}",
        "savevm_send_open_return_path": "",
        "source_return_path_thread_entry": "",
        "source_return_path_thread_loop_top": "",
        "source_return_path_thread_pong": "{val:#x}",
        "source_return_path_thread_shut": "{val:#x}",
        "source_return_path_thread_switchover_acked": "",
        "source_return_path_thread_bad_end": "",
        "source_return_path_thread_end": "",
        # The multifd channels at the source.
        "multifd_new_send_channel_async": "channel {id}",
        "multifd_send_thread_start": "{id}",
        "multifd_send_thread_end": "channel {id} packets {packets}",
        "multifd_send_error": "channel {id}",
        # Both.
        "migrate_set_state": "new state {new_state}",
        "migrate_error": "error={error_desc}",
    }
)
"""Each event's arguments, in order, as QEMU 10.0 prints them.

The leading space of some is QEMU's: after the event's name there are two.
"""

ARGUMENTS: Final = MappingProxyType(
    {
        name: tuple(field for _, field, _, _ in Formatter().parse(line) if field)
        for name, line in LINES.items()
    }
)
"""The names of each event's arguments, in order."""


@final
@attrs.frozen
class TraceEvent:
    """Something that happened. As text it is the line that QEMU would print."""

    name: str
    """QEMU's name for it, as ``vfio_load_state_device_buffer_load_start``."""
    arguments: tuple[object, ...] = ()
    """What QEMU says about it, in QEMU's order."""
    time: float = attrs.field(default=0.0, eq=False)
    """When it happened, in seconds since the epoch.

    What happens in a device's thread is heard of a moment later, so sort by time
    to compare devices; each one's own events come in order."""

    @property
    def fields(self) -> dict[str, object]:
        """The arguments by their names in QEMU."""
        return dict(zip(ARGUMENTS[self.name], self.arguments, strict=True))

    def __str__(self) -> str:
        return f"{self.name} {LINES[self.name].format_map(self.fields)}"


TraceHook = Callable[[TraceEvent], None]


def _clock() -> Callable[[], float]:
    """Return a clock that tells the time of day, but cannot be set back."""
    started = time.time() - time.monotonic()
    return lambda: started + time.monotonic()


@final
@attrs.define(eq=False)
class Trace:
    """Where the tasks of one migration say what happens. To be made in Trio."""

    _hook: TraceHook | None = attrs.field(default=None, alias="hook")
    """Called with each event, in Trio's thread."""
    _now: Callable[[], float] = attrs.field(factory=_clock, init=False)
    _thread: int = attrs.field(factory=threading.get_ident, init=False)
    _token: trio.lowlevel.TrioToken = attrs.field(
        factory=trio.lowlevel.current_trio_token, init=False
    )
    _from_threads: deque[TraceEvent] = attrs.field(
        factory=deque[TraceEvent], init=False
    )
    """What happened in other threads, and was not heard of yet."""

    @property
    def listening(self) -> bool:
        """Whether anybody would hear of an event."""
        return self._hook is not None or log.isEnabledFor(logging.DEBUG)

    def __call__(self, name: str, *arguments: object) -> None:
        """Say that the event *name* has happened. Never raises.

        It may be said in any thread. What a thread has said is heard before whatever
        Trio's says, which may have seen what the thread has done: the order stays.
        """
        # Not `listening`: where nobody does, this is much of what a packet costs.
        if self._hook is None and not log.isEnabledFor(logging.DEBUG):
            return
        event = TraceEvent(name, arguments, self._now())
        if threading.get_ident() == self._thread:
            self._deliver_from_threads()
            self._deliver(event)
        else:
            self._from_threads.append(event)
            self._token.run_sync_soon(self._deliver_from_threads, idempotent=True)

    def _deliver_from_threads(self) -> None:
        while self._from_threads:
            self._deliver(self._from_threads.popleft())

    def _deliver(self, event: TraceEvent) -> None:
        # A handler of the caller's may raise. As Trio does with its instruments: who
        # looks on does not stop it.
        with suppress(Exception):
            log.debug("%s", event)
        if self._hook is None:
            return
        try:
            self._hook(event)
        except Exception:
            self._hook = None
            with suppress(Exception):
                log.exception("the trace hook has failed, and is not called any more")
