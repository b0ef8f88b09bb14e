"""Numbers and layouts, as a C compiler finds them in the kernel's headers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from trio_vfio._device._vfio import _uapi

HEADERS: Final = ("linux/vfio.h", "linux/iommufd.h")

NUMBERS: Final = {
    name: value
    for name, value in vars(_uapi).items()
    if name.startswith(("VFIO_", "IOMMU_"))
}
# Members of an enum, which the preprocessor does not know, and the macro that came
# with them.
ENUM: Final = "VFIO_DEVICE_STATE_"
WITH_ENUM: Final = "VFIO_MIGRATION_PRE_COPY"
LAYOUTS: Final = [
    value for value in vars(_uapi).values() if isinstance(value, _uapi.Layout)
]
# What came to the headers together with a struct.
SINCE: Final = {
    "vfio_device_bind_iommufd": "VFIO_DEVICE_BIND_IOMMUFD",
    "vfio_device_attach_iommufd_pt": "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
    "iommu_ioas_alloc": "IOMMU_IOAS_ALLOC",
    "vfio_precopy_info": "VFIO_MIG_GET_PRECOPY_INFO",
    "vfio_device_feature": "VFIO_DEVICE_FEATURE",
    "vfio_device_feature_migration": "VFIO_DEVICE_FEATURE_MIGRATION",
    "vfio_device_feature_mig_state": "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE",
    "vfio_device_feature_mig_data_size": "VFIO_DEVICE_FEATURE_MIG_DATA_SIZE",
}


def guarded(macro: str | None, line: str) -> list[str]:
    return [line] if macro is None else [f"#ifdef {macro}", line, "#endif"]


def source() -> str:
    lines = ["#include <stddef.h>", "#include <stdio.h>"]
    for header in HEADERS:
        lines += [
            f"#if __has_include(<{header}>)",
            f"#include <{header}>",
            "#endif",
        ]
    lines.append("int main(void) {")
    for name in NUMBERS:
        macro = WITH_ENUM if name.startswith(ENUM) else name
        lines += guarded(macro, f'printf("{name} %lld\\n", (long long)({name}));')
    for layout in LAYOUTS:
        struct = f"struct {layout.name}"
        ends = ", ".join(
            f"offsetof({struct}, {field}), sizeof((({struct} *)0)->{field})"
            for field in layout.fields
        )
        places = " %zu" * (2 * len(layout.fields))
        text = f'printf("{layout.name} %zu{places}\\n", sizeof({struct}), {ends});'
        lines += guarded(SINCE.get(layout.name), text)
    return "\n".join([*lines, "return 0; }", ""])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    compiler = shutil.which("cc") or shutil.which("tcc")
    if compiler is None or not Path("/usr/include/linux/vfio.h").exists():
        pytest.skip("no C compiler, or no headers of the kernel")
    directory = tmp_path_factory.mktemp("uapi")
    (directory / "probe.c").write_text(source())
    command = [compiler, "-o", "probe", "probe.c"]
    subprocess.run(command, cwd=directory, check=True)
    said = subprocess.run(
        [str(directory / "probe")], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split() for line in said.splitlines()]
    return {name: [int(number) for number in numbers] for name, *numbers in rows}


def test_numbers(found: dict[str, list[int]]) -> None:
    known = {name: value for name, value in NUMBERS.items() if name in found}
    assert known == {name: found[name][0] for name in known}
    # As old as the version 2 of the migration interface, at the latest.
    assert "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE" in known


def test_layouts(found: dict[str, list[int]]) -> None:
    known = [layout for layout in LAYOUTS if layout.name in found]
    assert "vfio_device_feature_mig_state" in {layout.name for layout in known}
    for layout in known:
        size, *places = found[layout.name]
        offsets, sizes = places[::2], places[1::2]
        assert offsets == [layout.offset(field) for field in layout.fields]
        # Without a gap, and the last one is as long as we think.
        assert offsets[1:] + [layout.size] == [
            at + long for at, long in zip(offsets, sizes, strict=True)
        ]
        # Later kernels may know more.
        assert size >= layout.size


def test_a_feature_says_how_large_it_is() -> None:
    request = _uapi.encode_feature(0x20002, _uapi.FEATURE_MIG_STATE.encode(data_fd=-1))
    assert _uapi.FEATURE.decode(request) == {"argsz": 16, "flags": 0x20002}
    state = _uapi.FEATURE_MIG_STATE.decode(request[_uapi.FEATURE.size :])
    assert state == {"device_state": 0, "data_fd": -1}


def test_a_struct_says_how_large_it_is() -> None:
    assert _uapi.PRECOPY_INFO.decode(_uapi.PRECOPY_INFO.encode())["argsz"] == 24
    assert _uapi.IOAS_ALLOC.decode(_uapi.IOAS_ALLOC.encode())["size"] == 12
