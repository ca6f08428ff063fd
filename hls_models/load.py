# SPDX-License-Identifier: Apache-2.0
"""Configurations from YAML: shipped presets by name or files, with errors that name file, line, field, rule and the nearest legal value.

Files are read by ``yaml.SafeLoader`` and validated strictly, as JSON would be: a quoted number is no number, ``yes`` is no integer. Numbers
in exponent form (``250e6``) are numbers here, which YAML 1.1 would leave text. Aliases and duplicate keys are refused.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from lutra.hls_models.config import Config
from lutra.hls_models.errors import ConfigError

__all__ = ["PRESETS", "load_config", "load_named", "nearest", "parse_config", "preset_names", "rule_of"]

PRESETS = Path(__file__).parent / "presets"
MAX_BYTES = 1 << 20  # a configuration is a page of text; more is a mistake or an attack

C = TypeVar("C", bound=Config)
Place = tuple[str | int, ...]  # keys and list positions from the root of the document


def preset_names(presets: Path = PRESETS) -> list[str]:
    """Names of the shipped presets, sorted."""
    return sorted(path.stem for path in presets.glob("*.yaml"))


def nearest(word: object, legal: Iterable[str]) -> str:
    """The legal word nearest to ``word``, or "" when none is near."""
    return next(iter(difflib.get_close_matches(str(word).lower(), list(legal), n=1, cutoff=0.5)), "")


def rule_of(error: ValidationError) -> str:
    """The first rule that a value breaks, in one line, with its field."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: " * bool(place) + first["msg"].removeprefix("Value error, ").replace("\n", " ")


def load_config(name_or_path: str | Path, *models: type[C], presets: Path = PRESETS) -> C:
    """A validated model from a shipped preset's name or a YAML file.

    Parameters
    ----------
    name_or_path : name of a preset, or a path (anything with a folder or a suffix ``.yaml``/``.yml``, or that exists)
    models : the configuration class; of several, the key ``target`` of the file chooses (the first where it has none)
    presets : folder of the presets

    Raises
    ------
    ConfigError : one line that names file and line, field, rule, value and the nearest legal key or value
    """
    text, path = str(name_or_path), Path(name_or_path)
    if text in preset_names(presets):
        path = presets / f"{text}.yaml"
    elif not path.exists():
        names = preset_names(presets)
        near = nearest(path.stem, names)
        hint = f"; nearest preset: {near}" if near else ""
        raise ConfigError(f"config {text}: no such file and no shipped preset of that name{hint} (presets: {', '.join(names) or 'none'})")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder, must be a YAML file or the name of a preset")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: a configuration must be at most {MAX_BYTES} bytes, not {path.stat().st_size}")
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: must be UTF-8 text (byte {error.start} is not)") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_config(content, *models, source=path.name if path.parent == presets else str(path))


def load_named(kind: str, name_or_path: str | Path, model: type[C], presets: Path) -> C:
    """As ``load_config``, of a shipped ``kind`` (board, device) by its name, or of a file.

    Raises
    ------
    ConfigError : in one line, with the nearest shipped name.
    """
    names, text = preset_names(presets), str(name_or_path)
    if text not in names and not Path(name_or_path).exists():
        near = nearest(Path(name_or_path).stem, names)
        hint = f"; nearest: {near}" if near else ""
        raise ConfigError(f"{kind} {text}: no such file and no shipped {kind} of that name{hint} ({kind}s: {', '.join(names)})")
    return load_config(name_or_path, model, presets=presets)


def parse_config(text: str, *models: type[C], source: str = "<text>") -> C:
    """A validated model from YAML ``text``, as in ``load_config``; ``source`` names it in errors."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        if not isinstance(node, yaml.MappingNode):
            line = 1 if node is None else node.start_mark.line + 1
            kind = {yaml.SequenceNode: "a list", yaml.ScalarNode: "a single value", type(None): "empty"}[type(node)]
            raise ConfigError(f"{source}:{line}: a configuration must be a mapping of keys to values, not {kind}")
        lines: dict[Place, int] = {}
        _walk(node, (), lines, set(), source)
        data = _Loader("").construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{source}:{mark.line + 1 if mark else 1}: is not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{source}:{text.count(chr(10), 0, error.position) + 1}: is not valid YAML: {error.reason}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"{source}: is not valid YAML: {error}") from None
    model = _chosen(models, data, lines, source)
    try:
        return model.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(_message(error, model, lines, source)) from None


def _chosen(models: Sequence[type[C]], data: dict[str, Any], lines: dict[Place, int], source: str) -> type[C]:
    """The model whose ``target`` the document names."""
    if len(models) == 1 or "target" not in data:
        return models[0]
    targets = {str(model.model_fields["target"].default): model for model in models}
    if data["target"] not in targets:
        near = nearest(data["target"], targets)
        hint = f"; nearest: {near}" if near else ""
        raise ConfigError(f"{source}:{lines[('target',)]}: target: must be one of {', '.join(targets)}, not {data['target']!r}{hint}")
    return targets[data["target"]]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``250e6`` as the integer it is."""


