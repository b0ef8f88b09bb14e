"""`python -m tests.vm.rig`: build the VM, and run tests/vm in it."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from . import host
from .cache import Cache
from .host import RigError, say, step
from .kernel import kernel
from .machine import Machine
from .project import project
from .site import site
from .system import System, system

_PROJECT: Final = Path(__file__).resolve().parents[3]
_CACHE: Final = "TRIO_VFIO_RIG"
_NO_TESTS: Final = 5  # pytest's exit status
_TESTS: Final = "tests/vm tests/link/test_tls.py tests/link/test_tls_cuts.py"
"""What runs if the command line does not say what; TLS is what a system makes of it."""

_OPTIONS: Final = "--import-mode=importlib -ra"
"""Instead of those in pyproject.toml, which spread tests over processes that would get
into each other's way: the VM's devices are there once."""

_LIMIT: Final = 45 * 60.0


@dataclass(frozen=True)
class Suite:
    """A system that tests run in, and which tests do."""

    name: str
    pytest: tuple[str, ...] = ()


_SUITES: Final = (
    Suite("trixie"),
    # The newest QEMU, of which little is asked that the other one was not asked.
    Suite("sid", ("-m", "qemu_11")),
)


def main(arguments: Sequence[str]) -> int:
    """Do what the command line asks for, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm.rig",
        usage="%(prog)s [--suite NAME] [--shell] [arguments of pytest]",
        description="Run tests/vm in a VM with real VFIO devices and a real QEMU.",
        epilog=f"The VM is kept in ${_CACHE}, by default {_default_cache()}.",
        allow_abbrev=False,
    )
    names = [suite.name for suite in _SUITES]
    parser.add_argument(
        "--suite",
        choices=names,
        help="the system to run in, instead of one after another",
    )
    parser.add_argument(
        "--shell",
        action="store_true",
        help="no tests: a shell in the VM (Ctrl-A x ends)",
    )
    options, pytest = parser.parse_known_args(arguments)
    # Ended by a signal or not: what was started is ended, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    suites = [suite for suite in _SUITES if options.suite in {None, suite.name}]
    try:
        host.check()
        cache = Cache(Path(os.environ.get(_CACHE) or _default_cache()))
        say(f"the cache is {cache.root}")
        if options.shell:
            _build(cache, suites[:1])[suites[0].name].shell()
            return 0
        with step("all of it"):
            machines = _build(cache, suites)
            statuses = [_test(suite, machines[suite.name], pytest) for suite in suites]
        return total(statuses)
    except RigError as exc:
        print(f"vm: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _default_cache() -> Path:
    return Path.home() / ".cache" / "trio-vfio-rig"


def _build(cache: Cache, suites: Sequence[Suite]) -> dict[str, Machine]:
    """Return the VM for each of *suites*. What the cache lacks of them is made."""
    host.install_packages(cache.root / "host.log")

    def systems() -> dict[str, tuple[System, tuple[Path, ...]]]:
        made: dict[str, tuple[System, tuple[Path, ...]]] = {}
        for suite in suites:
            root = system(cache, suite.name)
            packages = site(cache, suite.name, root, _PROJECT)
            code = project(cache, suite.name, root, _PROJECT)
            made[suite.name] = root, (root.archive, packages, code)
        return made

    with ThreadPoolExecutor() as pool:
        # Compilers work while packages are fetched.
        building = pool.submit(kernel, cache)
        fetching = pool.submit(systems)
        try:
            both: tuple[Future[Any], ...] = (building, fetching)
            for future in wait(both, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            host.commands.stop()
            raise
    machines = {
        name: Machine(name, building.result(), archives, root.versions)
        for name, (root, archives) in fetching.result().items()
    }
    accelerator = _accelerator(cache, next(iter(machines.values())))
    return {
        name: replace(machine, accelerator=accelerator)
        for name, machine in machines.items()
    }


def _accelerator(cache: Cache, machine: Machine) -> str:
    """Return "kvm" if *machine* boots with it, otherwise "tcg"."""
    kvm = replace(machine, name="KVM", accelerator="kvm", boot_seconds=20.0)
    since_boot = Path("/proc/sys/kernel/random/boot_id").read_text()

    def make(place: Path) -> None:
        found = "tcg"
        # That the device is there says little: it may well be that nothing runs.
        if os.access("/dev/kvm", os.W_OK):
            try:
                kvm.run("true", 20, boots=1)
            except RigError:
                say("KVM does not work here")
            else:
                found = "kvm"
        (place / "name").write_text(found)

    inputs = [since_boot, str(machine.kernel)]
    return (cache.product("accelerator", inputs, make) / "name").read_text()


def _test(suite: Suite, machine: Machine, pytest: Sequence[str]) -> int:
    """Run pytest in *machine* and return its exit status."""
    terminal = sys.stdout.isatty()
    command = (
        *("python3", "-m", "pytest", "-o", f"testpaths={_TESTS}"),
        *("-o", f"addopts={_OPTIONS}"),
        # Where processors are emulated, everything takes its time.
        *("-o", "timeout=180"),
        f"--color={'yes' if terminal else 'no'}",
        *suite.pytest,
        *pytest,
    )
    columns = shutil.get_terminal_size().columns
    job = f"COLUMNS={columns} exec {shlex.join(command)}\n"
    say(f"{suite.name}: tests in {machine}")
    status = machine.run(job, _LIMIT)
    say(f"{suite.name}: pytest ended with status {status}")
    return status


def total(statuses: Sequence[int]) -> int:
    """Return the exit status of several runs of pytest.

    That in one of them no test was chosen matters only if the others had none, either.
    """
    failed = [status for status in statuses if status not in {0, _NO_TESTS}]
    return failed[0] if failed else min(statuses)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
