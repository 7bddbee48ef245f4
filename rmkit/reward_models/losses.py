"""The training losses, as pure functions of rewards: Bradley-Terry (Eq. 3) and verification (Eq. 7)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from rmkit.models.numerics import at_least_float32


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Tensor:
    """Negative log-likelihood that chosen beats rejected (Eq. 3): mean of -ln sigmoid(r+ - r- - margin).

    For EX-RMs and IM-RMs. With r+ = 1, r- = 0: -ln sigmoid(1) = 0.3133.

    Args:
        chosen: [pairs] rewards of the chosen responses.
        rejected: [pairs] rewards of the rejected responses.
        margin: [pairs] by how much chosen should win; 0 if absent, as in the paper.

    Returns:
        scalar, in nats, at least float32 whatever the dtype of the rewards.
    """
    difference = at_least_float32(chosen) - at_least_float32(rejected)
    return -logsigmoid(difference if margin is None else difference - margin).mean()


def verification(chosen_log_prob_yes: Tensor, rejected_log_prob_no: Tensor) -> Tensor:
    """EX-GRM loss (Eq. 7): mean of -ln P(Yes | I[x, y+]) - ln P(No | I[x, y-]).

    The sum over both responses of a pair, as in the equation; the paper's released code takes half of it.

    Args:
        chosen_log_prob_yes: [pairs] ln P(Yes) after the verification prompt with the chosen response.
        rejected_log_prob_no: [pairs] ln P(No) after the verification prompt with the rejected response.

    Returns:
        scalar, in nats.
    """
    return -(at_least_float32(chosen_log_prob_yes) + at_least_float32(rejected_log_prob_no)).mean()
