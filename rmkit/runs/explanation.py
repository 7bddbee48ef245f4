"""The reward of a response by token, as `rmkit explain` writes it and the report reads it. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat, model_validator


class Explanation(BaseModel):
    """The reward of a response by token, including the end-of-turn token and template suffix.

    Attributes:
        tokens: [tokens] texts.
        implicit_terms: [tokens] the terms whose sum is the implicit reward.
        explicit_prefix_rewards: [tokens] the rewards of the prefixes that end with them; the last is the reward.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: str
    response: str
    tokens: list[str]
    implicit_terms: list[FiniteFloat] | None = None
    explicit_prefix_rewards: list[FiniteFloat] | None = None

    @model_validator(mode="after")
    def _check_lengths(self) -> Explanation:
        for values in (self.implicit_terms, self.explicit_prefix_rewards):
            if values is not None and len(values) != len(self.tokens):
                raise ValueError("there must be one number per token")
        return self

    @property
    def rewards(self) -> dict[str, float]:
        """The reward of the response, by `implicit` or `explicit`."""
        rewards = {}
        if self.implicit_terms is not None:
            rewards["implicit"] = float(np.sum(self.implicit_terms))
        if self.explicit_prefix_rewards is not None:
            rewards["explicit"] = self.explicit_prefix_rewards[-1]
        return rewards

    @property
    def increments(self) -> list[float] | None:
        """The change of the explicit reward by token [tokens]; the first is the reward of the first prefix."""
        rewards = self.explicit_prefix_rewards
        return None if rewards is None else [float(change) for change in np.diff(rewards, prepend=0.0)]

    def content(self) -> dict[str, Any]:
        """The content of the JSON file."""
        return self.model_dump()
