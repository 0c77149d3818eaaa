"""Experiments that suit a model, by name: rates, rounds and masking belong to the model that they were found for.

Each preset is a module of its own with its source: a function from a model's name to an experiment.
"""

from collections.abc import Callable, Mapping, Sequence

from kws.config import ConfigError, ExperimentConfig
from kws.settings import with_values
from lab.algorithms import rule_problems
from lab.changes import as_mapping
from lab.presets import adapter_hubert, hf_finetune, superb_ks, tiny

PRESETS: Mapping[str, Callable[[str], ExperimentConfig]] = {
    "tiny": tiny.experiment,
    "superb_ks": superb_ks.experiment,
    "hf_finetune": hf_finetune.experiment,
    "adapter_hubert": adapter_hubert.experiment,
}

MODELS: Mapping[str, str] = {
    "tiny": "tiny",
    "superb_ks": "facebook/wav2vec2-base",
    "hf_finetune": "facebook/wav2vec2-base",
    "adapter_hubert": "facebook/hubert-base-ls960",
}
"""The model that each was published with, which is trained where none is named."""


def preset(name: str | None = None, model: str | None = None) -> ExperimentConfig:
    """The experiment of that name for a model, which is "tiny", a name on the hub or a folder.

    Without a name: "tiny" for the model "tiny" or for none; for pretrained weights "superb_ks", which every family can
    and which a CPU finishes. Without a model: the one that the preset was published with.

    >>> preset(model="facebook/hubert-base-ls960").training.cache
    'probe'
    >>> preset("hf_finetune").model.name
    'facebook/wav2vec2-base'

    Raises:
        ConfigError: there is no such preset, or it is not for such a model.
    """
    name = name or ("tiny" if model in (None, "tiny") else "superb_ks")
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {name!r}; allowed: {', '.join(PRESETS)}")
    model = model or MODELS[name]
    if (name == "tiny") != (model == "tiny"):
        others = ", ".join(other for other in PRESETS if (other == "tiny") == (model == "tiny"))
        raise ConfigError(f"the preset {name!r} is not for the model {model!r}; for this one: {others}")
    return PRESETS[name](model)


def asked_for(name: str | None, model: str | None, changes: Sequence[str] = ()) -> ExperimentConfig:
    """The preset of that name for that model (see `preset`), with changes ("training.rounds=5").

    Where no model is named, a change of `model.name` says which preset it is.

    Raises:
        ConfigError: every name that does not exist and every value that is not allowed.
    """
    values = as_mapping(changes)
    group = values.get("model")
    changed_to = group.get("name") if isinstance(group, dict) else None
    usual = preset(name, model or (changed_to and str(changed_to)))
    given, problems = values.get("algorithm"), []
    try:
        config = with_values(usual, values)
    except ConfigError as error:
        problems = str(error).split("\n")
    told = {problem.partition(";")[0] for problem in problems}
    against = rule_problems(given) if isinstance(given, dict) else []
    problems += [problem for problem in against if problem.partition(";")[0] not in told]
    if problems:
        raise ConfigError("\n".join(problems))
    return config