def _exponent(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    value = float(loader.construct_scalar(node).replace("_", ""))
    return int(value) if value.is_integer() and abs(value) < 1 << 53 else value


_Loader.add_implicit_resolver("!exponent", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))
_Loader.yaml_implicit_resolvers = {
    # the float rule would win over ours for 2.5e+6: ours first, everywhere
    first: sorted(rules, key=lambda rule: rule[0] != "!exponent")
    for first, rules in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("!exponent", _exponent)


def _walk(node: yaml.Node, place: Place, lines: dict[Place, int], seen: set[int], source: str) -> None:
    """Records the line of every key and item in ``lines``; refuses duplicate keys, keys that are no text, aliases, infinities and NaN."""
    lines.setdefault(place, node.start_mark.line + 1)
    if id(node) in seen:
        raise ConfigError(f"{source}:{lines[place]}: {_dotted(place)}: aliases (*name) are not allowed in a configuration, write the value out")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise ConfigError(f"{source}:{line}: a key must be plain text, not {getattr(key, 'value', 'a list or mapping')!r}")
            here = (*place, key.value)
            if here in lines:
                raise ConfigError(f"{source}:{line}: {_dotted(here)}: key must appear once, it stands at line {lines[here]} already")
            lines[here] = line
            _walk(value, here, lines, seen, source)
    elif isinstance(node, yaml.ScalarNode) and node.tag in ("tag:yaml.org,2002:float", "!exponent"):
        if not math.isfinite(_Loader("").construct_object(node)):
            raise ConfigError(f"{source}:{lines[place]}: {_dotted(place)}: must be a finite number, not {node.value}")
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            _walk(value, (*place, position), lines, seen, source)


def _dotted(place: Place) -> str:
    return ".".join(str(part) for part in place) or "configuration"


def _message(error: ValidationError, model: type[BaseModel], lines: dict[Place, int], source: str) -> str:
    """One line for the first of pydantic's findings (by line in the file; missing keys last), and where the others are."""
    found = []
    for item in error.errors(include_url=False):
        place = tuple(part for part in item["loc"])
        rule = _rule(item, model, place)
        if item["type"] == "value_error":  # a rule between fields: the line of the first field its text names
            names = [word for word in re.findall(r"\w+", rule) if (*place, word) in lines]
            place, rule = ((*place, names[0]), rule) if names else (place, rule)
        known = place
        while known not in lines:
            known = known[:-1]
        text = rule if place and rule.startswith(str(place[-1])) else f"{_dotted(place)}: {rule}"
        found.append((item["type"] == "missing", lines[known], text, _dotted(place)))  # a missing key is often the misspelt one
    found.sort(key=lambda entry: entry[:2])
    _, line, text, _ = found[0]
    others = ", ".join(f"{where} (missing)" if missing else f"{where} (line {number})" for missing, number, _, where in found[1:6])
    more = f", {len(found) - 6} more" if len(found) > 6 else ""
    return f"{source}:{line}: {text}" + (f"; also wrong: {others}{more}" if others else "")


def _rule(item: Any, model: type[BaseModel], place: Place) -> str:
    """What the field must be, what it is, and the nearest legal key or value."""
    kind, context, value = item["type"], item.get("ctx") or {}, item["input"]
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    if kind == "extra_forbidden":
        legal = _keys(model, place[:-1])
        near = nearest(place[-1], legal)
        return "unknown key" + (f"; nearest legal key: {near}" if near else f"; legal keys: {', '.join(legal)}")
    if kind == "missing":
        return "key is missing"
    if kind == "value_error":
        return str(context.get("error", item["msg"])).replace("\n", " ")
    if kind in ("literal_error", "enum"):
        found = re.findall(r"'([^']*)'|(-?[\d.]+)", context["expected"])
        words = [text or digits for text, digits in found]
        numeric = isinstance(value, int | float) and not isinstance(value, bool) and all(digits for _, digits in found)
        near = min(words, key=lambda word: abs(float(word) - value)) if numeric else nearest(value, words)
        return f"must be one of {', '.join(words)}, not {shown}" + (f"; nearest legal value: {near}" if near else "")
    limits = {
        "greater_than_equal": ("ge", "at least", 0),
        "less_than_equal": ("le", "at most", 0),
        "greater_than": ("gt", "above", 1),
        "less_than": ("lt", "below", -1),
    }
    if kind in limits:
        key, relation, step = limits[kind]
        limit = context[key]
        hint = f"; nearest legal value: {limit + step}" if step == 0 or (isinstance(limit, int) and isinstance(value, int)) else ""
        return f"must be {relation} {limit}, not {shown}{hint}"
    if kind == "multiple_of":
        unit = context["multiple_of"]
        return f"must be a multiple of {unit}, not {shown}; nearest legal value: {max(1, round(value / unit)) * unit}"
    rule = re.sub(r"^(Input|Value|String|List|Tuple) should ", "must ", item["msg"])
    return f"{rule[0].lower() + rule[1:]}, not {shown}"


def _keys(model: type[BaseModel], place: Place) -> list[str]:
    """Legal keys of the model that stands at ``place`` (union members' keys together)."""
    models = [model]
    for part in place:
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields] if isinstance(part, str) else []
        inner = [inside for annotation in fields for inside in _models(annotation)]
        models = inner or models  # list positions and union tags stay where they are
    return sorted({name for m in models for name in m.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [inside for part in get_args(annotation) for inside in _models(part)]
