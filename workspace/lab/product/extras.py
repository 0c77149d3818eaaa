"""Parts that need packages beyond the base install: each is an extra of `pyproject.toml`."""

from importlib.util import find_spec

from lab.product.spotter import SpotterError


def require(extra: str, *modules: str) -> None:
    """Say which extra is missing, before anything of it is imported.

    Raises:
        SpotterError: one of the modules is not installed.
    """
    if missing := [module for module in modules if find_spec(module) is None]:
        raise SpotterError(
            f"this needs the extra {extra!r} ({', '.join(missing)} not installed): "
            f"pip install --constraint constraints.txt '.[{extra}]'"
        )
