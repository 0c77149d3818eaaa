"""What of a network is trained, and therefore travels."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kws.config import ModelRecipe
from kws.models.classifier import Classifier
from kws.models.family import Family, ModelError
from kws.models.loading import initialise

BATCH_NORM = torch.nn.modules.batchnorm._NormBase
NORMS = (torch.nn.LayerNorm, torch.nn.GroupNorm, BATCH_NORM)
VECTORS = "biases_and_norms"
STATISTICS = ("running_mean", "running_var")
"""What a batch norm learns without gradients; it is averaged over the sites like what is trained."""


def train_only(network: Any, family: Family, recipe: ModelRecipe, seed: int) -> None:
    """Freeze, in place, what the recipe does not train; adds LoRA's matrices where it says so.

    Raises:
        ModelError: the network has fewer layers than are to be trained.
    """
    fixed = {name for name, weights in network.named_parameters() if not weights.requires_grad}  # Whisper's positions
    passed_by = tuple(f"{family.encoder}.{part}" for part in family.not_read(network.config))
    fixed |= {name for name, _ in network.named_parameters() if name.startswith(passed_by)}
    if recipe.trains == "lora":
        _add_lora(network, family, recipe, seed)
    wanted = _wanted(network, family, recipe)
    for name, weights in network.named_parameters():
        weights.requires_grad_(name not in fixed and (not name.startswith(f"{family.encoder}.") or wanted(name)))
    for front in family.front:
        # Else the library computes a gradient for the waveform too, which nobody reads: a tenth of the time.
        network.get_submodule(f"{family.encoder}.{front}")._requires_grad = False


def _wanted(network: Any, family: Family, recipe: ModelRecipe) -> Callable[[str], bool]:
    """Which tensors of the encoder are trained, by name."""
    front = tuple(f"{family.encoder}.{part}." for part in family.front)
    layers = f"{family.encoder}.{family.layers}"
    count = len(network.get_submodule(layers))
    if recipe.trains == "top_layers" and recipe.top_layers > count:
        raise ModelError(f"model.top_layers is {recipe.top_layers}; {recipe.name} has {count} layers")
    top = tuple(f"{layers}.{number}." for number in range(count - recipe.top_layers, count))
    norms = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, NORMS))
    rules: dict[str, Callable[[str], bool]] = {
        "all": lambda name: True,
        "all_but_feature_encoder": lambda name: True,
        "top_layers": lambda name: name.startswith(top),
        "head": lambda name: False,
        "lora": lambda name: ".lora_B." in name,
        "biases_and_norms": lambda name: name.endswith(".bias") or name.startswith(norms),
    }
    rule = rules[recipe.trains]
    return rule if recipe.trains == "all" else lambda name: not name.startswith(front) and rule(name)


def _add_lora(network: Any, family: Family, recipe: ModelRecipe, seed: int) -> None:
    """Put W + alpha / rank * B A in the place of W (Hu et al. 2022), with A frozen (FFA-LoRA, Sun et al. 2024).

    The mean of the sites' B A is not the mean of B times the mean of A; with one A for all, drawn from the seed, it is.
    """
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(r=recipe.lora_rank, lora_alpha=recipe.lora_alpha, target_modules=list(family.lora))
    inject_adapter_in_model(settings, network)
    for name, weights in network.named_parameters():
        if ".lora_A." in name:
            initialise(network, [name], seed, std=(3 * weights.shape[1]) ** -0.5)  # as large as peft's


def trained(model: Classifier) -> dict[str, torch.Tensor]:
    """What training changes, by name: the model's own parameters, and the statistics of its batch norms."""
    return dict(_trained(model.network))


def trained_tensors(model: Classifier) -> dict[str, np.ndarray]:
    """The tensors that training changes, by name, float32, as `packed`. Only these are federated."""
    return packed(model, trained(model))


