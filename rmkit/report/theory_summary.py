"""Tables of theory results, for the terminal and for reports, from the JSON files alone. No torch.

In every JSON file of `rmkit theory`, "theory" names the result (dynamics, separator, unseen-tokens or verification) and
"figures" lists the figure files next to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

Content = Mapping[str, Any]


class Rows(TypedDict):
    """A table: title, columns, and rows of cell texts."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def tables(content: Content) -> list[Rows]:
    """The tables of one result, from the content of its JSON file.

    Raises:
        KeyError: if the content is not from a theory command.
    """
    return _TABLES[content["theory"]](content)


def dynamics_tables(types: Mapping[str, Content]) -> list[Rows]:
    """Tables of the dynamics of several types, or of a run `before` and `after` training."""
    errors: Rows = {"title": "Predicted against measured change of rewards", "columns": ["", "equation"], "rows": []}
    groups: Rows = {
        "title": "Change of the margin r(chosen) - r(rejected) after one step, mean over pairs",
        "columns": ["", "measured on", "pairs", "predicted", "measured", "all parameters", "positive"],
        "rows": [],
    }
    tokens: Rows = {
        "title": "Eq. 5 by tokens: net change of the margin, and share of the sum of absolute terms",
        "columns": ["", "measured on", "matching tokens", "template suffix", "other tokens", "share of matching"],
        "rows": [],
    }
    bounds: Rows = {"title": "Coefficients", "columns": ["", "coefficient", "found", "bounds"], "rows": []}
    for name, result in types.items():
        if not errors["rows"]:
            rates = [error["learning_rate"] for error in result["errors"]]
            errors["columns"] += [*(f"relative error at {rate:g}" for rate in rates), "slope of error"]
        errors["rows"].append(_error_row(name, result))
        groups["rows"] += [_group_row(name, group, found) for group, found in result["groups"].items()]
        tokens["rows"] += [
            _token_row(name, group, found)
            for group, found in result["groups"].items()
            if "margin_change_by_tokens" in found
        ]
        bounds["rows"] += [_bound_row(name, *item) for item in result["coefficients"].items()]
    return [table for table in (errors, groups, tokens, bounds) if table["rows"]]


def _error_row(name: str, result: Content) -> list[str]:
    slope = result["error_slope"]
    relative = [f"{error['relative']:.1e}" for error in result["errors"]]
    return [name, result["equation"], *relative, "exact up to rounding" if slope is None else f"{slope:.2f}"]


def _group_row(name: str, group: str, found: Content) -> list[str]:
    change = found["margin_change"]
    trainable = f"{change['trainable']:+.3g}" if "trainable" in change else ""
    margins = [f"{change['predicted']:+.3g}", f"{change['measured']:+.3g}", trainable]
    return [name, group, str(found["pairs"]), *margins, f"{found['positive_share']['measured']:.0%}"]


def _token_row(name: str, group: str, found: Content) -> list[str]:
    net = [f"{found['margin_change_by_tokens'][part]:+.3g}" for part in ("matching", "template", "other")]
    return [name, group, *net, f"{found['absolute_share']['matching']:.1%}"]


def _bound_row(name: str, coefficient: str, found: Content) -> list[str]:
    low, high = found["bounds"]
    return [name, coefficient.replace("_", " "), f"{found['min']:.3g} .. {found['max']:.3g}", f"{low:g} .. {high:g}"]


def _dynamics(content: Content) -> list[Rows]:
    return dynamics_tables(content["types"] if "types" in content else content["states"])


def _separator(content: Content) -> list[Rows]:
    if not content["separable"]:
        proof = content["certificate"]
        return [
            _values("No separator (Eq. 6)", {"contradicting pairs": len(proof["pairs"]), "residual": proof["residual"]})
        ]
    found = {
        "training pairs": content["pairs"],
        "hidden size": content["hidden_size"],
        "margin 1/|u*|": content["margin"],
        "support pairs": len(content["support_pairs"]),
        "duality gap": content["duality_gap"],
    }
    unseen: Rows = {
        "title": "<u*, h+ - h-> of unseen pairs (training pairs: at least 1)",
        "columns": ["set", "pairs", "positive", "smallest", "5 %", "median", "95 %"],
        "rows": [
            [
                name,
                str(products["pairs"]),
                f"{products['fraction_positive']:.1%}",
                *(f"{products['quantiles'][level]:.3g}" for level in ("0", "0.05", "0.5", "0.95")),
            ]
            for name, products in content["unseen"].items()
        ],
    }
    return [_values("Max-margin separator (Eq. 6)", found), *([unseen] if unseen["rows"] else [])]


def _unseen_tokens(content: Content) -> list[Rows]:
    implicit, explicit, control = content["implicit"], content["explicit"], content["control"]
    low, high = min(implicit["unseen_accuracy"]), max(implicit["unseen_accuracy"])
    always = f"{low:.3f} at all {len(implicit['unseen_accuracy'])} recorded steps"
    rows = [
        [
            "implicit",
            f"{implicit['train_accuracy']:.3f}",
            always if low == high else f"{low:.3f} .. {high:.3f}",
            "",
        ],
        [
            "explicit",
            f"{explicit['train_accuracy']:.3f}",
            f"{explicit['unseen_accuracy']:.3f}",
            f"{explicit['separator_unseen_accuracy']:.3f}",
        ],
        [
            "explicit, control: hidden states without structure",
            f"{content['history']['control_explicit_train_accuracy'][-1]:.3f}",
            f"{control['explicit_unseen_accuracy']:.3f}",
            f"{control['separator_unseen_accuracy']:.3f}",
        ],
    ]
    columns = ["reward model", "training accuracy", "accuracy on unseen tokens", "of u* on unseen tokens"]
    return [{"title": "Tokens unseen in training (Theorem 2)", "columns": columns, "rows": rows}]


def _verification(content: Content) -> list[Rows]:
    columns = ["vertices", "graphs", "pi_ref(C|x)", "pi(C|x)", "bound", "slack", "margin", "exponent"]
    rows = []
    for size in content["growth"]:
        members = [case for case in content["cases"] if case["vertices"] == size["vertices"]]
        margins = [case["margin"] for case in members]
        exponent = size["exponent"]
        rows.append(
            [
                str(size["vertices"]),
                str(len(members)),
                f"{_mean(members, 'reference_mass'):.3g}",
                f"{_mean(members, 'mass'):.3g}",
                f"{_mean(members, 'bound'):.3g}",
                f"{_mean(members, 'slack'):.4f}",
                f"{min(margins):.12g}"
                if max(margins) - min(margins) < 1e-9
                else f"{min(margins):g} .. {max(margins):g}",
                "" if exponent is None else f"{exponent:.1f}",
            ]
        )
    title = (
        f"A verifier with margin {content['delta']:g} (Theorem 1), means over graphs; exponent: how fast pi(C|x) "
        "falls, -d ln pi / d ln |x|"
    )
    return [{"title": title, "columns": columns, "rows": rows}]


def _mean(members: Sequence[Content], name: str) -> float:
    return float(sum(case[name] for case in members) / len(members))


def _values(title: str, values: Mapping[str, Any]) -> Rows:
    rows = [[name, f"{value:.4g}" if isinstance(value, float) else str(value)] for name, value in values.items()]
    return {"title": title, "columns": ["", "value"], "rows": rows}


_TABLES: dict[str, Callable[[Content], list[Rows]]] = {
    "dynamics": _dynamics,
    "separator": _separator,
    "unseen-tokens": _unseen_tokens,
    "verification": _verification,
}
