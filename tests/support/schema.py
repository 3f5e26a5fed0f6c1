"""The part of JSON Schema that the AsyncAPI document uses; an unknown keyword is an error, so that none passes unchecked."""

from __future__ import annotations

import re
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
    "array": (list,),
}
_NOTES = {"description", "examples", "default", "format"}


def problems(value: Any, schema: Any, document: Any, at: str = "$") -> list[str]:
    """What is wrong with the value; empty where it is valid."""
    found: list[str] = []
    for keyword, wanted in schema.items():
        if keyword in _NOTES or keyword in ("then", "else"):
            continue
        check = _CHECKS.get(keyword)
        if check is None:
            raise AssertionError(f"{at}: the keyword {keyword} is not known to this checker")
        found += check(value, wanted, schema, document, at)
    return found


def resolve(reference: str, document: Any) -> Any:
    node = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


def _type(value: Any, wanted: Any, _schema: Any, _document: Any, at: str) -> list[str]:
    names = [wanted] if isinstance(wanted, str) else wanted
    fits = any(isinstance(value, _TYPES[name]) and not (name in ("integer", "number") and isinstance(value, bool)) for name in names)
    return [] if fits else [f"{at}: {value!r} is not {' or '.join(names)}"]


def _properties(value: Any, wanted: Any, _schema: Any, document: Any, at: str) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [problem for name, schema in wanted.items() if name in value for problem in problems(value[name], schema, document, f"{at}.{name}")]


def _additional(value: Any, wanted: Any, schema: Any, document: Any, at: str) -> list[str]:
    names = [name for name in value if name not in schema.get("properties", {})] if isinstance(value, dict) else []
    if wanted is False:
        return [f"{at}: {name} is not in the document" for name in names]
    return [problem for name in names for problem in problems(value[name], wanted, document, f"{at}.{name}")]


def _if(value: Any, wanted: Any, schema: Any, document: Any, at: str) -> list[str]:
    branch = "else" if problems(value, wanted, document, at) else "then"
    return problems(value, schema.get(branch, {}), document, at)


_CHECKS: dict[str, Any] = {
    "$ref": lambda value, wanted, _s, document, at: problems(value, resolve(wanted, document), document, at),
    "type": _type,
    "const": lambda value, wanted, _s, _d, at: [] if type(value) is type(wanted) and value == wanted else [f"{at}: {value!r} is not {wanted!r}"],
    "enum": lambda value, wanted, _s, _d, at: [] if value in wanted else [f"{at}: {value!r} is none of {wanted}"],
    "required": lambda value, wanted, _s, _d, at: [f"{at}: {name} is missing" for name in wanted if isinstance(value, dict) and name not in value],
    "properties": _properties,
    "additionalProperties": _additional,
    "minProperties": lambda value, wanted, _s, _d, at: [] if not isinstance(value, dict) or len(value) >= wanted else [f"{at}: too few properties"],
    "pattern": lambda value, wanted, _s, _d, at: [] if not isinstance(value, str) or re.search(wanted, value) else [f"{at}: {value!r} is not {wanted}"],
    "maxProperties": lambda value, wanted, _s, _d, at: [] if not isinstance(value, dict) or len(value) <= wanted else [f"{at}: too many properties"],
    "items": lambda value, wanted, _s, document, at: (
        [problem for item in value for problem in problems(item, wanted, document, f"{at}[]")] if isinstance(value, list) else []
    ),
    "minItems": lambda value, wanted, _s, _d, at: [] if not isinstance(value, list) or len(value) >= wanted else [f"{at}: too few items"],
    "maxItems": lambda value, wanted, _s, _d, at: [] if not isinstance(value, list) or len(value) <= wanted else [f"{at}: too many items"],
    "minLength": lambda value, wanted, _s, _d, at: [] if not isinstance(value, str) or len(value) >= wanted else [f"{at}: too short"],
    "maxLength": lambda value, wanted, _s, _d, at: [] if not isinstance(value, str) or len(value) <= wanted else [f"{at}: too long"],
    "if": _if,
    "not": lambda value, wanted, _s, document, at: [] if problems(value, wanted, document, at) else [f"{at}: must not be {wanted}"],
}
