"""Rewards of preference pairs, in memory and in the parquet files of a run directory. NumPy and pyarrow only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rmkit.errors import RmkitError
from rmkit.files import write_table

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PairRewards:
    """Rewards of the chosen and rejected responses of a set of pairs.

    Attributes:
        index: [pairs] the row of each pair in its source.
        rewards: [pairs, 2] rewards of (chosen, rejected).
        log_rewards: [pairs, 2] their logarithms, for types whose rewards are probabilities; else None.
    """

    index: NDArray[np.int64]
    rewards: Floats
    log_rewards: Floats | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> PairRewards:
        return PairRewards(
            self.index[rows], self.rewards[rows], None if self.log_rewards is None else self.log_rewards[rows]
        )

    @property
    def ranking(self) -> Floats:
        """The values [pairs, 2] that rank responses: log-rewards if there are any, because probabilities saturate."""
        return self.rewards if self.log_rewards is None else self.log_rewards

    @property
    def margins(self) -> Floats:
        """r+ - r- [pairs], in the reward's own units."""
        return self.rewards[:, 0] - self.rewards[:, 1]

    @property
    def correct(self) -> Floats:
        """1 if the chosen response ranks first, 1/2 for a tie, else 0 [pairs] (Definition 1)."""
        return 0.5 * (1.0 + np.sign(self.ranking[:, 0] - self.ranking[:, 1]))

    @property
    def normalized(self) -> Floats:
        """Signed margins in units of the standard deviation of all 2N rewards [pairs] (Appendix D.3)."""
        deviation = float(np.std(self.rewards, ddof=1))
        return self.margins / deviation if deviation > 0 else np.zeros(len(self))

    def write(self, path: Path) -> None:
        """Write a rewards file: index, chosen_reward, rejected_reward and, if there are any, the log-rewards."""
        columns = {"index": self.index, "chosen_reward": self.rewards[:, 0], "rejected_reward": self.rewards[:, 1]}
        if self.log_rewards is not None:
            columns |= {"chosen_log_reward": self.log_rewards[:, 0], "rejected_log_reward": self.log_rewards[:, 1]}
        write_table(path, columns)

    @classmethod
    def read(cls, path: Path) -> PairRewards:
        """Read a rewards file.

        Raises:
            RmkitError: if the file is missing or damaged, or lacks a column.
        """
        remedy = "Run the recipe again."
        try:
            with pq.ParquetFile(path) as file:  # pq.read_table starts threads: slower for small files
                table = file.read(use_threads=False)
            columns = {name: table[name].to_numpy() for name in table.column_names}
            rewards = _both(columns["chosen_reward"], columns["rejected_reward"])
            log_rewards = None
            if "chosen_log_reward" in columns:
                log_rewards = _both(columns["chosen_log_reward"], columns["rejected_log_reward"])
            return cls(columns["index"].astype(np.int64), rewards, log_rewards)
        except FileNotFoundError:
            raise RmkitError(f"{path} is missing.", remedy) from None
        except KeyError as error:
            raise RmkitError(f"{path} has no column {error.args[0]}.", remedy) from None
        except (OSError, ValueError, TypeError) as error:
            raise RmkitError(f"{path} cannot be read: {error}.", remedy) from None


def concatenate(parts: Sequence[PairRewards]) -> PairRewards:
    """The rewards of several parts of a set, in their order; all parts have log-rewards, or none has."""
    log_rewards = [part.log_rewards for part in parts if part.log_rewards is not None]
    return PairRewards(
        np.concatenate([part.index for part in parts]),
        np.concatenate([part.rewards for part in parts]),
        np.concatenate(log_rewards) if log_rewards else None,
    )


def _both(chosen: NDArray[np.float64], rejected: NDArray[np.float64]) -> Floats:
    return np.column_stack([chosen, rejected]).astype(np.float64)
