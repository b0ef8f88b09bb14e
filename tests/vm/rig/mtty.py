"""What is changed in Linux's sample driver mtty, so that tests can ask more of it.

`mtty_rig.h` says what for. It is called from the driver's functions at places that are
looked up here by names of functions and variables. A place that is not found as often
as expected means that the driver is another one than we know.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .host import RigError

SOURCE: Final = "samples/vfio-mdev/mtty.c"
HEADER: Final = Path(__file__).with_name("mtty_rig.h")


@dataclass(frozen=True)
class Edit:
    """Replace *pattern* by *text* in the part of the file that *where* matches."""

    where: str
    pattern: str
    text: str
    times: int = 1

    def apply(self, source: str) -> str:
        """Return *source*, changed.

        Raises:
          RigError: if the pattern is not there exactly *times* times.
        """
        parts = list(re.finditer(self.where, source, re.MULTILINE | re.DOTALL))
        if len(parts) != 1:
            raise RigError(f"{SOURCE}: {len(parts)} times {self.where!r}")
        start, end = parts[0].span()
        changed, found = re.subn(
            self.pattern, self.text, source[start:end], flags=re.MULTILINE
        )
        if found != self.times:
            raise RigError(
                f"{SOURCE}: {found} times {self.pattern!r} in {self.where!r},"
                f" and not {self.times}"
            )
        return source[:start] + changed + source[end:]


_FILE: Final = r"\A.*\Z"


def struct(name: str) -> str:
    """Return a pattern of the structure *name*."""
    return rf"^struct {name}\s*\{{.*?^\}};"


def function(name: str) -> str:
    """Return a pattern of the function *name*."""
    # Its braces are the first characters of their lines. A call's are not, and
    # behind a declaration comes a semicolon.
    return rf"\b{name}\([^;{{]*^\{{.*?^\}}"


_EDITS: Final = (
    # The state becomes the last member of what holds it, so that it can be longer.
    Edit(_FILE, r"\bkzalloc\(sizeof\(\*migf\),[^;]*\);", "rig_alloc(mdev_state);", 2),
    Edit(_FILE, r"\bkfree\(migf\)", "kvfree(migf)", 3),
    Edit(struct("mtty_migration_file"), r"^\s*struct mtty_data data;\n", ""),
    Edit(
        struct("mtty_migration_file"),
        r"^\};",
        "\tatomic_t rig_calls;\n\tstruct mtty_data data;\n};",
    ),
    Edit(
        struct("mdev_state"),
        r"^\};",
        f'\tsize_t rig_pad;\n}};\n\n#include "{HEADER.name}"',
    ),
    Edit(
        function("mtty_init_dev"),
        r"^\s*mdev_state->nr_ports = [^;]*;\n",
        "\\g<0>\tmdev_state->rig_pad = rig_pad();\n",
    ),
    Edit(function("mtty_data_size"), r"\breturn\b", "return mdev_state->rig_pad +"),
    Edit(
        function("mtty_save_state"),
        r"^\s*dev_dbg\(",
        "\trig_save_pad(migf);\n\\g<0>",
    ),
    Edit(
        function("mtty_load_state"),
        r"^\s*for \(",
        "\tif (!rig_pad_is_whole(migf, mtty_data_size(mdev_state))) {\n"
        "\t\tmutex_unlock(&migf->lock);\n"
        "\t\treturn -EINVAL;\n"
        "\t}\n"
        "\\g<0>",
    ),
    Edit(
        function("mtty_save_read"),
        r"^\s*mutex_lock\(&migf->lock\);\n",
        "\\g<0>\trig_work(READ_ONCE(read_msecs));\n",
    ),
    Edit(
        function("mtty_resume_write"),
        r"^\s*mutex_lock\(&migf->lock\);\n",
        "\\g<0>\trig_work(READ_ONCE(write_msecs));\n",
    ),
    Edit(_FILE, r"\.read = mtty_save_read\b", ".read = rig_save_read"),
    Edit(_FILE, r"\.write = mtty_resume_write\b", ".write = rig_resume_write"),
    Edit(function("mtty_set_state"), r"\bmtty_step_state\(", "rig_step_state("),
    Edit(function("mtty_ioctl"), r"\bmtty_reset\(", "rig_reset("),
)


def extend(linux: Path) -> None:
    """Change the driver in the source tree *linux*.

    Raises:
      RigError: if the driver is not the one we know.
    """
    source = linux / SOURCE
    text = source.read_text()
    for edit in _EDITS:
        text = edit.apply(text)
    source.write_text(text)
    (source.parent / HEADER.name).write_text(HEADER.read_text())
