"""OpenFL 1.6 made dependable: director, envoy, trainer and notebook client.

This package knows nothing of audio. It subclasses the engine where the engine lets a class be named (the plan
and the launchers); each module says which file and line of the engine it mends, and what was wrong there.
"""

from federation.imports import import_engine

import_engine()
