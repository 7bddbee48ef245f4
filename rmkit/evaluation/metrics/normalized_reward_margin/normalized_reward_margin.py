"""Absolute (normalised) reward margin, as an `evaluate` module (Appendix D.3)."""

import datasets
import evaluate

from rmkit.evaluation import statistics

_DESCRIPTION = "Mean absolute difference of a pair's rewards over the unbiased standard deviation of all 2N rewards."
_INPUTS = "chosen_rewards, rejected_rewards: one reward per pair."
_CITATION = "Razin et al. (2025), Why is Your Language Model a Poor Implicit Reward Model?, Appendix D.3"


class NormalizedRewardMargin(evaluate.Metric):
    """compute(chosen_rewards=[pairs], rejected_rewards=[pairs]) -> {"normalized_reward_margin"}."""

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"chosen_rewards": datasets.Value("float64"), "rejected_rewards": datasets.Value("float64")}
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS, features=features
        )

    def _compute(self, chosen_rewards: list[float], rejected_rewards: list[float]) -> dict[str, float]:
        return {"normalized_reward_margin": statistics.normalized_margin(chosen_rewards, rejected_rewards)}
