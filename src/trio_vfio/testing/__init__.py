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

from .._public import set_public_module as _set_public_module
from .._wire._main_events import CommandType as CommandType
from .._wire._multifd import StateFlag as StateFlag, StateHeader as StateHeader
from .._wire._return_path import (
    ReturnPathFrame as ReturnPathFrame,
    ReturnPathType as ReturnPathType,
)
from ._checks import ReadBack as ReadBack, check_state_sink as check_state_sink
from ._clock import autojump_held as autojump_held
from ._costs import (
    Cost as Cost,
    Exponential as Exponential,
    Stalls as Stalls,
    Uniform as Uniform,
)
from ._destination import ScriptedDestination as ScriptedDestination
from ._devices import SimulatedSink as SimulatedSink
from ._faults import (
    ConnectionName as ConnectionName,
    DeviceFault as DeviceFault,
    LinkFault as LinkFault,
)
from ._links import (
    BytesPerConnection as BytesPerConnection,
    Connection as Connection,
    Link as Link,
    LinkStream as LinkStream,
    MemoryListener as MemoryListener,
    PerConnection as PerConnection,
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
from ._peer import Listeners as Listeners, ScriptedPeer as ScriptedPeer
from ._runs._campaign import (
    CampaignReport as CampaignReport,
    Draws as Draws,
    SeedViolation as SeedViolation,
    run_campaign as run_campaign,
)
from ._runs._events import Event as Event
from ._runs._invariants import INVARIANTS as INVARIANTS
from ._runs._parts import (
    CallbackFault as CallbackFault,
    Cancel as Cancel,
    DevicePlan as DevicePlan,
    Fault as Fault,
    Side as Side,
    SinkFault as SinkFault,
    SourceFault as SourceFault,
)
from ._runs._plan import FaultPlan as FaultPlan
from ._runs._run import (
    MakeSink as MakeSink,
    MakeSource as MakeSource,
    SimulatedMigration as SimulatedMigration,
    simulate as simulate,
)
from ._runs._shrink import shrink as shrink
from ._runs._violations import Violation as Violation
from ._scheduling import deterministic_scheduling as deterministic_scheduling
from ._script import (
    Close as Close,
    Piece as Piece,
    ScriptStep as ScriptStep,
    Wait as Wait,
)
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

_set_public_module(globals())
