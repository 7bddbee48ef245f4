"""Pairs with responses of one token, as a language model represents them, for Theorem 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rmkit.data.preferences import PreferencePair
from rmkit.encoding.chat import ChatEncoder, TokenSequence
from rmkit.errors import RmkitError
from rmkit.theory.frozen import Frozen, FrozenHeadModel, freeze
from rmkit.theory.unseen_tokens import TokenPairs


def single_token_sequences(
    encoder: ChatEncoder, prompts: Sequence[str], responses: Sequence[str]
) -> list[TokenSequence]:
    """Prompts with responses, without the EOS token and the template's suffix after them (Assumption 2).

    Raises:
        RmkitError: if a response is not one token.
    """
    suffix = len(encoder.suffix_ids)
    sequences = []
    for sequence, response in zip(encoder.response_sequences(prompts, responses), responses, strict=True):
        ids = sequence.ids[: len(sequence) - suffix]
        tokens = ids[sequence.response_start :]
        if len(tokens) != 1:
            pieces = ", ".join(repr(encoder.tokenizer.decode([each])) for each in tokens[:6])
            raise RmkitError(
                f"The response {response[:40]!r} is {len(tokens)} tokens ({pieces}), not one.",
                "Theorem 2 is about responses of a single token (Assumption 2): give such pairs.",
            )
        sequences.append(TokenSequence(ids, sequence.response_start))
    return sequences


def split_by_tokens(
    encoder: ChatEncoder, pairs: Sequence[PreferencePair], training_pairs: int, unseen: Sequence[PreferencePair] | None
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """The first `training_pairs`, and of `unseen` (or else of the other pairs) those with no response seen in training.

    Raises:
        RmkitError: if no pair is left for one of the two.
    """
    train = list(pairs[:training_pairs])
    others = pairs[training_pairs:] if unseen is None else unseen
    seen = _tokens(encoder, train)
    left = [pair for pair in others if not _tokens(encoder, [pair]) & seen]
    if not left:
        raise RmkitError(
            f"Each of the {len(others)} other pairs has a response that training has seen, or there is none.",
            "Give --unseen DATA2 with other tokens, or fewer --training-pairs.",
        )
    return train, left


def token_pairs(
    frozen_model: FrozenHeadModel,
    train: Sequence[PreferencePair],
    unseen: Sequence[PreferencePair],
    batch_size: int = 8,
) -> tuple[TokenPairs, TokenPairs, NDArray[np.float64]]:
    """Hidden states of the pairs, and the unembedding's rows [tokens, hidden size] of the tokens that occur.

    Other rows of the unembedding play no part: their gradient is zero and they cancel in every comparison.
    """
    encoder = frozen_model.reward_model.encoder
    everything = [*train, *unseen]
    prompts = [pair.prompt for pair in everything]
    sequences = [
        sequence
        for responses in ([pair.chosen for pair in everything], [pair.rejected for pair in everything])
        for sequence in single_token_sequences(encoder, prompts, responses)
    ]
    frozen = freeze(frozen_model, sequences, batch_size, "hidden states")
    vocabulary = sorted({each.sequence.ids[-1] for each in frozen})
    row = {token: number for number, token in enumerate(vocabulary)}

    def pairs(chosen: Sequence[Frozen], rejected: Sequence[Frozen]) -> TokenPairs:
        return TokenPairs(
            _at(chosen, -2),
            _at(chosen, -1),
            _at(rejected, -1),
            np.array([row[each.sequence.ids[-1]] for each in chosen]),
            np.array([row[each.sequence.ids[-1]] for each in rejected]),
        )

    chosen, rejected = frozen[: len(everything)], frozen[len(everything) :]
    number = len(train)
    weight = frozen_model.model.get_output_embeddings().weight.detach().double().cpu().numpy()
    return pairs(chosen[:number], rejected[:number]), pairs(chosen[number:], rejected[number:]), weight[vocabulary]


def _tokens(encoder: ChatEncoder, pairs: Sequence[PreferencePair]) -> set[int]:
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    responses = [response for pair in pairs for response in (pair.chosen, pair.rejected)]
    return {sequence.ids[-1] for sequence in single_token_sequences(encoder, prompts, responses)}


def _at(frozen: Sequence[Frozen], position: int) -> NDArray[np.float64]:
    states: NDArray[np.float64] = torch.stack([each.hidden[position] for each in frozen]).cpu().numpy()
    return states
