"""What stays with the experimenter: the command line, the notebook's helpers, records, plots, baselines, simulation."""

from pathlib import Path

HOUSE = Path(__file__).resolve().parents[2]
"""The folder that holds `director/`, `envoy/` and `workspace/`."""
