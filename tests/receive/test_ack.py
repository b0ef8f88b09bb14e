"""Pure: when the switchover is acknowledged, and how often."""

from __future__ import annotations

import pytest

from trio_vfio._receive._ack import SwitchoverAck
from trio_vfio._wire._machine import acks_once


@pytest.mark.parametrize(
    ("machine", "once"),
    [
        ("pc-q35-10.0", True),
        ("pc-i440fx-9.2", True),
        ("virt-11.0", True),
        ("pc-q35-11.1", False),
        ("pc-q35-12.0", False),
        ("microvm", False),
        (None, False),
    ],
)
def test_the_machine_type_says_which_rule_holds(
    machine: str | None, once: bool
) -> None:
    assert acks_once(machine) is once


def test_new_machines_get_one_ack_for_each_device_and_each_time() -> None:
    ack = SwitchoverAck(once=False)
    ack.expect("a", precopy=True)
    assert ack.return_path_opened(all_known=True) == 0
    assert [ack.init_data_sent("a"), ack.init_data_sent("b")] == [1, 1]
    assert ack.init_data_sent("a") == 1, "a device may start its initial data afresh"


def test_old_machines_get_one_ack_after_the_last_device() -> None:
    ack = SwitchoverAck(once=True)
    ack.expect("a", precopy=True)
    ack.expect("b", precopy=True)
    assert ack.return_path_opened(all_known=True) == 0
    assert [ack.init_data_sent("b"), ack.init_data_sent("a")] == [0, 1]
    assert ack.init_data_sent("a") == 0


def test_devices_without_precopy_are_not_waited_for() -> None:
    ack = SwitchoverAck(once=True)
    ack.expect("a", precopy=False)
    ack.expect("b", precopy=True)
    assert ack.init_data_sent("b") == 1


def test_when_none_counts_the_ack_goes_out_at_once() -> None:
    ack = SwitchoverAck(once=True)
    ack.expect("a", precopy=False)
    assert ack.return_path_opened(all_known=True) == 1
    assert ack.ram_round_ended() + ack.ram_round_ended() == 0


def test_when_more_may_come_the_ack_waits_for_the_second_round() -> None:
    ack = SwitchoverAck(once=True)
    assert ack.return_path_opened(all_known=False) == 0
    assert [ack.ram_round_ended(), ack.ram_round_ended()] == [0, 1]


def test_a_device_that_does_not_know_counts_until_the_second_round() -> None:
    ack = SwitchoverAck(once=True)
    ack.expect("silent", precopy=None)
    ack.expect("talks", precopy=None)
    ack.part_came("talks")
    assert [ack.ram_round_ended(), ack.ram_round_ended()] == [0, 0]
    assert ack.init_data_sent("talks") == 1


def test_a_device_that_is_announced_too_late_to_know_does_not_count() -> None:
    ack = SwitchoverAck(once=True)
    ack.ram_round_ended()
    assert ack.ram_round_ended() == 1
    ack.expect("late", precopy=None)
    assert ack.ram_round_ended() == 0


def test_without_ram_no_round_tells_that_a_device_will_stay_silent() -> None:
    ack = SwitchoverAck(once=True)
    for device in ("silent", "talks"):
        ack.expect(device, precopy=None)
    ack.part_came("talks")
    assert ack.init_data_sent("talks") == 1


def test_with_ram_the_rounds_tell() -> None:
    ack = SwitchoverAck(once=True)
    ack.ram_announced()
    for device in ("silent", "talks"):
        ack.expect(device, precopy=None)
    ack.part_came("talks")
    assert ack.init_data_sent("talks") == 0
    assert [ack.ram_round_ended(), ack.ram_round_ended()] == [0, 1]
