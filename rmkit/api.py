"""The functions of the public face that load models: they import torch when they are called, not before.

`from rmkit import load_reward_model, train`; docs/api.md has the whole face.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # heavy, and not needed until a model is loaded
    from pathlib import Path

    import torch

    from rmkit.config.recipe import DTypeName, LoadIn, Recipe, SpecialTokens
    from rmkit.encoding.batches import Layout
    from rmkit.evaluation.scorer import RewardScorer
    from rmkit.runs.directory import RunDirectory


def load_reward_model(
    path_or_id: str,
    type: str | None = None,
    pooling: str | None = None,
    reference: str | None = None,
    beta: float | None = None,
    *,
    revision: str | None = None,
    dtype: DTypeName | None = None,
    load_in: LoadIn | Literal["none"] | None = None,
    attention: str | None = None,
    layout: Layout | None = None,
    date_string: str | None = None,
    chat_template: str | Path | None = None,
    special_tokens: SpecialTokens | None = None,
    trust_remote_code: bool = False,
    device: str | torch.device | None = None,
    base: str | None = None,
    verify: bool = True,
) -> RewardScorer:
    """Load a reward model that scores texts.

    A model/ folder that rmkit wrote records its options; for other models, pass them.

    Args:
        path_or_id: a run's model/ folder, any transformers model folder, or a hub id.
        type: explicit, implicit or generative.
        pooling: explicit models: last or mean.
        reference: implicit models: the model that training started from, or "none".
        beta: implicit models: the factor of Eq. 2.
        revision: a branch, tag or commit of the hub repository.
        dtype: float32 or bfloat16; as recorded, else float32.
        load_in: 4bit quantizes the base of an adapter (on a GPU), none does not; as recorded, else none.
        attention: transformers' `attn_implementation`; the architecture's default if omitted.
        layout: shared (compute shared prefixes once) or padded; as recorded, else shared.
        date_string: the date for chat templates that print one (Llama 3).
        chat_template: a Jinja file to use instead of the model's own chat template.
        special_tokens: how to treat control tokens spelled out in texts: text, keep (as tokens) or error; as recorded,
            else text.
        trust_remote_code: run the model's own code.
        device: where to compute; the first accelerator, else the CPU.
        base: the current location of the model that training started from, if it has moved.
        verify: check that base, reference and tokenizer are those of training; if False, a note reports differences.

    Raises:
        RmkitError: see `rmkit.reward_models.loading.load` and `rmkit.reward_models.probe.check_forward`.
    """
    from rmkit.evaluation.scorer import RewardScorer
    from rmkit.reward_models.loading import load

    checkpoint = load(
        str(path_or_id),
        options={"type": type, "pooling": pooling, "reference": reference, "beta": beta},
        revision=revision,
        dtype=dtype,
        load_in=load_in,
        attention=attention,
        layout=layout,
        date_string=date_string,
        chat_template=chat_template,
        special_tokens=special_tokens,
        trust_remote_code=trust_remote_code,
        base=base,
        verify=verify,
    )
    return RewardScorer(checkpoint, device)


def train(recipe: Recipe, overwrite: bool = False) -> RunDirectory:
    """Train a reward model in this process, and score every set of the recipe before and after training.

    For several GPUs use `rmkit train`. See `rmkit.train.train`.

    Args:
        recipe: from `load_recipe`.
        overwrite: replace the run in `recipe.output_dir`.

    Returns:
        The run directory: `.path`, `.model`, and `.read()` for run.json.

    Raises:
        RmkitError: for mistakes in the recipe, its data or its models; before weights are loaded where possible.
    """
    from rmkit.train import train as run_recipe

    return run_recipe(recipe, overwrite)
