"""`python -m kws`: see `kws.cli`."""

from kws.cli import app

app()
