"""A disk that is full for a moment, and one that is full for good."""

import errno
import logging

import pytest

from federation.site import disk
from federation.site.disk import outlast


class Disk:
    """Refuses so many writes, then takes them."""

    def __init__(self, refuses: int, number: int = errno.ENOSPC) -> None:
        self.refuses, self.number, self.tries = refuses, number, 0

    def write(self) -> str:
        self.tries += 1
        if self.tries <= self.refuses:
            raise OSError(self.number, "no", "/somewhere")
        return "written"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_what_is_to_be_written_waits_for_room(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(disk, "RETRY_SECONDS", 0.001)
    caplog.set_level(logging.INFO)
    full = Disk(3, number)
    assert outlast(full.write, "a line") == "written"
    assert full.tries == 4
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0] == "the disk is full (/somewhere): a line waits up to 600 s for room"
    assert told[1] == "the disk has room again: a line is written"


def test_other_errors_and_a_disk_that_stays_full_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PermissionError):
        outlast(Disk(1, errno.EACCES).write, "a line")
    monkeypatch.setattr(disk, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(disk, "GIVE_UP_AFTER", 0.02)
    full = Disk(10**9)
    with pytest.raises(OSError, match="no"):
        outlast(full.write, "a line")
    assert full.tries > 2
