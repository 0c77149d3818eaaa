import logging

import pytest

from federation.site.devices import load_monitor, present, slots


class TwoDevices:
    def get_device_name(self, index: int) -> str:
        return ["first", "second"][index]


def test_a_machine_without_driver_has_no_monitor(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert load_monitor("federation.no_such_module.Monitor") is None
    assert "no CUDA device monitor" in caplog.text
    assert load_monitor(None) is None


def test_only_devices_that_exist_are_used(caplog: pytest.LogCaptureFixture) -> None:
    assert present([0, 1], TwoDevices()) == (0, 1)
    assert present([1, 5], TwoDevices()) == (1,)
    assert "CUDA device 5 is named in the settings but not found" in caplog.text


def test_slots_take_the_devices_in_turn_or_by_name(caplog: pytest.LogCaptureFixture) -> None:
    assert slots(1, ()) == (None,)
    assert slots(2, ()) == (None, None)
    assert slots(1, (4, 5)) == (4,)
    assert slots(3, (4, 5)) == (4, 5, 4)
    assert slots({"cuda:5": 2, "cuda:4": 1}, (4, 5)) == (5, 5, 4)
    assert slots({"cuda:4": 1, "cpu": 2}, (4, 5)) == (4, None, None)
    assert not caplog.text
    assert slots({"cuda:7": 2}, (4, 5)) == (None,)
    assert "params.slots names cuda:7, which this site does not have" in caplog.text
