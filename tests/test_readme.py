"""Pure tests of README.md: its commands are those that CI runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]


def test_readme_has_the_commands_that_ci_runs() -> None:
    blocks = re.findall(
        r"^```sh\n(.*?)^```$",
        (ROOT / "README.md").read_text(),
        re.DOTALL | re.MULTILINE,
    )
    commands = (ROOT / ".ci" / "readme-commands").read_text().splitlines()
    assert [block.splitlines() for block in blocks[:2]] == [[line] for line in commands]
