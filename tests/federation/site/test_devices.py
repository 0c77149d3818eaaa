import logging

import pytest

from federation.site.devices import load_monitor, present


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
