"""Pure tests of what builds the VM of tests/vm: what it says when it cannot."""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

import pytest

from .vm.rig import __main__ as command, host, mtty
from .vm.rig.cache import Cache
from .vm.rig.host import RigError
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
