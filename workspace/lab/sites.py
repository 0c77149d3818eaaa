"""One more site: its folder, its YAML and its start script, and what to change in the others."""

import re
from pathlib import Path

import yaml

from lab import HOUSE
from lab.tables import GLOBAL, POOLED


class SiteError(ValueError):
    """A site that cannot be added."""


def add_site(name: str, house: Path = HOUSE) -> str:
    """Write `<name>/envoy.yaml` and `<name>/start_envoy.sh`, made from those of `envoy`, for the next shard.

    Returns:
        What was written and what to change in the other sites.

    Raises:
        SiteError: the name cannot be used or is taken.
    """
    folder = house / name
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise SiteError(f"{name!r} is not a site name; use letters, digits, '-' and '_', e.g. envoy_three")
    if name in (GLOBAL, POOLED):
        raise SiteError(f"{name!r} is the name of results that belong to no site; give the new site another name")
    if folder.exists():
        raise SiteError(f"{folder} exists already; give the new site another name")
    others = sorted(path.parent.name for path in house.glob("*/envoy.yaml"))
    count = len(others) + 1
    template = (house / "envoy" / "envoy.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^name: .*", f"name: {name}", template, flags=re.MULTILINE)
    own = yaml.safe_load(template)["shard_descriptor"]["params"].get("partition") == "own"
    for setting in ("envoys_on_this_machine", *(() if own else ("shard", "of"))):
        text = re.sub(rf"^( +{setting}: )\d+", rf"\g<1>{count}", text, flags=re.MULTILINE)
    text = text.replace("cert/envoy.", f"cert/{name}.")
    if not own and yaml.safe_load(text)["shard_descriptor"]["params"].get("shard") != count:
        raise SiteError(
            f"{house / 'envoy' / 'envoy.yaml'} gives no `shard` that a new site could follow; write `shard: 1` "
            f"into it, or `partition: own`"
        )
    folder.mkdir()
    (folder / "envoy.yaml").write_text(text, encoding="utf-8")
    script = folder / "start_envoy.sh"
    script.write_bytes((house / "envoy" / "start_envoy.sh").read_bytes())
    script.chmod(0o755)
    if own:
        return (
            f"Wrote {folder}/envoy.yaml and start_envoy.sh. Name its recordings there (data_path), then run "
            f"{name}/start_envoy.sh; in the notebook wait for {count} sites."
        )
    return (
        f"Wrote {folder}/envoy.yaml and start_envoy.sh for shard {count} of {count}.\n"
        f"Now change in {', '.join(f'{other}/envoy.yaml' for other in others)}:\n"
        f"    of: {count}\n"
        f"    envoys_on_this_machine: {count}    (if they share this machine)\n"
        f"and start those envoys again; then run {name}/start_envoy.sh. The notebook needs no change."
    )
