"""Rewards computed a second time, from transformers alone: one text at a time, no padding, full logits.

Written from the paper and the released code's description, with nothing of rmkit in it.
"""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

VERIFICATION = "Question: {}\nAnswer: {}\nVerification: Is the answer correct (Yes/No)?"


def texts(tokenizer, prompt, response, date):
    user = {"role": "user", "content": prompt}
    before = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True, date_string=date)
    whole = tokenizer.apply_chat_template(
        [user, {"role": "assistant", "content": response}], tokenize=False, date_string=date
    )
    return before, whole[len(before) :]


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


@torch.no_grad()
def explicit(folder, pairs, date=None, pooling="last", dtype=torch.float32):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, num_labels=1).eval()
    rewards = []
    for prompt, response in pairs:
        before, after = (ids(tokenizer, text) for text in texts(tokenizer, prompt, response, date))
        hidden = model.base_model(torch.tensor([before + after])).last_hidden_state[0]
        pooled = hidden[-1] if pooling == "last" else hidden[len(before) :].mean(0)
        rewards.append(torch.dot(pooled, model.score.weight[0]).item())
    return rewards


@torch.no_grad()
def log_probs(folder, tokenizer_folder, pairs, date=None, dtype=torch.float32):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    sums = []
    for prompt, response in pairs:
        before, after = (ids(tokenizer, text) for text in texts(tokenizer, prompt, response, date))
        logits = model(torch.tensor([before + after])).logits[0].to(dtype)
        each = torch.log_softmax(logits, dim=-1)
        positions = range(len(before) - 1, len(before) + len(after) - 1)
        sums.append(sum(each[at, token].item() for at, token in zip(positions, after, strict=True)))
    return sums


@torch.no_grad()
def generative(folder, pairs, date=None, dtype=torch.float32):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    (yes,) = ids(tokenizer, "Yes")
    rewards = []
    for prompt, response in pairs:
        message = {"role": "user", "content": VERIFICATION.format(prompt, response)}
        text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True, date_string=date)
        logits = model(torch.tensor([ids(tokenizer, text)])).logits[0, -1].to(dtype)
        rewards.append(torch.softmax(logits, dim=-1)[yes].item())
    return rewards
