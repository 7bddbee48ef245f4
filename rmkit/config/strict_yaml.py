"""Settings from YAML: strict parsing, overrides, and errors that name the key and suggest the closest known one."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, Tag, ValidationError

from rmkit.errors import RmkitError

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that NumPy accepts."""
ONE, SEVERAL = "[one]", "[several]"
"""Tags of a key that takes a section or a list of them; pydantic adds them to the locations of errors."""


class StrictModel(BaseModel):
    """A section of a YAML file. Immutable; unknown keys and values that would need conversion are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that reads 1e-6 as a number (YAML 1.1 reads it as text) and rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        named = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in named]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key}", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes strings that `_StrictLoader` would read as numbers."""


for _yaml_class in (_StrictLoader, _Dumper):
    _yaml_class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def to_yaml(content: Any) -> str:
    """YAML text that `load_yaml` reads back as the same values."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def load_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML file whose content is a mapping.

    Raises:
        RmkitError: if the file is missing, is not valid YAML, or is not a mapping.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise RmkitError(f"{path} does not exist.", "Give the path of a YAML file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RmkitError(f"{path} cannot be read: {error}.", "Give the path of a YAML file.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-13-01 looks like a date
        raise RmkitError(f"{path} is not valid YAML: {error}.", "Fix the line named above.") from None
    if not isinstance(content, dict):
        raise RmkitError(f"{path} is not a mapping of keys to values.", "Compare it with a shipped recipe.")
    return content


def override_value(override: str) -> tuple[str, Any]:
    """Split `key=value` into the key and the value, parsed as YAML.

    Raises:
        RmkitError: if it does not have that form.
    """
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise RmkitError(
            f"The override {short_repr(override)} is not of the form section.key=value.", "Example: output_dir=runs/a."
        )
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise RmkitError(f"The value of the override {short_repr(override)} is not valid YAML.", "Quote it.") from None
    return key, value


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set the value of `section.key=value` in nested mappings and lists, in place.

    Raises:
        RmkitError: if it does not have that form, or matches no key or list entry.
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
            f"The override {short_repr(override)} matches no key in the recipe.",
            "Use the recipe's key names; number list entries from 0.",
        ) from None


StrictModelType = typing.TypeVar("StrictModelType", bound=BaseModel)


def validate(
    section: type[StrictModelType],
    content: dict[str, Any],
    source: str,
    other_keys: Callable[[], Iterable[str]] = tuple,
) -> StrictModelType:
    """Parse `content` as `section`, and report the first mistake with its key.

    Args:
        section: the schema.
        content: as read from YAML.
        source: the file or command that the error names.
        other_keys: dotted keys outside the schema that may be suggested; called only for an unknown key.

    Raises:
        RmkitError: naming `source`, the key and what is expected.
    """
    try:
        # By way of JSON, where a path is text even if values are never converted; so is what JSON lacks (dates).
        return section.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RmkitError(*_explain(section, first, source, other_keys)) from None
    except ValueError:  # of json: a YAML alias inside what it stands for
        raise RmkitError(f"{source} contains itself.", "Remove the alias (*name) from what it names.") from None


def _explain(
    section: type[BaseModel], error: Any, source: str, other_keys: Callable[[], Iterable[str]]
) -> tuple[str, str]:
    """The cause and the remedy of pydantic's first error."""
    location = [part for part in error["loc"] if part not in (ONE, SEVERAL)]
    problem, value = error["type"], error.get("input")
    parts = [str(part) for at, part in enumerate(location) if not (at and location[at - 1] == "reward_model")]
    key = ".".join(parts) or "recipe"
    remedy = f"Fix {key}; docs/recipes.md describes it."
    match problem:
        case "extra_forbidden":
            here = _known_keys(section, location[:-1])
            return f"{source}: {key} is not a known key.", suggest_key(
                key, here, [*dotted_keys(section), *other_keys()]
            )
        case "missing":
            return f"{source}: {key} is missing.", "Add it; docs/recipes.md describes every key."
        case "union_tag_not_found":
            return f"{source}: {key}.type is missing.", f"Add it: {', '.join(_tags(section, location))}."
        case "union_tag_invalid":
            tag = error["ctx"]["tag"]
            return f"{source}: {key}.type is {tag!r}.", suggest(tag, _tags(section, location))
        case "value_error":
            return f"{source}: {key}: {error['msg'].removeprefix('Value error, ')}.", remedy
        case "string_type" | "path_type" if value is not None and not isinstance(value, dict | list):
            remedy = "Put quotes around it, so that YAML reads it as text."
        case "literal_error" if isinstance(value, str):
            remedy = suggest(value, re.findall("'([^']*)'", error["ctx"]["expected"]))
    return f"{source}: {key} is {short_repr(value)}: it must be {expected_value(error)}.", remedy


