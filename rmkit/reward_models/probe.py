"""Probe a loaded model: compare what rmkit computes from hidden states with the model's own forward pass.

`apply_head` takes hidden states from the base model and applies the unembedding, or the reward head, itself. In most
architectures the model's own forward pass does nothing else. Some do more in between (a norm, a scale, a second head),
and some number positions or mask padding differently. The probe runs both on a few tokens and refuses a model for which
they differ.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rmkit.encoding.batches import Batch, collate, pad
from rmkit.encoding.chat import TokenSequence
from rmkit.errors import RmkitError
from rmkit.library_errors import library_errors
from rmkit.models.language_model import apply_head, next_token_logits, only_read, response_token_log_probs
from rmkit.models.numerics import at_least_float32
from rmkit.models.shared_attention import ARCHITECTURES, layout_of
from rmkit.processes import zero3_disabled
from rmkit.reward_models.base import RewardModel

_PROMPT, _RESPONSE, _CUT = 20, 8, 3
_SAME, _SAME_HALF = 1e-4, 2**-6
_LAYOUT, _LAYOUT_HALF = 1e-3, 1e-1
"""Tolerances relative to the largest logit or score, for the same arithmetic and for the model's own layout, in float32
and in bfloat16. There the model's own logits are rounded to 8 bits, and layouts add in different orders."""


