"""Rewards of pairs: the file format, the round trip, damaged files, and the derived values by hand."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rmkit.errors import RmkitError
from rmkit.runs.rewards import PairRewards, concatenate

REWARDS = PairRewards(np.array([4, 7, 9]), np.array([[1.0, 0.1], [0.3, 0.3], [0.25, 2.0]]))
LOG_REWARDS = PairRewards(REWARDS.index, np.ones((3, 2)), np.array([[-1e-30, -2e-30], [-1.0, -1.0], [-2.0, -1.0]]))


def equal(one, other):
    assert one.index.tolist() == other.index.tolist()
    assert one.rewards.tolist() == other.rewards.tolist()
    assert (one.log_rewards is None) == (other.log_rewards is None)
    return one.ranking.tolist() == other.ranking.tolist()


@pytest.mark.parametrize("rewards", [REWARDS, LOG_REWARDS], ids=["rewards", "log-rewards"])
def test_a_rewards_file_holds_every_bit(tmp_path, rewards):
    rewards.write(tmp_path / "rewards" / "a.parquet")
    assert equal(PairRewards.read(tmp_path / "rewards" / "a.parquet"), rewards)


def test_the_columns_of_a_rewards_file(tmp_path):
    for name, rewards in {"plain": REWARDS, "logs": LOG_REWARDS}.items():
        rewards.write(tmp_path / f"{name}.parquet")
    columns = {"index": "int64", "chosen_reward": "double", "rejected_reward": "double"}
    logs = {"chosen_log_reward": "double", "rejected_log_reward": "double"}
    for name, expected in {"plain": columns, "logs": columns | logs}.items():
        schema = pq.read_schema(tmp_path / f"{name}.parquet")
        assert {field.name: str(field.type) for field in schema} == expected
        assert schema.names == list(expected)
    assert pq.read_table(tmp_path / "plain.parquet").to_pydict() == {
        "index": [4, 7, 9],
        "chosen_reward": [1.0, 0.3, 0.25],
        "rejected_reward": [0.1, 0.3, 2.0],
    }


def test_derived_values_by_hand():
    assert REWARDS.margins.tolist() == [0.9, 0.0, -1.75]
    assert REWARDS.correct.tolist() == [1.0, 0.5, 0.0]
    deviation = math.sqrt(sum((value - 3.95 / 6) ** 2 for value in (1.0, 0.1, 0.3, 0.3, 0.25, 2.0)) / 5)
    assert REWARDS.normalized == pytest.approx([0.9 / deviation, 0.0, -1.75 / deviation])
    assert LOG_REWARDS.correct.tolist() == [1.0, 0.5, 0.0]  # their rewards are all equal
    assert LOG_REWARDS.normalized.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("rewards", [REWARDS, LOG_REWARDS], ids=["rewards", "log-rewards"])
def test_parts_of_a_set(rewards):
    assert len(rewards[1:]) == 2
    assert equal(rewards[np.array([2, 0])], concatenate([rewards[2:], rewards[:1]]))
    assert equal(concatenate([rewards[:1], rewards[1:1], rewards[1:]]), rewards)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "is missing"),
        (lambda path: path.write_bytes(b"PAR1"), "cannot be read"),
        (lambda path: pq.write_table(pa.table({"index": [0], "chosen_reward": [1.0]}), path), "no column rejected_rew"),
        (
            lambda path: pq.write_table(
                pa.table({"index": [0], "chosen_reward": ["high"], "rejected_reward": [1.0]}), path
            ),
            "cannot be read",
        ),
    ],
    ids=["missing", "damaged", "column", "text"],
)
def test_files_that_cannot_be_used(tmp_path, write, message):
    path = tmp_path / "a.parquet"
    write(path)
    with pytest.raises(RmkitError, match=message) as caught:
        PairRewards.read(path)
    assert str(path) in caught.value.cause
