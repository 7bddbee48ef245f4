"""EX-GRM: the probability of the answer Yes to a prompt that asks to verify a response (Appendix A)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, PreTrainedModel

from rmkit.config.recipe import Generative
from rmkit.data.conversations import Prompt, Response
from rmkit.encoding.batches import Batch
from rmkit.encoding.chat import ChatEncoder, TokenSequence
from rmkit.errors import RmkitError
from rmkit.models.language_model import next_token_logits, use_unembedding
from rmkit.reward_models.base import RewardModel
from rmkit.reward_models.losses import verification


def generative_reward(log_prob_yes: Tensor) -> Tensor:
    """r(x, y) = pi(Yes | I[x, y]) (Appendix A) from its logarithm [sequences]; [sequences], in [0, 1]."""
    return log_prob_yes.exp()


def answer_log_prob(logits: Tensor, answer: int) -> Tensor:
    """ln softmax(logits)[answer], exact however close to 0: ln sigmoid(z_answer - logsumexp of the others).

    Args:
        logits: [sequences, vocabulary].
        answer: a token id.

    Returns:
        [sequences] in float64.
    """
    logits = logits.double()
    others = logits.index_fill(-1, torch.tensor([answer], device=logits.device), -torch.inf)
    return logsigmoid(logits[:, answer] - others.logsumexp(-1))


class GenerativeRewardModel(RewardModel[Generative]):
    """The model reads a verification prompt with the prompt and the response; its next token is the verdict."""

    auto_class = AutoModelForCausalLM
    reads_responses = False

    def __init__(self, settings: Generative, encoder: ChatEncoder):
        super().__init__(settings, encoder)
        self.generation = settings.generation_weight > 0
        self._options = {""}  # of the chat template, with which the answers are known to be the tokens `yes` and `no`
        (sequence,) = self.encode(["x"], ["y"])
        if sequence.response_spells and encoder.special_tokens == "text":
            raise RmkitError(
                "reward_model.verification_prompt contains a control token, which would be read as text.",
                "Remove it, or set data.special_tokens: keep (or --special-tokens keep).",
            )
        self.yes, self.no = self._answers("x")
        if self.yes == self.no:
            raise RmkitError(
                f"{settings.yes_token!r} and {settings.no_token!r} are the same token for {encoder.name}.",
                "Set reward_model.yes_token and reward_model.no_token to different words.",
            )

    def adapt_model(self, model: PreTrainedModel) -> None:
        use_unembedding(model)

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[Response]) -> list[TokenSequence]:
        """The verification prompts.

        Raises:
            RmkitError: if the options of a prompt (`chat_template_kwargs`) make the answers other tokens.
        """
        for prompt in prompts:
            options = "" if isinstance(prompt, str) else prompt.options
            if options not in self._options:
                if self._answers(prompt) != (self.yes, self.no):
                    raise RmkitError(
                        f"With chat_template_kwargs {options} the answers {self.settings.yes_token!r} and "
                        f"{self.settings.no_token!r} are other tokens for {self.encoder.name} than without.",
                        "Remove chat_template_kwargs from such rows, or set another base.chat_template.",
                    )
                self._options.add(options)
        return self.encoder.verification_sequences(prompts, responses, self.settings.verification_prompt)

    def _answers(self, prompt: Prompt) -> tuple[int, int]:
        """The tokens for Yes and No, with the template options of a prompt."""
        words, asked = (self.settings.yes_token, self.settings.no_token), self.settings.verification_prompt
        yes, no = (self.encoder.answer_token(word, asked, prompt) for word in words)
        return yes, no

    def outputs(self, model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
        """ln P(Yes) and ln P(No) [sequences, 2]."""
        logits = next_token_logits(model, hidden[batch["last"]])
        return torch.stack([answer_log_prob(logits, self.yes), answer_log_prob(logits, self.no)], dim=-1)

    def prefixes(self, prompt: Prompt, response: Response) -> list[TokenSequence]:
        """Verification prompts with the text of every prefix; the tokens that end an assistant's turn add no text."""
        (whole,) = self.encoder.response_sequences([prompt], [response])
        if isinstance(response, str):
            texts = self._prefixes_of_turn(whole, whole.response_start, len(whole), response)
            return self.encode([prompt] * len(texts), texts)
        starts = [whole.response_start, *(end for _, end in whole.gaps)]
        ends = [*(start for start, _ in whole.gaps), len(whole)]
        numbers = [number for number, turn in enumerate(response) if turn.role == "assistant"]
        prefixes = [
            (*response[:number], replace(response[number], content=text))
            for number, start, end in zip(numbers, starts, ends, strict=True)
            for text in self._prefixes_of_turn(whole, start, end, response[number].content)
        ]
        return self.encode([prompt] * len(prefixes), prefixes)

    def _prefixes_of_turn(self, whole: TokenSequence, start: int, end: int, text: str) -> list[str]:
        """The text up to each token of an assistant's turn, which has the tokens from `start` to `end`."""
        own = end - len(self.encoder.suffix_ids)
        pieces = self.encoder.response_tokens(TokenSequence(whole.ids[:end], start))
        return ["".join(pieces[:at]) if start + at < own else text for at in range(1, len(pieces) + 1)]

    def rewards(self, outputs: Tensor, reference: Tensor | None = None) -> Tensor:
        return generative_reward(outputs[..., 0])

    def log_rewards(self, outputs: Tensor) -> Tensor | None:
        return outputs[..., 0]

    def loss(self, outputs: Tensor, reference: Tensor | None = None, margin: Tensor | None = None) -> Tensor:
        return verification(outputs[:, 0, 0], outputs[:, 1, 1])
