"""Accuracy and tie rate of rewards, as an `evaluate` module (Definition 1)."""

import datasets
import evaluate

from rmkit.evaluation import statistics

_DESCRIPTION = "Share of preference pairs whose chosen response has the higher reward; a tie counts 1/2."
_INPUTS = "chosen_rewards, rejected_rewards: one reward per pair."
_CITATION = "Razin et al. (2025), Why is Your Language Model a Poor Implicit Reward Model?, Definition 1"


class PreferenceAccuracy(evaluate.Metric):
    """compute(chosen_rewards=[pairs], rejected_rewards=[pairs]) -> {"accuracy", "tie_rate"}."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"chosen_rewards": datasets.Value("float64"), "rejected_rewards": datasets.Value("float64")}
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS, features=features
        )

    def _compute(self, chosen_rewards: list[float], rejected_rewards: list[float]) -> dict[str, float]:
        return {
            "accuracy": statistics.accuracy(chosen_rewards, rejected_rewards),
            "tie_rate": statistics.tie_rate(chosen_rewards, rejected_rewards),
        }
