"""A clock of its own for a process and all that it starts, which can be set while they run: libfaketime's; the machine's stays."""

import os
from pathlib import Path

import pytest

# libfaketime's clock_nanosleep, by which Python sleeps, refuses every call where the monotonic clock is left as it is.
SLEEP = "import select, time\n\ntime.sleep = lambda seconds: select.select([], [], [], seconds) and None\n"
LIBRARIES = sorted(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))


class Clock:
    """Beside the machine's by what is written to a file; how long something takes it tells as ever."""

    def __init__(self, file: Path, offset: str = "+0") -> None:
        if not LIBRARIES:
            pytest.skip("no libfaketime on this machine: no clock was set (apt-get install faketime)")
        self.file = file
        self.sleep = file.with_name(f"{file.name}-sleep")
        self.sleep.mkdir()
        (self.sleep / "sitecustomize.py").write_text(SLEEP)
        self.set(offset)

    def set(self, offset: str) -> None:
        """Set it, as to "-1h", an hour behind the machine's; for what runs already, too."""
        self.file.write_text(f"{offset}\n")

    def environment(self) -> dict[str, str]:
        """Of a process that goes by it."""
        return {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "PYTHONPATH": os.pathsep.join([str(self.sleep), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(os.pathsep),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",  # times of files are what they are
        }
