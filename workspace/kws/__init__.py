"""Keyword spotting: what the experimenter chooses, trains, measures and keeps. Travels to the sites as source."""

from pathlib import Path

HOUSE = Path(__file__).resolve().parents[2]
"""The folder that holds `director/`, `envoy/` and `workspace/`; only on the machine of the experimenter."""
