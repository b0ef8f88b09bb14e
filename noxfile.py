"""What CI runs, and nothing else: `nox` runs most of it, `nox -s NAME` one of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
# Also where CI is set in the environment: not everybody has every Python.
nox.options.error_on_missing_interpreters = False

PYPROJECT = nox.project.load_toml("pyproject.toml")


def group(name: str) -> tuple[str, ...]:
    """Return what the dependency group *name* of pyproject.toml asks for."""
    return nox.project.dependency_groups(PYPROJECT, name)


def sources(*folders: str) -> list[str]:
    """Return every Python file in *folders*."""
    return sorted(str(path) for each in folders for path in Path(each).rglob("*.py"))


@nox.session(python=nox.project.python_versions(PYPROJECT))
def tests(session: nox.Session) -> None:
    """Run the tests, on each Python that is here, and ask for their coverage.

    Arguments are those of pytest. `-- --long` runs the long forms of the tests: more
    seeds, more orders, more examples.
    """
    session.install("-e", ".[test]")
    data = {"COVERAGE_FILE": str(session.cache_dir / f"coverage-{session.name}")}
    session.run("coverage", "erase", env=data, silent=True)
    session.run("coverage", "run", "-m", "pytest", *session.posargs, env=data)
    session.run("coverage", "combine", "--quiet", env=data)
    # Part of the tests covers part of the code.
    wanted = "0" if set(session.posargs) - {"--long"} else "95"
    session.run("coverage", "report", f"--fail-under={wanted}", env=data)


@nox.session
def vm(session: nox.Session) -> None:
    """Run tests/vm in a VM that has VFIO devices and QEMU, and build it if need be.

    `--suite NAME` chooses the VM's system, other arguments are pytest's. What it takes
    is Linux, root and apt.
    """
    session.install("pip")  # for packages of the VM
    session.run("python", "-m", "tests.vm.rig", *session.posargs)


# By name only: it takes a quarter of an hour, and a machine that does nothing else.
@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure how fast it is; arguments are those of `python -m benchmarks`.

    CI runs it with `--smoke`. Takes Linux, gcc and make.
    """
    session.install("-e", ".[cli]", *group("bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, and the rules of asynchronous code that ruff lacks."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    # 100 is wrong about `with fail_after(): yield`. 114 wants a list of all that
    # takes task_status. 91x ask for checkpoints on every path, also where a
    # Condition is held.
    off = "ASYNC100,ASYNC114,ASYNC910,ASYNC911,ASYNC912,ASYNC913"
    check = ("flake8-async", "--enable=ASYNC")
    session.run(*check, f"--disable={off}", *sources("src", "examples", "benchmarks"))
    # 124: the fakes of tests are async where what they stand for is.
    session.run(*check, f"--disable={off},ASYNC124", *sources("tests"))


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy and pyright, and that all that is public has one."""
    session.install("-e", ".[test]", *group("types"))  # tests are checked too
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "trio_vfio", "--ignoreexternal")


@nox.session(reuse_venv=False)
def build(session: nox.Session) -> None:
    """Build sdist and wheel, and use the wheel as a user would."""
    session.install(*group("build"))
    dist = Path(session.create_tmp()).absolute() / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist), silent=True)
    (wheel,) = dist.glob("*.whl")
    with session.chdir(dist):
        session.install(str(wheel))
        said = session.run("trio-vfio", "--version", success_codes=[1, 2], silent=True)
        if said is None or said.count("\n") != 1 or "trio-vfio[cli]" not in said:
            session.error(f"without its extra, the command does not help: {said}")
        session.install(f"{wheel}[cli]")
        session.run("trio-vfio", "--version")
        session.run("trio-vfio", "demo")