def probe_sequences(tokenizer: PreTrainedTokenizerBase) -> list[TokenSequence]:
    """Two responses of equal length to one prompt, of tokens that are not special."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    plain = [token for token in range(len(tokenizer)) if token not in special]
    ids = [plain[7919 * number % len(plain)] for number in range(_PROMPT + 2 * _RESPONSE)]
    prompt, responses = ids[:_PROMPT], (ids[_PROMPT:-_RESPONSE], ids[-_RESPONSE:])
    return [TokenSequence(prompt + response, _PROMPT) for response in responses]


def check_classifier(name: str, config: PretrainedConfig, trust_remote_code: bool = False) -> None:
    """Refuse models whose reward is not <u, h> with one vector u, before weights are loaded.

    Raises:
        RmkitError: if a classifier does not have exactly one label, if transformers has no classifier for the
            architecture, or if the head is not a linear layer `score` without bias.
    """
    is_classifier = any(model_class.endswith("ForSequenceClassification") for model_class in config.architectures or [])
    if is_classifier and config.num_labels != 1:
        raise RmkitError(
            f"{name} is a classifier with {config.num_labels} labels; a reward model has one.",
            "Give a classifier with one label, or a language model to train one from.",
        )
    config = copy.deepcopy(config)
    config.num_labels = 1
    with library_errors(f"No model could be built from {name}", _DAMAGED), zero3_disabled():
        try:
            with torch.device("meta"):
                model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trust_remote_code)
        except ValueError:
            if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
                raise
            raise RmkitError(
                f"{name}: transformers has no sequence classifier for the architecture {config.model_type}.",
                "Use --type implicit or generative (reward_model.type), or a model of another architecture.",
            ) from None
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise RmkitError(
            f"{name}: the head of {type(model).__name__} ({config.model_type}) is not one linear layer `score`.",
            _OTHER,
        )


def check_forward(
    model: nn.Module,
    reward_model: RewardModel,
    *,
    half: bool = False,
    sequences: Sequence[TokenSequence] | None = None,
) -> None:
    """Compare log-probabilities, or explicit rewards, of a few tokens with the model's own forward pass.

    Three short passes: the model's own, rmkit's on the same rows, and rmkit's in the model's own layout with
    `only_read`, as in scoring. All processes must call it together (ZeRO-3).

    Args:
        model: bound (`rmkit.models.language_model.bind`), wrapped or not.
        half: whether it computes in bfloat16, or under autocast.
        sequences: of one length, with one prompt; by default from the tokenizer's vocabulary.

    Raises:
        RmkitError: if they differ, or if one of the passes fails.
    """
    sequences = sequences or probe_sequences(reward_model.encoder.tokenizer)
    name, passes = _run_passes(model, reward_model, sequences)
    logits, ours = passes.own_logits, passes.ours
    if reward_model.head:
        own, same, scale = logits.flatten(), ours.view(len(sequences), -1)[:, -1], ours.abs().max()
    else:
        own, same = _own_log_probs(logits, passes.batch), ours
        scale = logits[logits.isfinite()].abs().max() if logits.isfinite().any() else logits.new_tensor(torch.nan)
    if not scale.isfinite():
        raise RmkitError(f"{name} gives values that are not finite, in its own forward pass too.", _DAMAGED)
    if (off := _difference(same, own)) > (_SAME_HALF if half else _SAME) * float(scale):
        what = "rewards" if reward_model.head else "log-probabilities"
        raise RmkitError(
            f"{name} computes more than rmkit supports: its own {what} differ from rmkit's by up to {off:.3g}.", _OTHER
        )
    compared = len(passes.batch["response"]) - _CUT
    off = _difference(passes.in_layout[:compared], ours[:compared])
    if off <= (_LAYOUT_HALF if half else _LAYOUT) * float(scale):
        return
    if layout_of(model) == "shared":
        raise RmkitError(
            f"{name} gives different values in the shared layout than for separate sequences, by up to {off:.3g}.",
            "Set the layout to padded (--layout padded; layout: padded in a recipe).",
        )
    raise RmkitError(f"{name} is not causal: later tokens or padding change its values by up to {off:.3g}.", _OTHER)


@dataclass(frozen=True)
class _Passes:
    """The results of the three passes.

    Attributes:
        batch: the padded rows of the first two.
        own_logits: of the model's own forward pass, [sequences, tokens, vocabulary] or [sequences, 1].
        ours: rmkit's values for the same rows.
        in_layout: rmkit's values in the model's own layout, the second sequence without its last tokens.
    """

    batch: Batch
    own_logits: Tensor
    ours: Tensor
    in_layout: Tensor


def _run_passes(model: nn.Module, reward_model: RewardModel, sequences: Sequence[TokenSequence]) -> tuple[str, _Passes]:
    """The model's name for messages, and its passes over two sequences.

    Raises:
        RmkitError: if a pass fails.
    """
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    architecture = inner.config.get_text_config().model_type
    name = f"{type(inner).__name__} ({architecture})"
    if inner.name_or_path:
        name = f"{inner.name_or_path}: {name}"
    state = PartialState()
    device = next(model.parameters()).device if state.num_processes == 1 else state.device
    pad_token_id = reward_model.encoder.tokenizer.pad_token_id
    batch = {key: value.to(device) for key, value in pad(sequences, pad_token_id).items()}
    cut = [sequences[0], TokenSequence(sequences[1].ids[:-_CUT], sequences[1].response_start)]
    cut_batch = {key: value.to(device) for key, value in collate(cut, layout_of(model), pad_token_id).items()}
    head, read = (_scores, "response") if reward_model.head else (_log_probs, "predictor")

    tested = architecture in ARCHITECTURES  # an error in rmkit's passes there is a bug, and stays a traceback
    untested = _refusing(f"{name} cannot be run by rmkit", _OTHER)
    own_pass = _refusing(f"{name} cannot be run", _DAMAGED)
    with _evaluating(model), contextlib.nullcontext() if tested else untested:
        with own_pass if tested else contextlib.nullcontext():
            found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            logits = at_least_float32(found.logits)
        ours = apply_head(model, head, batch)
        with only_read(model, cut_batch[read].unique()):
            in_layout = apply_head(model, head, cut_batch)
    return name, _Passes(batch, logits, ours, in_layout)


_OTHER = "Use a model of another architecture, such as Llama, Qwen or Gemma."
_DAMAGED = "Download or save it again; if its weights are finite, check its config.json."


def _log_probs(model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
    """Log-probabilities of the responses' tokens, then of all next tokens after the sequences, by rmkit."""
    after = torch.log_softmax(next_token_logits(model, hidden[batch["last"]]), dim=-1)
    return torch.cat([response_token_log_probs(model, hidden, batch), after.flatten()])


def _own_log_probs(logits: Tensor, batch: Batch) -> Tensor:
    """The same from the model's own logits [sequences, tokens, vocabulary]."""
    log_probs = torch.log_softmax(logits, dim=-1).flatten(0, 1)
    tokens = batch["input_ids"].flatten()[batch["response"]]
    return torch.cat([log_probs[batch["predictor"], tokens], log_probs[batch["last"]].flatten()])


def _scores(model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
    """The reward at every token of the responses; the model itself returns the last one."""
    return torch.as_tensor(model.score(hidden[batch["response"]]))[:, 0]


def _difference(ours: Tensor, own: Tensor) -> float:
    """The largest difference. Equal infinities differ by 0; NaN differs from everything by infinity."""
    if ours.shape != own.shape:
        return torch.inf
    difference = torch.where(ours == own, 0.0, (ours.double() - own.double()).abs())
    return float(difference.nan_to_num(nan=torch.inf).max())


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def _refusing(cause: str, remedy: str) -> Iterator[None]:
    """Turn errors of a forward pass into an `RmkitError`, except for lack of memory."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        first = next(iter(str(error).strip().splitlines()), "")
        raise RmkitError(f"{cause}: {type(error).__name__}: {first[:200]}", remedy) from error
