"""For tests of what is built on trio_vfio: no VM, no hardware, no waiting.

Simulated devices and sources take virtual time, links live in memory, and a scripted
source or destination makes any mistake that one can make. Everything runs under Trio's
mock clock, so that a test is over at once and goes the same way every time. Needs no
pytest.

Three modules are imported by name, for they need what this does not:

- `trio_vfio.testing.pytest_plugin`: fixtures for pytest and pytest-trio
- `trio_vfio.testing.strategies`: Hypothesis strategies for all that a source sends
- `trio_vfio.testing.stateful`: a state machine of Hypothesis that drives a session
"""

from __future__ import annotations

from ._checks import check_state_sink as check_state_sink
from ._clock import autojump_held as autojump_held
from ._costs import (
    Cost as Cost,
    Exponential as Exponential,
    Stalls as Stalls,
    Uniform as Uniform,
)
from ._destination import ScriptedDestination as ScriptedDestination
from ._devices import SimulatedDevice as SimulatedDevice
from ._faults import DeviceFault as DeviceFault, LinkFault as LinkFault
from ._links import (
    Connect as Connect,
    Connection as Connection,
    Link as Link,
    LinkStream as LinkStream,
    MemoryListener as MemoryListener,
    link as link,
)
from ._main_stream import MainStream as MainStream
from ._order_campaign import (
    OrdersReport as OrdersReport,
    OrderViolation as OrderViolation,
    check_orders as check_orders,
)
from ._order_cases import OrderCase as OrderCase
from ._order_run import run_order as run_order
from ._orders import (
    Arrival as Arrival,
    ArrivalOrder as ArrivalOrder,
    arrival_orders as arrival_orders,
)
from ._peer import ScriptedPeer as ScriptedPeer
from ._runs._events import Event as Event
from ._runs._invariants import INVARIANTS as INVARIANTS
from ._runs._parts import (
    CallbackFault as CallbackFault,
    Cancel as Cancel,
    DevicePlan as DevicePlan,
    Fault as Fault,
    SinkFault as SinkFault,
    SourceFault as SourceFault,
)
from ._runs._plan import FaultPlan as FaultPlan
from ._runs._run import SimulatedMigration as SimulatedMigration, simulate as simulate
from ._runs._violations import Violation as Violation
from ._scheduling import deterministic_scheduling as deterministic_scheduling
from ._script import Close as Close, Piece as Piece, Wait as Wait
from ._simulation import Call as Call, ContractViolation as ContractViolation
from ._source import (
    ScriptedSource as ScriptedSource,
    config_packet as config_packet,
    data_packet as data_packet,
    initial_packet as initial_packet,
    state_packets as state_packets,
)
from ._source_checks import check_state_source as check_state_source
from ._source_device import SimulatedSource as SimulatedSource
