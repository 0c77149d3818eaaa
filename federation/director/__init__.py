"""The operator's side: who is there, which experiment runs, and what is kept of it. Never imports a site's side."""

from federation.imports import import_engine

import_engine()
