"""The engine is imported without what nothing here uses.

pipelines/__init__.py:5 imports scikit-learn, and a few lines below PyTorch, for pipelines that compress tensors; the
engine's other interface (`openfl.federated`) imports PyTorch as well. So every process paid 2 s of CPU and 260 MB for
them, the director and each envoy included. Here they are hidden while the engine is imported; whoever trains with
PyTorch imports it afterwards, as ever.

Every process that runs the engine calls `import_engine` before anything else imports it: the rooms `director` and
`notebook` when they are entered, an envoy and a trainer when they start. What needs no engine, such as the settings and
the commands of a site's owner, starts without it.
"""

import sys
from types import ModuleType

PIPELINES = {"openfl.pipelines.kc_pipeline": "KCPipeline", "openfl.pipelines.skc_pipeline": "SKCPipeline"}
"""Modules of the engine that import scikit-learn, and what they define; models have a transport of their own."""


def import_engine() -> None:
    """Import the engine's larger parts, unless somebody else was first."""
    if "torch" in sys.modules or "openfl.pipelines" in sys.modules:
        return
    hidden: dict[str, ModuleType | None] = {"torch": None}  # to the import system: there is no such module
    for module, name in PIPELINES.items():
        hidden[module] = ModuleType(module)
        setattr(hidden[module], name, None)
    sys.modules.update(hidden)  # type: ignore[arg-type]
    try:
        import openfl.component
        import openfl.federated  # noqa: F401
    finally:
        for module in hidden:
            sys.modules.pop(module)