_EXPECTED = {
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
    "too_short": "longer",
}


def expected_value(error: Any) -> str:
    """What a value must be, without pydantic's vocabulary."""
    expected = _EXPECTED.get(error["type"])
    return str(error["msg"]) if expected is None else expected.format(**error.get("ctx", {}))


def short_repr(value: Any) -> str:
    """`repr`, at most 60 characters long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def dotted_keys(section: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a schema, below all its sections: base.name, data.evaluation.0.path ..."""
    fields = getattr(section, "model_fields", None)
    if fields is None:
        for inner in typing.get_args(section):
            if Tag(SEVERAL) in getattr(inner, "__metadata__", ()):  # the same keys as those of one section
                continue
            yield from dotted_keys(inner, f"{prefix}0." if typing.get_origin(section) is list else prefix)
        return
    for name, field in fields.items():
        yield prefix + name
        yield from dotted_keys(field.annotation, f"{prefix}{name}.")


def _known_keys(section: Any, location: Sequence[int | str]) -> list[str]:
    """The keys of the section at `location` below `section`."""
    return [key for choice in _choices(section, location) for key in getattr(choice, "model_fields", {})]


def _tags(section: Any, location: Sequence[int | str]) -> list[str]:
    """The values of `type` at `location` below `section`."""
    choices = _choices(section, location)
    return [choice.model_fields["type"].default for choice in choices if "type" in getattr(choice, "model_fields", {})]


def _choices(section: Any, location: Sequence[int | str]) -> list[Any]:
    """The schema at `location` below `section`, and the types inside its hint."""
    for part in location:
        for choice in [section, *_inner_types(section)]:
            fields = getattr(choice, "model_fields", {})
            if part in fields:
                section = fields[part].annotation
                break
            if "type" in fields and part == fields["type"].default:  # the tag of a discriminated union
                section = choice
                break
    return [section, *_inner_types(section)]


def _inner_types(hint: Any) -> list[Any]:
    inner: list[Any] = []
    for argument in typing.get_args(hint):
        inner += [argument, *_inner_types(argument)]
    return inner


def suggest_key(key: str, here: Iterable[str], everywhere: Iterable[str]) -> str:
    """A remedy for the unknown dotted `key`.

    Suggests, in this order, the keys of that name in other sections, the closest of the keys `here` in its section, and
    the keys of the closest name in other sections.
    """
    name, here = key.rpartition(".")[2], list(here)
    paths: dict[str, list[str]] = {}
    for path in sorted(dict.fromkeys(everywhere), key=lambda path: path.count(".")):
        if path != key:
            paths.setdefault(path.rpartition(".")[2], []).append(path)
    if name not in paths and difflib.get_close_matches(name, here, n=1):
        return suggest(name, here)
    found = [path for close in difflib.get_close_matches(name, paths, n=1, cutoff=0.8) for path in paths[close]]
    return f"Did you mean {' or '.join(found)}?" if found else suggest(name, here)


def suggest(name: str, known: Iterable[str]) -> str:
    """A remedy: the closest known name, or the known names."""
    known = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, known, n=1)
    more = ", ..." if len(known) > 12 else ""
    return f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(known[:12])}{more}."
