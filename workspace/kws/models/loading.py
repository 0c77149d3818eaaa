"""From a name on the hub, or a folder, to a network and its feature extractor."""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig
from transformers.utils import cached_file

from kws.config import ModelRecipe
from kws.models import heads
from kws.models.family import Family, ModelError
from kws.models.labels import kept_rows, label_maps
from kws.models.registry import FAMILIES
from shard_descriptors.corpus import ClipFormat

logger = logging.getLogger(__name__)


def pretrained(recipe: ModelRecipe, seed: int, form: ClipFormat) -> tuple[Any, Any]:
    """The network of a recipe with a head for these labels, float32, and its feature extractor.

    What the checkpoint lacks is initialised from the seed: the head, and the embedding of masked frames.

    Raises:
        ModelError: the weights cannot be had, or are not whole; says what to do.
    """
    name = str(Path(recipe.name).expanduser()) if recipe.name.startswith("~") else recipe.name
    if recipe.revision is not None and _is_path(name):
        raise ModelError(f"model.revision is for models of the hub; {name} is a folder: leave it out")
    try:
        return _load(name, recipe, seed, form)
    except ModelError:
        raise
    except Exception as error:  # the libraries raise a dozen kinds for what can be wrong with a file
        if Path(name).is_dir():
            raise ModelError(
                f"{name} does not hold a whole model ({_first_line(error)}); it needs config.json and "
                f"model.safetensors or pytorch_model.bin, with all shards. Copy it again, or change model.name"
            ) from error
        if _is_path(name):
            raise ModelError(
                f"there is no folder {name} on this machine; every site and the notebook need the model under "
                f"the path that model.name gives. Copy it there, or give a hub name or 'tiny'"
            ) from error
        at = f" at revision {recipe.revision!r}" if recipe.revision else ""
        raise ModelError(
            f"the weights of {name!r}{at} cannot be had: no such local folder, and the hub did not give them. "
            f"On a machine with the internet, run `hf download {name} --local-dir FOLDER`, copy FOLDER to "
            f"every site and give its path as model.name; or give 'tiny', which needs no download."
        ) from error


def head_settings(recipe: ModelRecipe) -> dict[str, Any]:
    """What a configuration says about the head of a recipe; of the library's own, nothing."""
    if recipe.head == "own":
        return {}
    return {
        "head": recipe.head,
        "use_weighted_layer_sum": recipe.head == "weighted_sum",
        "classifier_proj_size": recipe.head_size,
        "adapter_hidden_size": recipe.adapter_hidden_size,
        "head_dropout": recipe.dropout,
    }


def network_class(family: Family, recipe: ModelRecipe) -> Any:
    """The library's class where it has the head (the weighted sum, but for one), else one of ours."""
    ours = recipe.head == "adapter" or (recipe.head == "weighted_sum" and family.library.startswith("AST"))
    return getattr(heads if ours else transformers, family.library)


def masking(recipe: ModelRecipe) -> dict[str, Any]:
    """What a configuration says about SpecAugment."""
    if not recipe.spec_augment:
        return {"apply_spec_augment": False}
    names = ("mask_time_prob", "mask_time_length", "mask_feature_prob", "mask_feature_length")
    least = {"mask_time_min_masks": 0, "mask_feature_min_masks": 0}  # two of ten frames are 40 % of a second
    return {"apply_spec_augment": True} | least | {name: getattr(recipe, name) for name in names}


