"""An experiment's algorithm by name, from the command line to the rule."""

import pytest

from kws.config import Algorithm, ConfigError, ExperimentConfig
from lab.algorithms import check_numbers, described_rule, rule_of
from lab.changes import changed
from lab.presets import asked_for
from rules.adaptive import FedAdam
from rules.mean import Mean


def test_what_the_command_line_changes_is_the_rule() -> None:
    lines = ["algorithm.rule=fedadam", "algorithm.server_learning_rate=0.01", "algorithm.max_update_norm=1e1"]
    config = changed(ExperimentConfig(), lines)
    assert rule_of(config.algorithm) == FedAdam(server_learning_rate=0.01, max_update_norm=10.0)
    assert described_rule(config.algorithm) == {
        "name": "fedadam",
        "server_learning_rate": 0.01,
        "max_update_norm": 10.0,
    }
    assert asked_for(None, None, lines) == asked_for(None, None, list(reversed(lines)))
    assert ExperimentConfig.from_dict(config.to_dict()) == config
    assert rule_of(Algorithm()) == Mean()
    assert described_rule(Algorithm()) == {"name": "mean"}


@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        (["algorithm.rule=fedadm"], ["algorithm.rule is 'fedadm'; allowed: mean, fedavgm, fedadam, "]),
        (
            ["algorithm.rule=trimmed_mean", "algorithm.trim=0.5", "algorithm.beta1=0.5", "algorithm.weight_cap=3"],
            [
                "algorithm.weight_cap is no number of this rule; allowed: max_update_norm, trim",
                "algorithm.beta1 is no number of this rule",
                "algorithm.trim is 0.5; allowed: a finite number, at least 0, below 0.5",
            ],
        ),
        (
            ["algorithm.rul=mean", "algorithm.proximal=-1"],
            ["there is no algorithm.rul; allowed here: rule, ", "algorithm.proximal is -1"],
        ),
        (["algorithm=mean"], ["algorithm is 'mean'; it has values of its own: rule, "]),
    ],
)
def test_every_problem_is_named_where_it_is_asked_for(lines: list[str], texts: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        asked_for(None, None, lines)
    told = str(raised.value).splitlines()
    assert len(told) == len(texts)
    assert all(line.startswith(text) for line, text in zip(told, texts, strict=True)), told


def test_a_rule_that_only_the_director_has_is_the_directors_to_judge() -> None:
    check_numbers(Algorithm(rule="theirs", beta1=7.0))
    with pytest.raises(ConfigError, match=r"algorithm.beta1 is 7.0; allowed: a finite number, at least 0, below 1"):
        check_numbers(Algorithm(rule="fedadam", beta1=7.0))
