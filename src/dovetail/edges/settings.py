"""`dovetail.toml` on disk: read, refuse what is unknown, write with comments (tomllib, pydantic)."""

import json
import math
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dovetail.config import Config, Table
from dovetail.errors import BadConfigError
from dovetail.records import Gpu


def read(path: Path) -> dict[str, Any]:
    """The file as plain data. Raises BadConfigError where it is missing or no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadConfigError(f"there is no file {path}", do="write one with `dovetail init`") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadConfigError(f"{path}: {error}", do="correct the file") from error


def gpus(path: Path) -> list[Gpu]:
    """The rows [[gpu]] of a file. Raises BadConfigError where one is not whole."""
    rows = read(path).get("gpu", [])
    try:
        return [Gpu(**row) for row in rows]
    except TypeError as error:
        raise BadConfigError(
            f"{path}: a row [[gpu]] is not whole: {error}", do="give name, memory_gib, tflops, dollars_an_hour"
        ) from error


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, table by table."""
    result = dict(base)
    for key, value in over.items():
        result[key] = merged(result[key], value) if isinstance(value, dict) and isinstance(result.get(key), dict) else value
    return result


def validated(data: dict[str, Any], where: str) -> Config:
    """A configuration. Raises BadConfigError that names the first unknown or impossible key."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(p) for p in first["loc"])
        if first["type"] == "extra_forbidden":
            table: Any = Config.model_fields[str(first["loc"][0])].annotation if len(first["loc"]) > 1 else Config
            known = ", ".join(table.model_fields) if isinstance(table, type) and issubclass(table, Table) else ""
            raise BadConfigError(f"{where}: unknown key {key}", do=f"known keys there: {known}") from error
        raise BadConfigError(f"{where}: {key}: {first['msg']}", do=f"it is {first['input']!r} now") from error


def pairs(settings: list[str]) -> dict[str, Any]:
    """['training.steps=400'] as nested tables; values are read as TOML, else as text."""
    result: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise BadConfigError(
                f"--set {setting}: not of the form table.key=value", do="write for example --set training.steps=400"
            )
        table = result
        *tables, last = key.strip().split(".")
        for name in tables:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise BadConfigError(
                    f"--set {setting}: {key.rpartition('.')[0]} is a value, not a table", do="give one of the two"
                )
        try:
            table[last] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            table[last] = text
    return result


def text(config: Config, comments: bool) -> str:
    """The configuration as TOML; with `comments`, what each table and key is for."""
    lines = ["# Dovetail's configuration: one table a stage. Leave out what you do not want to change.", ""] if comments else []
    lines += _entry(config, "base", comments)
    for name in Config.model_fields:
        table = getattr(config, name)
        if isinstance(table, Table):
            lines += ["", *([f"# {type(table).__doc__}"] if comments else []), f"[{name}]"]
            for key in type(table).model_fields:
                lines += _entry(table, key, comments)
    return "\n".join(lines) + "\n"


def _entry(table: Table, key: str, comments: bool) -> list[str]:
    value = getattr(table, key)
    about = type(table).model_fields[key].description if comments else None
    comment = f"  # {about}" if about else ""
    if value is None:
        return [f"# {key} ={comment}"] if comments else []
    return [f"{key} = {_value(value)}{comment}"]


def _value(value: Any) -> str:
    """JSON's text for strings, numbers, booleans and lists of them is TOML's too."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
