"""The three claims of Theorem 2, and control arms in which they fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from rmkit.data.preferences import PreferencePair
from rmkit.encoding.chat import ChatEncoder
from rmkit.encoding.tokenizer import load_tokenizer
from rmkit.errors import RmkitError
from rmkit.reward_models.losses import bradley_terry
from rmkit.theory.single_tokens import single_token_sequences, split_by_tokens
from rmkit.theory.unseen_tokens import TokenPairs, descend, learning_rate_bound, synthetic_task, without_structure


@pytest.fixture(scope="module")
def task() -> tuple[TokenPairs, TokenPairs, np.ndarray]:
    return synthetic_task()


def test_the_three_claims(task: tuple[TokenPairs, TokenPairs, np.ndarray]) -> None:
    found = descend(*task, steps=4000)
    assert found.steps[0] == 0
    assert found.steps[-1] == 4000
    # Both fit the training set.
    assert found.implicit_train[-1] == found.explicit_train[-1] == 1
    assert found.implicit_loss[-1] < 0.01
    assert found.explicit_loss[-1] < 0.01
    assert all(later < earlier for earlier, later in zip(found.implicit_loss, found.implicit_loss[1:], strict=False))
    # The implicit model stays where it was on unseen tokens, exactly; the explicit one ranks like u*.
    assert set(found.implicit_unseen) == {0.5}
    assert found.explicit_unseen[-1] == found.separator_unseen == 1
    assert found.agreement == 1


def test_without_structure_there_is_nothing_to_generalise_by() -> None:
    found = descend(*synthetic_task(False), steps=4000)
    assert found.explicit_train[-1] == 1
    assert 0.35 < found.explicit_unseen[-1] < 0.65
    assert 0.35 < found.separator_unseen < 0.65
    assert found.agreement > 0.9
    assert set(found.implicit_unseen) == {0.5}


def test_random_directions_replace_the_structure_of_a_model(task: tuple[TokenPairs, TokenPairs, np.ndarray]) -> None:
    generator = np.random.default_rng(0)
    train, unseen = (without_structure(each, generator) for each in task[:2])
    assert np.linalg.norm(unseen.chosen, axis=1) == pytest.approx(np.linalg.norm(task[1].chosen, axis=1))
    assert 0.35 < descend(train, unseen, task[2], steps=500).explicit_unseen[-1] < 0.65


def test_the_gradients_are_those_of_the_reward_models(task: tuple[TokenPairs, TokenPairs, np.ndarray]) -> None:
    """Two steps with autograd through the softmax and the Bradley-Terry loss, against the closed form of B.6."""
    train, unseen, initial = task
    beta, rate = 0.5, 0.01
    start = torch.tensor(initial)
    rows = start.clone().requires_grad_()
    head = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    hidden = torch.tensor(train.prompt)
    chosen, rejected = torch.tensor(train.chosen_token), torch.tensor(train.rejected_token)
    losses = []
    for _ in range(3):
        log_probs = (hidden @ rows.T).log_softmax(-1) - (hidden @ start.T).log_softmax(-1)
        rewards = [beta * log_probs.gather(1, each[:, None])[:, 0] for each in (chosen, rejected)]
        implicit = bradley_terry(*rewards)
        explicit = bradley_terry(torch.tensor(train.chosen) @ head, torch.tensor(train.rejected) @ head)
        losses.append((implicit.item(), explicit.item()))
        by_rows, by_head = torch.autograd.grad(implicit + explicit, (rows, head))
        with torch.no_grad():
            rows -= rate * by_rows
            head -= rate * by_head
        assert float(by_rows[sorted({*unseen.chosen_token.tolist()})].abs().max()) == 0
    found = descend(train, unseen, initial, beta=beta, learning_rate=rate, steps=2)
    assert found.steps == [0, 1, 2]
    assert list(zip(found.implicit_loss, found.explicit_loss, strict=True)) == [pytest.approx(each) for each in losses]


def test_the_learning_rate_bound() -> None:
    hidden = np.array([[3.0, 4.0]])
    pairs = TokenPairs(hidden, 0.1 * hidden, -hidden, np.array([0]), np.array([1]))
    assert learning_rate_bound(pairs, 0.5) == pytest.approx(2 / 25)
    assert learning_rate_bound(pairs, 2.0) == pytest.approx(2 / 25 / 4)
    unseen = replace(pairs, chosen_token=np.array([2]), rejected_token=np.array([3]))
    with pytest.raises(RmkitError, match=r"0\.09 is not below Theorem 2's bound"):
        descend(pairs, unseen, np.zeros((4, 2)), learning_rate=0.09, beta=0.5, steps=1)
    descend(pairs, unseen, np.zeros((4, 2)), learning_rate=0.07, beta=0.5, steps=1)


def test_what_the_theorem_does_not_allow(task: tuple[TokenPairs, TokenPairs, np.ndarray]) -> None:
    train, unseen, initial = task
    with pytest.raises(RmkitError, match="a response of an unseen pair and of a training pair"):
        descend(train, train, initial, steps=1)
    swapped = replace(train, chosen=train.rejected, rejected=train.chosen)
    both = TokenPairs(*(np.concatenate([getattr(each, name) for each in (train, swapped)]) for name in vars(train)))
    with pytest.raises(RmkitError, match="explicit reward model cannot fit"):
        descend(both, unseen, initial, steps=1)
    turned = replace(train, chosen_token=train.rejected_token, rejected_token=train.chosen_token)
    both = TokenPairs(*(np.concatenate([getattr(each, name) for each in (train, turned)]) for name in vars(train)))
    with pytest.raises(RmkitError, match="implicit reward model cannot fit"):
        descend(both, unseen, initial, steps=1)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_single_tokens_end_the_sequence(architecture: str, tmp_path: Path) -> None:
    tiny.tokenizer(architecture).save_pretrained(tmp_path)
    encoder = ChatEncoder(load_tokenizer(tmp_path)[0], "26 Jul 2024")
    yes = encoder.answer_token("Yes")
    (sequence,) = single_token_sequences(encoder, ["x"], ["Yes"])
    assert sequence.ids[sequence.response_start :] == [yes]
    with pytest.raises(RmkitError, match=r"'Yes No' is \d tokens .*, not one"):
        single_token_sequences(encoder, ["x"], ["Yes No"])


def test_pairs_with_seen_tokens_are_left_out(tmp_path: Path) -> None:
    tiny.tokenizer("llama").save_pretrained(tmp_path)
    encoder = ChatEncoder(load_tokenizer(tmp_path)[0], "26 Jul 2024")
    pairs = [PreferencePair("x", *both) for both in (("Yes", "No"), ("a", "b"), ("Yes", "c"), ("d", "e"))]
    train, unseen = split_by_tokens(encoder, pairs, 1, None)
    assert [pair.chosen for pair in train] == ["Yes"]
    assert [pair.chosen for pair in unseen] == ["a", "d"]
    with pytest.raises(RmkitError, match="has only responses that training has not seen"):
        split_by_tokens(encoder, pairs, 1, pairs[2:3])
