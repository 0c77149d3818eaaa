"""The experimenter's side: connect to a director, submit, follow, take the model."""

from federation.imports import import_engine

import_engine()
