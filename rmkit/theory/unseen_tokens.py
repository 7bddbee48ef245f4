"""Implicit reward models cannot rank unseen tokens; explicit ones rank them like u* (Theorem 2).

Gradient descent in float64 on the losses of Appendix B.6, with fixed hidden states and single-token responses: by
simulation (`synthetic_task`), or on hidden states of a language model (`rmkit.theory.single_tokens`). The
implicit model's rewards are compared as differences of logits, in which the normaliser of the softmax cancels; sums of
log-probabilities would turn exact ties into rounding noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rmkit.errors import RmkitError
from rmkit.evaluation.statistics import accuracy
from rmkit.theory.separator import NotSeparable, max_margin_separator

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_RECORDS = 200


@dataclass(frozen=True)
class TokenPairs:
    """Pairs (x, y+, y-) with single-token responses, and their hidden states.

    Attributes:
        prompt: [pairs, hidden size] h_x.
        chosen, rejected: [pairs, hidden size] h_{x,y+} and h_{x,y-}.
        chosen_token, rejected_token: [pairs] rows of the unembedding.
    """

    prompt: Floats
    chosen: Floats
    rejected: Floats
    chosen_token: Ints
    rejected_token: Ints

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def differences(self) -> Floats:
        """phi_EX = h_{x,y+} - h_{x,y-} [pairs, hidden size] (Eq. 9)."""
        return self.chosen - self.rejected

    def signs(self, vocabulary: int) -> Floats:
        """e_{y+} - e_{y-} [pairs, vocabulary]; phi_IM is beta times its outer product with h_x (Eq. 9)."""
        identity = np.eye(vocabulary)
        return identity[self.chosen_token] - identity[self.rejected_token]


@dataclass(frozen=True)
class Descent:
    """Gradient descent at the recorded steps (the first is 0, before training).

    Attributes:
        steps: [records] step numbers.
        implicit_train, implicit_unseen, explicit_train, explicit_unseen: [records] accuracies (Definition 1).
        implicit_loss, explicit_loss: [records] losses on the training set (Eq. 3).
        agreement: share of unseen pairs that the final explicit model ranks as u* does.
        separator_unseen: accuracy of u* on unseen pairs, the limit of the explicit model's.
    """

    steps: list[int]
    implicit_train: list[float]
    implicit_unseen: list[float]
    implicit_loss: list[float]
    explicit_train: list[float]
    explicit_unseen: list[float]
    explicit_loss: list[float]
    agreement: float
    separator_unseen: float


_RECORDED = (
    *("implicit_train", "implicit_unseen", "implicit_loss"),
    *("explicit_train", "explicit_unseen", "explicit_loss"),
)


def learning_rate_bound(train: TokenPairs, beta: float) -> float:
    """2 B^-2 min(beta^-2, 1), below which Theorem 2 holds; B is the largest norm of a training hidden state."""
    largest = max(
        float(np.linalg.norm(states, axis=1).max()) for states in (train.prompt, train.chosen, train.rejected)
    )
    return 2 / largest**2 * min(beta**-2, 1.0)


def descend(
    train: TokenPairs,
    unseen: TokenPairs,
    unembedding: Floats,
    *,
    beta: float = 1.0,
    learning_rate: float | None = None,
    steps: int = 20_000,
) -> Descent:
    """Train an EX-RM (u from 0) and an IM-RM (U from `unembedding`, its own reference) on `train` (Theorem 2).

    The gradients are those of Eq. 10 and 11. All rows of U are updated; those of unseen tokens have gradient 0.

    Args:
        unembedding: [vocabulary, hidden size] U(0).
        learning_rate: by default 0.9 of the bound.

    Raises:
        RmkitError: if a response of `unseen` occurs in `train`, the learning rate is not below the theorem's bound, or
            one of the models cannot fit the training set (Assumption 3).
    """
    _refuse_seen_tokens(train, unseen)
    rate = _validate_rate(learning_rate, learning_rate_bound(train, beta))
    separator = _fit_separator(train, len(unembedding))
    vocabulary = len(unembedding)
    signs, unseen_signs = train.signs(vocabulary), unseen.signs(vocabulary)
    differences = train.differences
    initial = np.asarray(unembedding, dtype=np.float64)
    rows, head = initial.copy(), np.zeros(differences.shape[1])
    zeros = np.zeros(max(len(train), len(unseen)))
    recorded = {0, *np.geomspace(1, steps, _RECORDS).round().astype(int).tolist()}
    steps_recorded: list[int] = []
    record: dict[str, list[float]] = {name: [] for name in _RECORDED}
    for step in range(steps + 1):
        implicit = beta * (((signs @ rows) * train.prompt).sum(1) - ((signs @ initial) * train.prompt).sum(1))
        explicit = differences @ head
        if step in recorded:
            new = (unseen_signs @ rows) * unseen.prompt
            old = (unseen_signs @ initial) * unseen.prompt
            steps_recorded.append(step)
            record["implicit_train"].append(accuracy(implicit, zeros[: len(train)]))
            record["implicit_unseen"].append(accuracy(beta * (new.sum(1) - old.sum(1)), zeros[: len(unseen)]))
            record["implicit_loss"].append(float(np.logaddexp(0.0, -implicit).mean()))
            record["explicit_train"].append(accuracy(explicit, zeros[: len(train)]))
            record["explicit_unseen"].append(accuracy(unseen.differences @ head, zeros[: len(unseen)]))
            record["explicit_loss"].append(float(np.logaddexp(0.0, -explicit).mean()))
        rows += (rate * beta / len(train)) * (signs.T @ (_slope(implicit)[:, None] * train.prompt))
        head += (rate / len(train)) * (_slope(explicit) @ differences)
    by_head, by_separator = unseen.differences @ head, unseen.differences @ separator
    return Descent(
        steps=steps_recorded,
        **record,
        agreement=float(np.mean(np.sign(by_head) == np.sign(by_separator))),
        separator_unseen=accuracy(by_separator, zeros[: len(unseen)]),
    )


def synthetic_task(
    structured: bool = True,
    *,
    hidden_size: int = 32,
    tokens: int = 60,
    training_pairs: int = 20,
    unseen_pairs: int = 200,
    seed: int = 0,
) -> tuple[TokenPairs, TokenPairs, Floats]:
    """A training set, pairs of unseen tokens, and an unembedding [tokens, hidden size].

    The first half of the tokens are good, the second bad; training sees half of each. Hidden states of a response are
    the prompt's, plus noise and, if `structured`, a common direction with the sign of good or bad. Without it, the
    control arm, they carry no information about the response, so nothing can generalise.
    """
    generator = np.random.default_rng(seed)
    common = generator.normal(size=hidden_size)
    polarity = generator.normal(size=hidden_size)
    polarity *= 3 / np.linalg.norm(polarity)
    half, quarter = tokens // 2, tokens // 4

    def pairs(number: int, first: int) -> TokenPairs:
        prompt = common + generator.normal(size=(number, hidden_size))
        noise = generator.normal(size=(2, number, hidden_size))
        return TokenPairs(
            prompt,
            prompt + noise[0] + structured * polarity,
            prompt + noise[1] - structured * polarity,
            generator.integers(first, first + quarter, number),
            generator.integers(half + first, half + first + quarter, number),
        )

    return pairs(training_pairs, 0), pairs(unseen_pairs, quarter), generator.normal(size=(tokens, hidden_size))


def without_structure(pairs: TokenPairs, generator: np.random.Generator) -> TokenPairs:
    """The control arm for a model's hidden states: random directions of the same norms replace h_{x,y}."""

    def draw(hidden: Floats) -> Floats:
        noise = generator.normal(size=hidden.shape)
        result: Floats = noise * (np.linalg.norm(hidden, axis=1) / np.linalg.norm(noise, axis=1))[:, None]
        return result

    return replace(pairs, chosen=draw(pairs.chosen), rejected=draw(pairs.rejected))