def _load(name: str, recipe: ModelRecipe, seed: int, form: ClipFormat) -> tuple[Any, Any]:
    source = {"revision": recipe.revision or "main"}
    kind = PretrainedConfig.get_config_dict(name, **source)[0].get("model_type")
    if kind is None:
        raise ValueError("no config.json that names a model_type")
    if kind not in FAMILIES:
        raise ModelError(f"{name} holds a model of type {kind!r}; this workspace trains {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    library = network_class(family, recipe)
    config = library.config_class.from_pretrained(name, **source)
    drops = {"layerdrop", "encoder_layerdrop"} & config.to_dict().keys()
    settings = dict.fromkeys(family.dropouts, recipe.dropout) | dict.fromkeys(drops, 0.0) | head_settings(recipe)
    config.update(settings | (masking(recipe) if family.masks else {}))
    for stale in {"head", "auto_map"} - settings.keys():  # of a head of ours that the checkpoint may have had
        config.__dict__.pop(stale, None)
    library.base_model_prefix = family.prefix or library.base_model_prefix
    with _without_report():
        network, found = library.from_pretrained(
            name,
            **source,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    new = set(found["missing_keys"]) | {key for key, *_ in found["mismatched_keys"]}
    _refuse_half(network, family, new, found["unexpected_keys"])
    _fit_head(network, family, new, seed, form.labels, name)
    return network, _extractor(name, source, family, config)


@contextmanager
def _without_report() -> Iterator[None]:
    """Without the library's report of what is MISSING: that is refused, or filled from the seed, right after."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)


def _refuse_half(network: Any, family: Family, new: set[str], not_used: Iterable[str]) -> None:
    """A head may be new, and the embedding of masked frames, which many checkpoints lack; nothing else."""
    absent = sorted(key for key in new if key.startswith(f"{family.encoder}.") and "masked_spec_embed" not in key)
    if absent:
        raise ValueError(f"{len(absent)} of its tensors are missing or of another size, {absent[0]} for one")
    layers = len(network.get_submodule(f"{family.encoder}.{family.layers}"))
    for key in not_used:
        place = re.search(rf"(?:^|\b{family.encoder}\.){re.escape(family.layers)}\.(\d+)\.", key)
        if place and int(place[1]) >= layers:
            raise ValueError(f"it holds {key}, and by its config.json it has {layers} layers")
    for key, tensor in network.state_dict().items():
        if key not in new and not tensor.isfinite().all():
            raise ValueError(f"{key} holds values that are no numbers")


def _fit_head(network: Any, family: Family, new: set[str], seed: int, labels: Sequence[str], name: str) -> None:
    """Give each label the row of the trained head that it had there, by name; the rest comes from the seed."""
    config, last = network.config, _last_linear(network)
    head = {key for key in network.state_dict() if not key.startswith(f"{family.encoder}.")}
    published = [config.id2label[number] for number in range(config.num_labels)]
    rows = {} if head & new else kept_rows(published, labels)
    old = last.weight.detach().clone(), last.bias.detach().clone()
    last.out_features = len(labels)
    last.weight = torch.nn.Parameter(torch.empty(len(labels), last.in_features))
    last.bias = torch.nn.Parameter(torch.empty(len(labels)))
    config.update(label_maps(labels))
    key = next(key for key, module in network.named_modules() if module is last)
    initialise(network, new | {f"{key}.weight", f"{key}.bias"} | (set() if rows else head), seed)
    with torch.no_grad():
        for row, their in rows.items():
            last.weight[row], last.bias[row] = old[0][their], old[1][their]
    if rows and len(rows) < len(labels):
        fresh = [label for number, label in enumerate(labels) if number not in rows]
        logger.warning("%s: its head knows %d of the labels; new are %s", name, len(rows), ", ".join(fresh))


def _last_linear(network: Any) -> torch.nn.Linear:
    *_, last = (module for module in network.classifier.modules() if isinstance(module, torch.nn.Linear))
    return last


def initialise(network: Any, names: Iterable[str], seed: int, std: float | None = None) -> None:
    """Fill tensors, in place, from the seed and their own name: whatever else is new, the same values.

    As the library does it, which leaves some of them as they were in memory: matrices normal, biases 0, norms 1, the
    embedding of masked frames uniform, the layers' weights equal.
    """
    std = std or getattr(network.config, "initializer_range", 0.02)
    for name in names:
        tensor = network.get_parameter(name).data
        draw = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8]))
        if name.endswith("layer_weights"):
            tensor.fill_(1 / len(tensor))
        elif name.endswith("masked_spec_embed"):
            tensor.uniform_(generator=draw)
        elif tensor.ndim == 1:
            tensor.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            tensor.normal_(0, std, generator=draw)


def _extractor(name: str, source: dict[str, str], family: Family, config: Any) -> Any:
    files = ("preprocessor_config.json", "processor_config.json")
    if all(cached_file(name, file, **source, _raise_exceptions_for_missing_entries=False) is None for file in files):
        return family.default_extractor(config)
    return family.extractor_class.from_pretrained(name, **source)


def _is_path(name: str) -> bool:
    """Whether a name can only be meant as a path: on the hub it has one slash at most."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