def packed(model: Classifier, tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Tensors by the names of what is trained, or some of it, as they travel: float32 arrays.

    On the CPU they are the tensors' own memory and change with it; but where no matrix of the encoder is trained, its
    vectors travel as one, joined: the names of hundreds would be more than a hundredth of the bytes.
    """
    own = dict(tensors)
    vectors = [own.pop(name).detach() for name in _vectors(model, own)]
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in own.items()}
    return arrays | ({VECTORS: torch.cat(vectors).cpu().numpy()} if vectors else {})


def trained_weights(model: Classifier) -> dict[str, np.ndarray]:
    """Copies of the trained tensors."""
    return {name: array.copy() for name, array in trained_tensors(model).items()}


def load_weights(model: Classifier, weights: Mapping[str, np.ndarray]) -> None:
    """Put trained tensors into the model, in place.

    Raises:
        ModelError: names or shapes are not those of the model.
    """
    unpack(model, trained(model), weights)


def unpack(
    model: Classifier, tensors: Mapping[str, torch.Tensor], weights: Mapping[str, np.ndarray], prefix: str = ""
) -> None:
    """Put what has travelled into tensors, in place: what was `packed`, under names that begin so.

    Other names with a slash are not looked at.

    Raises:
        ModelError: names or shapes are not those of the tensors.
    """
    own = dict(tensors)
    vectors = {name: own.pop(name) for name in _vectors(model, own)}
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    shapes |= {VECTORS: (sum(len(vector) for vector in vectors.values()),)} if vectors else {}
    there = {name.removeprefix(prefix) for name in weights if name.startswith(prefix)}
    if differing := shapes.keys() ^ {name for name in there if "/" not in name}:
        raise ModelError(f"the tensors are not this model's; they differ in: {', '.join(sorted(differing))}")
    with torch.no_grad():
        for name, shape in shapes.items():
            array = weights[f"{prefix}{name}"]  # read from disk now, if it is there
            if shape != array.shape:
                raise ModelError(f"{name} has shape {tuple(array.shape)}; this model's is {shape}")
            given = torch.from_numpy(np.require(array, requirements=["C", "W"]))
            if name in own:
                own[name].copy_(given)
            else:
                parts = torch.split(given, [len(vector) for vector in vectors.values()])
                for vector, part in zip(vectors.values(), parts, strict=True):
                    vector.copy_(part)
        for name, tensor in tensors.items():
            if name.endswith("running_var"):
                tensor.clamp_(min=0)  # an update in few bits may round a variance below zero


def frozen_digest(model: Classifier) -> str:
    """SHA-256 of all that does not travel: names, shapes and values of tensors, configuration, feature extractor."""
    travels = {name for name, _ in _trained(model.network)}
    digest = hashlib.sha256()
    for settings in (model.network.config.to_dict(), model.extractor.to_dict()):
        told = {name: value for name, value in settings.items() if name not in _OF_A_FILE}
        digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.network.state_dict().items()):
        if name not in travels and not name.endswith("num_batches_tracked"):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


_OF_A_FILE = {"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}
"""What a configuration says about the file that it came from."""


def check_frozen(model: Classifier, expected: str) -> None:
    """Refuse a model that differs from the experimenter's in what does not travel.

    Raises:
        ModelError: with both digests.
    """
    found = frozen_digest(model)
    if found != expected:
        name = model.network.config._name_or_path
        raise ModelError(
            f"the frozen part of the model is not the experimenter's: here {found}, there {expected}. Training on it "
            f"would cost accuracy in silence. Copy the same files to {name or 'every site'} on every machine (or, for "
            f"a hub name, pin model.revision to a commit), with the same version of this workspace, and submit again"
        )


def merged_state(network: Any) -> dict[str, torch.Tensor]:
    """The network's tensors under the library's names, with what LoRA adds put into what it is added to."""
    state = {name: tensor for name, tensor in network.state_dict().items() if ".lora_" not in name}
    for name, module in network.named_modules():
        if hasattr(module, "get_delta_weight"):
            key = f"{name}.base_layer.weight"
            state[key] = state[key] + module.get_delta_weight("default")
    return {name.replace(".base_layer.", "."): tensor.detach().contiguous() for name, tensor in state.items()}


def save_adapter(model: Classifier, folder: Path) -> None:
    """Write LoRA's matrices and the head alone, as `peft.PeftModel.from_pretrained` loads them onto the base model.

    Raises:
        ModelError: nothing was trained by LoRA, or the head has a tensor that is in no module, which peft cannot load.
    """
    from safetensors.torch import save_file

    network = model.network
    settings = getattr(network, "peft_config", {}).get("default")
    if settings is None or hasattr(network, "layer_weights"):
        raise ModelError("only LoRA on a head without layer weights can be saved alone; use save_pretrained")
    head = sorted({name.split(".")[0] for name, _ in network.named_parameters()} - {model.family.encoder})
    settings.modules_to_save, settings.base_model_name_or_path = head, network.config._name_or_path
    settings.save_pretrained(folder)
    kept = ((name, tensor) for name, tensor in network.state_dict().items() if name.startswith((*head, ".lora_")))
    names = {name: tensor for name, tensor in network.state_dict().items() if ".lora_" in name} | dict(kept)
    save_file(
        {f"base_model.model.{name.replace('.default', '')}": tensor.contiguous() for name, tensor in names.items()},
        folder / "adapter_model.safetensors",
    )


def _vectors(model: Classifier, own: Mapping[str, torch.Tensor]) -> list[str]:
    """What travels joined: what is trained of the encoder, if that is vectors only."""
    names = [name for name in own if name.startswith(f"{model.family.encoder}.")]
    return names if all(own[name].ndim == 1 for name in names) else []


def _trained(network: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weights in network.named_parameters():
        if weights.requires_grad:
            yield name, weights
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._NormBase) and any(
            w.requires_grad for w in module.parameters()
        ):
            yield from ((f"{name}.{each}", module.get_buffer(each)) for each in STATISTICS)
