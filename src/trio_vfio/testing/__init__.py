"""For tests of what is built on trio_vfio: no VM, no hardware, no waiting.

Simulated devices and sources take virtual time, links live in memory, and a scripted
source or destination makes any mistake that one can make. Everything runs under Trio's
mock clock, so that a test is over at once and goes the same way every time. Needs no
pytest.
"""

from __future__ import annotations

from ._checks import check_state_sink as check_state_sink
from ._destination import ScriptedDestination as ScriptedDestination
from ._devices import SimulatedDevice as SimulatedDevice
from ._links import (
    Connect as Connect,
    Connection as Connection,
    Link as Link,
    LinkStream as LinkStream,
    MemoryListener as MemoryListener,
    link as link,
)
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
from ._simulation import Call as Call, ContractViolation as ContractViolation
from ._source import (
    ScriptedSource as ScriptedSource,
    config_packet as config_packet,
    data_packet as data_packet,
    state_packets as state_packets,
)
from ._source_checks import check_state_source as check_state_source
from ._source_device import SimulatedSource as SimulatedSource
