"""Two pairs in every format that rmkit reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

from rmkit.data.conversations import Conversation, Message
from rmkit.data.preferences import PreferencePair


def _turn(role):
    return lambda content: {"role": role, "content": content}


system, user, assistant = map(_turn, ("system", "user", "assistant"))

ROWS = [
    {"prompt": "How do I bake bread?", "chosen": "Mix flour.", "rejected": "No."},
    {"prompt": "Why {x}?", "chosen": "Wait, 12 + 30 = 42.", "rejected": "Bake it."},
]
PLAIN = [PreferencePair(**row, index=index) for index, row in enumerate(ROWS)]
BEFORE = [system("Be brief."), user("Hi"), assistant("Hello, fox")]
CONVERSATIONS = [
    PreferencePair(
        Conversation((*(Message(**turn) for turn in BEFORE), Message("user", pair.prompt))),
        pair.chosen,
        pair.rejected,
        pair.index,
    )
    for pair in PLAIN
]


def _conversational(before, prompt=True, repeated=False):
    rows = []
    for row in ROWS:
        turns = [*before, user(row["prompt"])]
        start = [] if prompt and not repeated else turns
        both = {side: [*start, assistant(row[side])] for side in ("chosen", "rejected")}
        rows.append(both | ({"prompt": turns} if prompt else {}))
    return rows


def _transcripts(before):
    names = {"user": "Human", "assistant": "Assistant"}
    opening = "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in before)
    return [
        {
            side: f"{opening}\n\nHuman: {row['prompt']}\n\nAssistant: {row[side]}"
            for side in ("chosen", "rejected")
        }
        for row in ROWS
    ]  # fmt: skip


def _renamed(rows, **names):
    return [{names.get(key, key): value for key, value in row.items()} for row in rows]


def _shared(turn):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return {"from": names[turn["role"]], "value": turn["content"]}


def _sharegpt(before):
    """As LLaMA-Factory stores them: the prompt as turns, each response as one."""
    return [
        {
            "conversations": [_shared(turn) for turn in (*before, user(row["prompt"]))],
            "chosen": _shared(assistant(row["chosen"])),
            "rejected": _shared(assistant(row["rejected"])),
        }
        for row in ROWS
    ]


def _prompts(rows, **others):
    return [{"prompt": row["prompt"], **{key: make(row) for key, make in others.items()}} for row in rows]


FILLER = "A dull answer."

Form = tuple[list[dict[str, Any]], dict[str, Any], str | None]

SINGLE_TURN: dict[str, Form] = {
    "standard": (ROWS, {}, None),
    "standard implicit": (
        [{side: f"{row['prompt']} {row[side]}" for side in ("chosen", "rejected")} for row in ROWS],
        {},
        "standard, prompt extracted",
    ),
    "conversational": (_conversational([]), {}, "conversational"),
    "conversational implicit": (_conversational([], prompt=False), {}, "conversational, prompt extracted"),
    "prompt repeated": (_conversational([], repeated=True), {}, "conversational"),
    "ultrafeedback_binarized": (
        [
            {**both, "prompt": row["prompt"], "prompt_id": "0", "messages": both["chosen"], "score_chosen": 8.0}
            for row, both in zip(ROWS, _conversational([], prompt=False), strict=True)
        ],
        {},
        "conversational, not used: messages",
    ),
    "Skywork": (
        [row | {"source": "x"} for row in _conversational([], prompt=False)],
        {},
        "conversational, prompt extracted",
    ),
    "orca_dpo_pairs": (
        [{"system": text} | row for text, row in zip(["", None], _renamed(ROWS, prompt="question"), strict=True)],
        {},
        "standard, prompt from question, with system",
    ),
    "transcripts": (_transcripts([]), {}, "transcripts, prompt extracted"),
    "columns": (
        _renamed(ROWS, prompt="q", chosen="better", rejected="worse"),
        {"prompt": "q", "chosen": "better", "rejected": "worse"},
        "standard, prompt from q, chosen from better, rejected from worse",
    ),
    "ShareGPT": (_sharegpt([]), {}, "conversational, prompt from conversations"),
    "alpaca": (
        [{"input": empty} | row for empty, row in zip(["", None], _renamed(ROWS, prompt="instruction"), strict=True)],
        {},
        "standard, prompt from instruction + input",
    ),
    "argilla": (
        _renamed(ROWS, prompt="instruction", chosen="chosen_response", rejected="rejected_response"),
        {},
        "standard, chosen from chosen_response, rejected from rejected_response, prompt from instruction",
    ),
    "messages and single responses": (
        [
            {"messages": [user(row["prompt"])]} | {side: assistant(row[side]) for side in ("chosen", "rejected")}
            for row in ROWS
        ],
        {},
        "conversational, prompt from messages",
    ),
    "OpenAI": (
        [
            {
                "input": {"messages": [user(row["prompt"])], "tools": []},
                "preferred_output": [assistant(row["chosen"])],
                "non_preferred_output": [assistant(row["rejected"])],
            }
            for row in ROWS
        ],
        {},
        "conversational, chosen from preferred_output, rejected from non_preferred_output, prompt from input",
    ),
    "ratings": (
        _prompts(ROWS, answers=lambda row: [row["rejected"], FILLER, row["chosen"]], ratings=lambda _: [1, 3, 5]),
        {},
        "answers by ratings, pairing best_worst, standard",
    ),
    "ranks": (
        _prompts(ROWS, responses=lambda row: [row["chosen"], row["rejected"]], rank=lambda _: [1, 2]),
        {},
        "responses by rank (lower is better), pairing best_worst, standard",
    ),
    "UltraFeedback": (
        [
            {
                "instruction": row["prompt"],
                "completions": [
                    {"model": "m", "response": text, "overall_score": score}
                    for text, score in ((FILLER, 6.5), (row["chosen"], 8.0), (row["rejected"], 1.5))
                ],
            }
            for row in ROWS
        ],
        {},
        "completions by completions.overall_score, pairing best_worst, standard, prompt from instruction",
    ),
    "message responses": (
        _prompts(
            ROWS,
            completions=lambda row: [[assistant(row["rejected"])], [assistant(row["chosen"])]],
            scores=lambda _: [0.25, 0.5],
        ),
        {},
        "completions by scores, pairing best_worst, conversational",
    ),
    "candidates as columns": (
        _prompts(ROWS, texts=lambda row: [{"t": row["rejected"], "s": 0}, {"t": row["chosen"], "s": 1}]),
        {"responses": "texts.t", "scores": "texts.s"},
        "texts by texts.s, pairing best_worst, standard",
    ),
    "arena": (
        [
            {
                "conversation_a": [user(row["prompt"]), assistant(row["rejected" if flipped else "chosen"])],
                "conversation_b": [user(row["prompt"]), assistant(row["chosen" if flipped else "rejected"])],
                "winner": "model_b" if flipped else "model_a",
            }
            for flipped, row in enumerate(ROWS)
        ],
        {},
        "conversation_a and conversation_b by winner, conversational, prompt extracted",
    ),
    "PKU-SafeRLHF": (
        [
            {
                "prompt": row["prompt"],
                "response_0": row["rejected" if flipped else "chosen"],
                "response_1": row["chosen" if flipped else "rejected"],
                "better_response_id": flipped,
            }
            for flipped, row in enumerate(ROWS)
        ],
        {},
        "response_0 and response_1 by better_response_id, standard",
    ),
    "two columns": (
        _prompts(ROWS, left=lambda row: row["rejected"], right=lambda row: row["chosen"], verdict=lambda _: "Right"),
        {"responses": ["left", "right"], "winner": "verdict"},
        "left and right by verdict, standard",
    ),
}
MULTI_TURN: dict[str, Form] = {
    "ShareGPT": (_sharegpt(BEFORE), {}, "conversational, prompt from conversations"),
    "ShareGPT transcripts": (
        [
            {
                side: [*map(_shared, [*BEFORE, user(row["prompt"]), assistant(row[side])])]
                for side in ("chosen", "rejected")
            }
            for row in ROWS
        ],
        {},
        "conversational, prompt extracted",
    ),
    "ratings": (
        [
            {
                "messages": [*BEFORE, user(row["prompt"])],
                "answers": [row["chosen"], FILLER, row["rejected"]],
                "scores": [2, 1, 0],
            }
            for row in ROWS
        ],
        {},
        "answers by scores, pairing best_worst, conversational prompt, prompt from messages",
    ),
    "conversational": (_conversational(BEFORE), {}, "conversational"),
    "conversational implicit": (_conversational(BEFORE, prompt=False), {}, "conversational, prompt extracted"),
    "text responses": (
        [row | {"prompt": [*BEFORE, user(row["prompt"])]} for row in ROWS],
        {},
        "conversational prompt",
    ),
    "prompt text": (
        [
            both | {"prompt": row["prompt"]}
            for row, both in zip(ROWS, _conversational(BEFORE, prompt=False), strict=True)
        ],
        {},
        "conversational",
    ),
    "system and history": (
        [row | {"system": "Be brief.", "history": [["Hi", "Hello, fox"]]} for row in ROWS],
        {},
        "standard, with system, with history",
    ),
    "system and messages": (
        [row | {"system": "Be brief.", "history": BEFORE[1:]} for row in ROWS],
        {},
        "standard, with system, with history",
    ),
    "transcripts": (_transcripts(BEFORE[1:]), {}, "transcripts, prompt extracted"),
}


SEVERAL_TURNS = [
    [assistant("Mix flour."), user("Which?"), assistant("Rye.")],
    [assistant("No."), user("Why?"), assistant("Too hot."), user("Ok"), assistant("Bye")],
]
"""A chosen and a rejected response to `BEFORE` and a question."""

_ASKED = [*BEFORE, user("How do I bake bread?")]
_BOTH = dict(zip(("chosen", "rejected"), SEVERAL_TURNS, strict=True))
RESPONSES: dict[str, Form] = {
    "conversational": ([_BOTH | {"prompt": _ASKED}], {}, "conversational"),
    "conversational implicit": (
        [{side: [*_ASKED, *turns] for side, turns in _BOTH.items()}],
        {},
        "conversational, prompt extracted",
    ),
    "prompt repeated": (
        [{side: [*_ASKED, *turns] for side, turns in _BOTH.items()} | {"prompt": _ASKED}],
        {},
        "conversational",
    ),
    "prompt text": (
        [{side: [*_ASKED, *turns] for side, turns in _BOTH.items()} | {"prompt": _ASKED[-1]["content"]}],
        {},
        "conversational",
    ),
    "system and history": (
        [_BOTH | {"prompt": _ASKED[-1]["content"], "system": "Be brief.", "history": _ASKED[1:-1]}],
        {},
        "conversational, with system, with history",
    ),
}
TOOL = {
    "type": "function",
    "function": {
        "name": "oven",
        "description": "Heats an oven.",
        "parameters": {"type": "object", "properties": {"degrees": {"type": "integer"}}, "required": ["degrees"]},
    },
}
CALL = {"type": "function", "id": "call00001", "function": {"name": "oven", "arguments": {"degrees": 230}}}


def write(folder: Path, rows: list[dict[str, Any]], suffix: str = "jsonl") -> Path:
    """Write rows as a .jsonl or .parquet file."""
    path = folder / f"pairs.{suffix}"
    if suffix == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
