"""Pure tests of what builds the VM of tests/vm: what it says when it cannot."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from .vm.rig import __main__ as command, host, mtty
from .vm.rig.archive import make_archive
from .vm.rig.cache import Cache
from .vm.rig.host import RigError
from .vm.rig.machine import BootError, Machine
from .vm.rig.mtty import Edit

_DRIVER = """\
struct state {
	int a;
};

static int declared(struct state *state);

static int
defined(struct state *state)
{
	if (state->a) {
		state->a = 1;
	}
	return state->a;
}

static int caller(struct state *state)
{
	if (defined(state)) {
		return 1;
	}
	return 0;
}
"""


def test_an_edit_changes_one_function_only() -> None:
    changed = Edit(mtty.function("defined"), r"\breturn\b", "return 2 *").apply(_DRIVER)
    assert changed == _DRIVER.replace("return state", "return 2 * state")


def test_an_edit_changes_one_structure_only() -> None:
    changed = Edit(mtty.struct("state"), r"^\};", "\tint b;\n};").apply(_DRIVER)
    assert changed == _DRIVER.replace("\tint a;\n", "\tint a;\n\tint b;\n")


@pytest.mark.parametrize(
    ("where", "pattern", "times", "said"),
    [
        (mtty.function("declared"), "return", 1, "0 times"),
        (mtty.function("missing"), "return", 1, "0 times"),
        (mtty.function("caller"), "return", 1, "2 times 'return'"),
        (mtty.function("caller"), "return", 3, "and not 3"),
        (mtty.struct("other"), "int", 1, "0 times"),
        ("int", "int", 1, "4 times 'int'"),
    ],
)
def test_an_edit_without_its_place_is_an_error(
    where: str, pattern: str, times: int, said: str
) -> None:
    with pytest.raises(RigError, match=said):
        Edit(where, pattern, "x", times).apply(_DRIVER)


def test_a_product_is_made_once_for_the_same_inputs(tmp_path: Path) -> None:
    made: list[str] = []

    def product(*inputs: str) -> Path:
        def make(place: Path) -> None:
            made.append("".join(inputs))
            (place / "file").write_text(made[-1])

        return Cache(tmp_path).product("kernel", inputs, make)

    first = product("a", "bc")
    second = product("ab", "c")
    assert product("a", "bc") == first != second
    assert made == ["abc", "abc"]
    assert (first / "file").read_text() == "abc"


def test_a_product_that_failed_is_made_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail(place: Path) -> None:
        (place / "half").touch()
        raise RigError("the disk is full")

    with pytest.raises(RigError, match="the disk is full"):
        cache.product("kernel", ["a"], fail)
    place = cache.product("kernel", ["a"], lambda place: (place / "whole").touch())
    assert [path.name for path in place.iterdir()] == ["whole"]


@pytest.mark.parametrize(
    ("statuses", "total"),
    [
        ([0], 0),
        ([0, 0], 0),
        ([0, 5], 0),  # none of the chosen tests is for the second system
        ([5, 0], 0),
        ([5, 5], 5),
        ([1, 0], 1),
        ([0, 1], 1),
        ([5, 2], 2),
        ([1, 2], 1),
    ],
)
def test_the_exit_status_is_that_of_a_run_that_failed(
    statuses: list[int], total: int
) -> None:
    assert command.total(statuses) == total


def test_without_linux_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert command.main([]) == 1
    assert capsys.readouterr().err == "vm: no VM can be had here: this needs Linux\n"


def test_without_apt_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert command.main([]) == 1
    assert capsys.readouterr().err == (
        "vm: no VM can be had here: this needs Debian's apt-get\n"
    )


def test_a_command_that_fails_shows_the_end_of_its_output(tmp_path: Path) -> None:
    script = "print(*range(1000), sep='\\n'); raise SystemExit(3)"
    with pytest.raises(RigError) as caught:
        host.Commands().run(
            (sys.executable, "-c", script), tmp_path / "log", failure="it failed"
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "it failed (exit status 3):"
    assert lines[1:] == [str(number) for number in range(975, 1000)]


def test_stopped_commands_do_not_start_others(tmp_path: Path) -> None:
    commands = host.Commands()
    commands.stop()
    with pytest.raises(RigError, match="stopped"):
        commands.run((sys.executable, "-c", ""), tmp_path / "log", failure="it failed")


def test_an_archive_is_one_that_linux_unpacks(tmp_path: Path) -> None:
    (tmp_path / "folder/empty").mkdir(parents=True)
    (tmp_path / "folder/link").symlink_to("file")
    program = tmp_path / "folder/file"
    program.write_text("12345")
    program.chmod(0o755)
    make_archive(tmp_path / "archive", {"some/where": tmp_path / "folder"})
    data = (tmp_path / "archive").read_bytes()
    entries: list[tuple[str, str, bytes]] = []
    while data:
        assert data[:6] == b"070701"
        header = [int(data[at : at + 8], 16) for at in range(6, 110, 8)]
        size, length = header[6], header[11]
        name = data[110 : 110 + length].removesuffix(b"\0").decode()
        data = data[(110 + length + 3) // 4 * 4 :]
        entries.append((name, f"{header[1]:o}", data[:size]))
        data = data[(size + 3) // 4 * 4 :]
    assert entries == [
        ("some", "40755", b""),
        ("some/where", "40755", b""),
        ("some/where/empty", "40755", b""),
        ("some/where/file", "100755", b"12345"),
        ("some/where/link", "120777", b"file"),
        ("TRAILER!!!", "0", b""),
    ]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A VM whose QEMU is a program that `write_qemu` writes."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Machine("it", tmp_path / "kernel", (), "no versions")


def write_qemu(folder: Path, does: str) -> Path:
    """Write a program that plays QEMU; return where it counts how often it is started.

    In *does* `$status` is the file that the VM's port of that name leads to.
    """
    starts = folder / "starts"
    starts.touch()
    program = folder / "qemu-system-x86_64"
    program.write_text(
        "#!/bin/sh\n"
        f"echo x >>{starts}\n"
        "for word; do case $word in *id=status,*) status=${word#*path=};; esac; done\n"
        "touch ${status%status}console\n"
        f"{does}\n"
    )
    program.chmod(0o755)
    return starts


def test_a_vm_that_ends_before_its_job_is_started_once_more(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = write_qemu(
        tmp_path,
        f"[ $(wc -l <{tmp_path / 'starts'}) = 1 ] && echo 'no timer' >&2 && exit\n"
        "echo begun >$status; echo 3 >>$status",
    )
    assert machine.run("", 60) == 3
    assert starts.read_text() == "x\n" * 2
    said = capsys.readouterr().err
    assert "[vm] it: did not boot, and does so once more: the VM ended before" in said
    assert "no timer" in said


def test_a_vm_that_shows_no_life_is_started_once_more(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_qemu(tmp_path, "exec sleep 1000")
    with pytest.raises(BootError, match="showed no life"):
        replace(machine, boot_seconds=0.1).run("", 60)
    said = capsys.readouterr().err
    assert said.count("did not boot, and does so once more") == 1


def test_a_vm_in_which_the_job_began_is_not_started_again(
    machine: Machine, tmp_path: Path
) -> None:
    starts = write_qemu(tmp_path, "echo begun >$status")
    with pytest.raises(RigError, match="the VM ended without a status"):
        machine.run("", 60)
    assert starts.read_text() == "x\n"
