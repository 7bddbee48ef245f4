"""The reward of a response by its tokens, as `rmkit explain` writes it to JSON and the report reads it. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat, model_validator


class Explanation(BaseModel):
    """The reward of a response by its tokens, end-of-turn token and template suffix included.

    Attributes:
        tokens: [tokens] their texts.
        implicit_terms: [tokens] what each adds to an implicit reward; their sum is the reward.
        explicit_prefix_rewards: [tokens] the reward of the response up to each; the last is the reward.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: str
    response: str
    tokens: list[str]
    implicit_terms: list[FiniteFloat] | None = None
    explicit_prefix_rewards: list[FiniteFloat] | None = None

    @model_validator(mode="after")
    def _one_number_a_token(self) -> Explanation:
        for values in (self.implicit_terms, self.explicit_prefix_rewards):
            if values is not None and len(values) != len(self.tokens):
                raise ValueError("there must be as many numbers as tokens")
        return self

    @property
    def rewards(self) -> dict[str, float]:
        """The reward of the response by what it is shown as: implicit, explicit."""
        found = {}
        if self.implicit_terms is not None:
            found["implicit"] = float(np.sum(self.implicit_terms))
        if self.explicit_prefix_rewards is not None:
            found["explicit"] = self.explicit_prefix_rewards[-1]
        return found

    @property
    def increments(self) -> list[float] | None:
        """What each token changes in the explicit reward [tokens]; the first is the reward of the first prefix."""
        rewards = self.explicit_prefix_rewards
        return None if rewards is None else [float(each) for each in np.diff(rewards, prepend=0.0)]

    def content(self) -> dict[str, Any]:
        """As it is written to JSON."""
        return self.model_dump()