def control_task(task: tuple[TokenPairs, TokenPairs, Floats], seed: int) -> tuple[TokenPairs, TokenPairs, Floats]:
    """A model's training pairs, unseen pairs and unembedding, both sets `without_structure`."""
    training, unseen, unembedding = task
    generator = np.random.default_rng(seed)
    return without_structure(training, generator), without_structure(unseen, generator), unembedding


def unseen_tokens_summary(descent: Descent, control: Descent) -> dict[str, Any]:
    """The content of the JSON file: Theorem 2's three claims and the control arm; accuracies at the recorded steps."""
    return {
        "implicit": {"train_accuracy": descent.implicit_train[-1], "unseen_accuracy": descent.implicit_unseen},
        "explicit": {
            "train_accuracy": descent.explicit_train[-1],
            "unseen_accuracy": descent.explicit_unseen[-1],
            "separator_unseen_accuracy": descent.separator_unseen,
        },
        "control": {
            "explicit_unseen_accuracy": control.explicit_unseen[-1],
            "separator_unseen_accuracy": control.separator_unseen,
        },
        "agreement_with_separator": descent.agreement,
        "history": {
            "step": descent.steps,
            "implicit_train_accuracy": descent.implicit_train,
            "implicit_loss": descent.implicit_loss,
            "explicit_train_accuracy": descent.explicit_train,
            "explicit_unseen_accuracy": descent.explicit_unseen,
            "explicit_loss": descent.explicit_loss,
            "control_explicit_train_accuracy": control.explicit_train,
            "control_explicit_unseen_accuracy": control.explicit_unseen,
            "control_implicit_unseen_accuracy": control.implicit_unseen,
        },
    }


def _slope(margins: Floats) -> Floats:
    """g = sigmoid(-margin) [pairs], without overflow."""
    result: Floats = np.exp(-np.logaddexp(0.0, margins))
    return result


def _refuse_seen_tokens(train: TokenPairs, unseen: TokenPairs) -> None:
    seen = {*train.chosen_token.tolist(), *train.rejected_token.tolist()}
    shared = sorted(seen & {*unseen.chosen_token.tolist(), *unseen.rejected_token.tolist()})
    if shared:
        raise RmkitError(
            f"Token {shared[0]} is a response of an unseen pair and of a training pair.",
            "Give unseen pairs whose responses are other tokens.",
        )


def _validate_rate(learning_rate: float | None, bound: float) -> float:
    if learning_rate is None:
        return 0.9 * bound
    if not 0 < learning_rate < bound:
        raise RmkitError(
            f"The learning rate {learning_rate:g} is not below Theorem 2's bound 2 B^-2 min(beta^-2, 1) = {bound:.4g}.",
            "Give a smaller --learning-rate, or omit it for 0.9 of the bound.",
        )
    return learning_rate


def _fit_separator(train: TokenPairs, vocabulary: int) -> Floats:
    """u* [hidden size], after checking that both models can fit the training set (Assumption 3)."""
    signs = train.signs(vocabulary)
    used = signs[:, np.abs(signs).sum(0) > 0]
    features = (used[:, :, None] * train.prompt[:, None, :]).reshape(len(train), -1)
    for name, rows in (("implicit", features), ("explicit", train.differences)):
        try:
            separator = max_margin_separator(rows)
        except NotSeparable as error:
            raise RmkitError(
                f"The {name} reward model cannot fit the training set (Assumption 3). {error.cause}", error.remedy
            ) from None
    return separator.direction
