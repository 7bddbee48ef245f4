"""Results of the theory as tables: for the terminal, and for reports, which read the JSON only. No torch.

Every JSON file of `rmkit theory` says under "theory" which result it holds (dynamics, separator, unseen-tokens or
verification) and under "figures" the names of the figures beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

Content = Mapping[str, Any]


class Rows(TypedDict):
    """A table: its title, its columns, and its rows of as many texts each."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def tables(content: Content) -> list[Rows]:
    """The tables of one result, from the content of its JSON file.

    Raises:
        KeyError: if the content is not one of a theory command.
    """
    return _TABLES[content["theory"]](content)


def dynamics_tables(types: Mapping[str, Content]) -> list[Rows]:
    """Tables of the dynamics by name: of types, or of a run's own type `before` and `after` training."""
    errors: Rows = {"title": "Predicted against measured change of rewards", "columns": ["", "equation"], "rows": []}
    groups: Rows = {
        "title": "Change of the margin r(chosen) - r(rejected) after one step, mean over pairs",
        "columns": ["", "asked about", "pairs", "predicted", "measured", "all parameters", "positive"],
        "rows": [],
    }
    tokens: Rows = {
        "title": "Eq. 5 by tokens: net change of the margin, and share of the sum of absolute terms",
        "columns": ["", "asked about", "matching tokens", "template suffix", "other tokens", "share of matching"],
        "rows": [],
    }
    bounds: Rows = {"title": "Coefficients", "columns": ["", "coefficient", "found", "bounds"], "rows": []}
    for name, result in types.items():
        rates = [each["learning_rate"] for each in result["errors"]]
        if not errors["rows"]:
            errors["columns"] += [*(f"relative error at {rate:g}" for rate in rates), "slope of error"]
        slope = result["error_slope"]
        errors["rows"].append(
            [
                name,
                result["equation"],
                *(f"{each['relative']:.1e}" for each in result["errors"]),
                "exact up to rounding" if slope is None else f"{slope:.2f}",
            ]
        )
        for group, each in result["groups"].items():
            change, positive = each["margin_change"], each["positive_share"]
            trainable = change.get("trainable")
            groups["rows"].append(
                [
                    name,
                    group,
                    str(each["pairs"]),
                    f"{change['predicted']:+.3g}",
                    f"{change['measured']:+.3g}",
                    "" if trainable is None else f"{trainable:+.3g}",
                    f"{positive['measured']:.0%}",
                ]
            )
            if "margin_change_by_tokens" in each:
                net = each["margin_change_by_tokens"]
                tokens["rows"].append(
                    [
                        name,
                        group,
                        *(f"{net[part]:+.3g}" for part in ("matching", "template", "other")),
                        f"{each['absolute_share']['matching']:.1%}",
                    ]
                )
        for coefficient, each in result["coefficients"].items():
            low, high = each["bounds"]
            bounds["rows"].append(
                [name, coefficient.replace("_", " "), f"{each['min']:.3g} .. {each['max']:.3g}", f"{low:g} .. {high:g}"]
            )
    return [table for table in (errors, groups, tokens, bounds) if table["rows"]]


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
        "pairs that hold it in place": len(content["support_pairs"]),
        "duality gap": content["duality_gap"],
    }
    unseen: Rows = {
        "title": "<u*, h+ - h-> of unseen pairs (training pairs: at least 1)",
        "columns": ["set", "pairs", "positive", "smallest", "5 %", "median", "95 %"],
        "rows": [
            [
                name,
                str(each["pairs"]),
                f"{each['fraction_positive']:.1%}",
                *(f"{each['quantiles'][level]:.3g}" for level in ("0", "0.05", "0.5", "0.95")),
            ]
            for name, each in content["unseen"].items()
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
    return [{"title": "Tokens that training has not shown (Theorem 2)", "columns": columns, "rows": rows}]


def _verification(content: Content) -> list[Rows]:
    columns = ["vertices", "graphs", "pi_ref(C|x)", "pi(C|x)", "bound", "slack", "margin", "exponent"]
    rows = []
    for each in content["growth"]:
        members = [one for one in content["cases"] if one["vertices"] == each["vertices"]]
        margins = [one["margin"] for one in members]
        exponent = each["exponent"]
        rows.append(
            [
                str(each["vertices"]),
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
    return float(sum(each[name] for each in members) / len(members))


def _values(title: str, values: Mapping[str, Any]) -> Rows:
    rows = [[name, f"{value:.4g}" if isinstance(value, float) else str(value)] for name, value in values.items()]
    return {"title": title, "columns": ["", "value"], "rows": rows}


_TABLES: dict[str, Callable[[Content], list[Rows]]] = {
    "dynamics": _dynamics,
    "separator": _separator,
    "unseen-tokens": _unseen_tokens,
    "verification": _verification,
}
