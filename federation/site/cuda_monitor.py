"""The engine's CUDA device monitor, for today's driver package (the `cuda` extra).

plugins/processing_units_monitor/pynvml_monitor.py:32 decodes the driver's version, which nvidia-ml-py has returned as
text since version 12: every health check of an envoy with a GPU logged an AttributeError and reported no device.
"""

import pynvml
from openfl.plugins.processing_units_monitor.pynvml_monitor import PynvmlCUDADeviceMonitor


class CudaMonitor(PynvmlCUDADeviceMonitor):  # type: ignore[misc]
    """Named in `envoy.yaml`; importing this module fails where there is no driver."""

    def get_driver_version(self) -> str:
        """Version of the NVIDIA driver."""
        return str(pynvml.nvmlSystemGetDriverVersion())
