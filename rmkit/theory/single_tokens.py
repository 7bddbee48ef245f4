"""Pairs with single-token responses, as a language model represents them, for Theorem 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rmkit.data.conversations import Prompt, Response, as_text
from rmkit.data.preferences import PreferencePair
from rmkit.encoding.chat import ChatEncoder, TokenSequence
from rmkit.errors import RmkitError
from rmkit.theory.frozen import Frozen, FrozenHeadModel, freeze
from rmkit.theory.unseen_tokens import TokenPairs


def single_token_sequences(
    encoder: ChatEncoder, prompts: Sequence[Prompt], responses: Sequence[Response]
) -> list[TokenSequence]:
    """Prompts with responses, without the EOS token and the template's suffix (Assumption 2).

    Raises:
        RmkitError: if a response is not one token.
    """
    suffix = len(encoder.suffix_ids)
    sequences = []
    for sequence, response in zip(encoder.response_sequences(prompts, responses), responses, strict=True):
        ids = sequence.ids[: len(sequence) - suffix]
        tokens = ids[sequence.response_start :]
        if len(tokens) != 1:
            pieces = ", ".join(repr(encoder.tokenizer.decode([token])) for token in tokens[:6])
            raise RmkitError(
                f"The response {as_text(response)[:40]!r} is {len(tokens)} tokens ({pieces}), not one.",
                "Give pairs with single-token responses (Assumption 2 of Theorem 2).",
            )
        sequences.append(TokenSequence(ids, sequence.response_start))
    return sequences


def split_by_tokens(
    encoder: ChatEncoder, pairs: Sequence[PreferencePair], training_pairs: int, unseen: Sequence[PreferencePair] | None
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """The first `training_pairs`, and the pairs of `unseen` (by default the rest) without a response seen in training.

    Raises:
        RmkitError: if no pair is left for one of the two.
    """
    train = list(pairs[:training_pairs])
    others = pairs[training_pairs:] if unseen is None else unseen
    seen = _tokens(encoder, train)
    left = [pair for pair in others if not _tokens(encoder, [pair]) & seen]
    if not left:
        raise RmkitError(
            f"None of the {len(others)} other pairs has only responses that training has not seen.",
            "Give --unseen DATA2 with other tokens, or fewer --training-pairs.",
        )
    return train, left


def token_pairs(
    frozen_model: FrozenHeadModel,
    train: Sequence[PreferencePair],
    unseen: Sequence[PreferencePair],
    batch_size: int = 8,
) -> tuple[TokenPairs, TokenPairs, NDArray[np.float64]]:
    """Hidden states of the pairs, and the rows [tokens, hidden size] of the unembedding for their tokens.

    Other rows of the unembedding have no effect: their gradient is zero and they cancel in every comparison.
    """
    encoder = frozen_model.reward_model.encoder
    all_pairs = [*train, *unseen]
    prompts = [pair.prompt for pair in all_pairs]
    sequences = [
        sequence
        for responses in ([pair.chosen for pair in all_pairs], [pair.rejected for pair in all_pairs])
        for sequence in single_token_sequences(encoder, prompts, responses)
    ]
    frozen = freeze(frozen_model, sequences, batch_size, "hidden states")
    vocabulary = sorted({state.sequence.ids[-1] for state in frozen})
    row = {token: number for number, token in enumerate(vocabulary)}

    def pairs(chosen: Sequence[Frozen], rejected: Sequence[Frozen]) -> TokenPairs:
        return TokenPairs(
            _at(chosen, -2),
            _at(chosen, -1),
            _at(rejected, -1),
            np.array([row[state.sequence.ids[-1]] for state in chosen]),
            np.array([row[state.sequence.ids[-1]] for state in rejected]),
        )

    chosen, rejected = frozen[: len(all_pairs)], frozen[len(all_pairs) :]
    number = len(train)
    weight = frozen_model.model.get_output_embeddings().weight.detach().double().cpu().numpy()
    return pairs(chosen[:number], rejected[:number]), pairs(chosen[number:], rejected[number:]), weight[vocabulary]


def _tokens(encoder: ChatEncoder, pairs: Sequence[PreferencePair]) -> set[int]:
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    responses = [response for pair in pairs for response in (pair.chosen, pair.rejected)]
    return {sequence.ids[-1] for sequence in single_token_sequences(encoder, prompts, responses)}


def _at(frozen: Sequence[Frozen], position: int) -> NDArray[np.float64]:
    states: NDArray[np.float64] = torch.stack([state.hidden[position] for state in frozen]).cpu().numpy()
    return states
