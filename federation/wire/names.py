"""Which names a site and an experiment may have; the settings, the notebook and the director's edge ask."""

from urllib.parse import quote

NAME_CHARACTERS = 100


def site_name_problem(name: str) -> str | None:
    """What is wrong with a site's name, or None."""
    plain = name.replace("_", "").replace("-", "")
    if plain.isascii() and plain.isalnum() and len(name) <= NAME_CHARACTERS:
        return None
    return f"{name[:60]!r} is not a site name; allowed: up to {NAME_CHARACTERS} letters, digits, '-' and '_'"


def experiment_name_problem(name: str) -> str | None:
    """What is wrong with an experiment's name, or None; it has to be good for the name of a folder, too."""
    if name[:1].isalnum() and name.isprintable() and len(name) <= NAME_CHARACTERS and len(quote(name, safe="")) < 250:
        return None
    return (
        f"{name[:60]!r} is not a name for an experiment; allowed: up to {NAME_CHARACTERS} characters that can be "
        f"printed (fewer of other alphabets), the first a letter or a digit"
    )
