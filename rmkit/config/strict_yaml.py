"""Settings from YAML: read strictly, changed by overrides; a mistake is told with its key and the nearest known one."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rmkit.errors import RmkitError

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy's generators take."""


class StrictModel(BaseModel):
    """A part of a recipe: immutable; an unknown key, or a value that would have to be converted, is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that reads 1e-6 as a number (YAML 1.1 reads it as text) and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        named = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in named]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_StrictLoader` would read as numbers."""


for _reader_or_writer in (_StrictLoader, _Dumper):
    _reader_or_writer.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def to_yaml(content: Any) -> str:
    """YAML that `load_yaml` reads back as the same values."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def load_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        RmkitError: if the file is missing, is not YAML, or holds no mapping.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        near = difflib.get_close_matches(Path(path).name, [each.name for each in Path(path).parent.glob("*.yaml")], n=1)
        remedy = f"Did you mean {Path(path).with_name(near[0])}?" if near else "`ls recipes` lists the shipped recipes."
        raise RmkitError(f"{path} does not exist.", remedy) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RmkitError(f"{path} cannot be read: {error}.", "Give the path of a YAML file.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-13-01 looks like a date
        raise RmkitError(f"{path} is not valid YAML: {error}.", "Mend the line that it names.") from None
    if not isinstance(content, dict):
        raise RmkitError(f"{path} holds no mapping.", "Compare it with a shipped recipe in recipes/.")
    return content


def override_value(override: str) -> tuple[str, Any]:
    """The key and the value of `key=value`, the value read as YAML.

    Raises:
        RmkitError: if it is not of that form.
    """
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise RmkitError(
            f"The override {_shown(override)} is not of the form section.key=value.", "For example output_dir=runs/a."
        )
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RmkitError(f"The value of the override {_shown(override)} is not YAML.", "Quote it.") from None
    return key, value


def apply_override(content: dict[str, Any], override: str) -> None:
    """Put the value of `section.key=value` into nested mappings and lists.

    Raises:
        RmkitError: if it is not of that form, or names nothing that is there.
    """
    key, value = override_value(override)
    *sections, last = key.split(".")
    at: Any = content
    try:
        for section in sections:
            if isinstance(at, list):
                at = at[int(section)]
            else:
                at[section] = at.get(section) if at.get(section) is not None else {}
                at = at[section]
        if isinstance(at, list):
            at[int(last)] = value
        else:
            at[last] = value
    except (AttributeError, TypeError, ValueError, IndexError):
        raise RmkitError(
            f"The override {_shown(override)} names nothing in the recipe.",
            "Name the keys as the recipe does, and entries of lists by number, from 0.",
        ) from None


StrictModelType = typing.TypeVar("StrictModelType", bound=BaseModel)


def validate(section: type[StrictModelType], content: dict[str, Any], source: str) -> StrictModelType:
    """`section` from `content`, the first mistake reported as an `RmkitError` that names `source` and the key."""
    try:
        # By way of JSON, where a path is text even if values are never converted; so is what JSON lacks (dates).
        return section.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = first["loc"]
        parts = [str(part) for at, part in enumerate(location) if not (at and location[at - 1] == "reward_model")]
        tagged = first["type"].startswith("union_tag")
        key = ".".join([*parts, "type"] if tagged else parts) or "recipe"
        value = first.get("input")
        if first["type"] == "extra_forbidden":
            known = _known_keys(section, location[:-1])
            raise RmkitError(f"{source}: {key} is not a known key.", nearest(str(location[-1]), known)) from None
        if first["type"] == "missing":
            raise RmkitError(f"{source}: {key} is missing.", "Add it; docs/recipes.md describes every key.") from None
        if first["type"] == "union_tag_not_found":
            raise RmkitError(f"{source}: {key} is missing.", "It is explicit, implicit or generative.") from None
        if tagged:
            value = first["ctx"]["tag"]
            near = nearest(value, ["explicit", "implicit", "generative"])
            raise RmkitError(f"{source}: {key} is {value!r}.", near) from None
        if first["type"] == "value_error":
            message = first["msg"].removeprefix("Value error, ")
            raise RmkitError(f"{source}: {key}: {message}.", f"Mend {key}; docs/recipes.md describes it.") from None
        remedy = f"Mend {key}; docs/recipes.md describes it."
        if first["type"] in ("string_type", "path_type") and value is not None and not isinstance(value, dict | list):
            remedy = "Put quotes around it, so that YAML reads it as text."
        if first["type"] == "literal_error" and isinstance(value, str):
            remedy = nearest(value, re.findall("'([^']*)'", first["ctx"]["expected"]))
        raise RmkitError(f"{source}: {key} is {_shown(value)}: it must be {plainly(first)}.", remedy) from None
    except ValueError:  # of json: a YAML alias inside what it stands for
        raise RmkitError(f"{source} contains itself.", "Remove the alias (*name) from what it names.") from None


_WANTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping of keys to values",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "int_type": "a whole number",
    "less_than": "below {lt}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "model_attributes_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "path_type": "a path",
    "string_pattern_mismatch": "letters, digits, dots, dashes and underscores",
    "string_too_short": "longer",
    "string_type": "text",
}


def plainly(error: Any) -> str:
    """What a value must be, in words for people who have never heard of pydantic."""
    wanted = _WANTED.get(error["type"])
    return str(error["msg"]) if wanted is None else wanted.format(**error.get("ctx", {}))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known_keys(section: Any, location: Sequence[int | str]) -> list[str]:
    """The keys of the section at `location` below `section`."""
    for part in location:
        choices = [section, *_inner_types(section)]
        for choice in choices:
            fields = getattr(choice, "model_fields", {})
            if part in fields:
                section = fields[part].annotation
                break
            if "type" in fields and part == fields["type"].default:  # the tag of a discriminated union
                section = choice
                break
    return [key for choice in [section, *_inner_types(section)] for key in getattr(choice, "model_fields", {})]


def _inner_types(hint: Any) -> list[Any]:
    inner: list[Any] = []
    for argument in typing.get_args(hint):
        inner += [argument, *_inner_types(argument)]
    return inner


def nearest(key: str, known: Iterable[str]) -> str:
    """A remedy: the known key that is spelled most alike, or the known ones."""
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(key, known, n=1)
    more = ", ..." if len(known) > 12 else ""
    return f"Did you mean {near[0]}?" if near else f"Known here: {', '.join(known[:12])}{more}."
