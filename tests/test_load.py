# SPDX-License-Identifier: Apache-2.0
"""Every message of the configuration loader."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, field_validator, model_validator

from lutra.hls_models.config import Config
from lutra.hls_models.errors import ConfigError
from lutra.hls_models.load import MAX_BYTES, PRESETS, load_config, nearest, parse_config, preset_names

pytestmark = pytest.mark.smoke


class Memory(Config):
    beat_bytes: int = Field(default=16, ge=4, le=64, multiple_of=4)
    clock_hz: float = Field(default=50e6, gt=0)


class Port(Config):
    width: int = Field(default=1, gt=0)


class Core(Config):
    tables: int = Field(default=6, ge=1, le=64)
    group: int = 3
    name: str = "core"
    half_tables: bool = False
    kv_format: Literal["int8", "fp16"] = "int8"
    memory: Memory = Memory()
    ports: tuple[Port, ...] = ()
    columns: int = 8
    lanes: Literal[2, 4, 8] = 4

    @field_validator("group")
    @classmethod
    def _group(cls, value: int) -> int:
        if not 2 <= value <= 5:
            raise ValueError(f"group must be 2 to 5, not {value}; nearest legal value: {min(max(value, 2), 5)}")
        return value

    @model_validator(mode="after")
    def _lanes(self) -> "Core":
        if self.columns % self.tables and self.columns < self.tables:
            raise ValueError(f"columns must be at least tables ({self.tables}), not {self.columns}")
        return self


class Needy(Config):
    required: int


GOOD = """\
tables: 4
group: 3
memory:
  beat_bytes: 32
  clock_hz: 250e6
ports:
  - width: 2
  - {width: 3}
"""


def test_good() -> None:
    core = parse_config(GOOD, Core)
    assert core.tables == 4 and core.memory.clock_hz == 250e6 and [port.width for port in core.ports] == [2, 3]
    assert parse_config("tables: 2e0\nmemory: {clock_hz: 2.5e+6}", Core).memory.clock_hz == 2.5e6


MESSAGES = {
    "tabels: 4": "c.yaml:1: tabels: unknown key; nearest legal key: tables",
    "tables: 4\nmemory:\n  beat_byte: 4": "c.yaml:3: memory.beat_byte: unknown key; nearest legal key: beat_bytes",
    "ports:\n- width: 1\n- widht: 1": "c.yaml:3: ports.1.widht: unknown key; nearest legal key: width",
    "memory: {zzzzzz: 1}": "c.yaml:1: memory.zzzzzz: unknown key; legal keys: beat_bytes, clock_hz",
    "\n\ntables: 0": "c.yaml:3: tables: must be at least 1, not 0; nearest legal value: 1",
    "tables: 65": "c.yaml:1: tables: must be at most 64, not 65; nearest legal value: 64",
    "ports: [{width: 0}]": "c.yaml:1: ports.0.width: must be above 0, not 0; nearest legal value: 1",
    "memory:\n  beat_bytes: 18": "c.yaml:2: memory.beat_bytes: must be a multiple of 4, not 18; nearest legal value: 16",
    "tables: four": "c.yaml:1: tables: must be a valid integer, not 'four'",
    'tables: "4"': "c.yaml:1: tables: must be a valid integer, not '4'",
    "tables: yes": "c.yaml:1: tables: must be a valid integer, not True",
    "tables: 4.5": "c.yaml:1: tables: must be a valid integer, not 4.5",
    "half_tables: 1": "c.yaml:1: half_tables: must be a valid boolean, not 1",
    "name: [a]": "c.yaml:1: name: must be a valid string, not ['a']",
    "memory: 5": "c.yaml:1: memory: must be an object, not 5",
    "ports: 5": "c.yaml:1: ports: must be a valid array, not 5",
    "kv_format: int9": "c.yaml:1: kv_format: must be one of int8, fp16, not 'int9'; nearest legal value: int8",
    "lanes: 7": "c.yaml:1: lanes: must be one of 2, 4, 8, not 7; nearest legal value: 8",
    "requried: 4": "c.yaml:1: requried: unknown key; nearest legal key: required; also wrong: required (missing)",
    "group: 7": "c.yaml:1: group must be 2 to 5, not 7; nearest legal value: 5",
    "tables: 9\ncolumns: 8": "c.yaml:2: columns must be at least tables (9), not 8",
    "tables: 0\nmemory:\n  beat_bytes: 2": "c.yaml:1: tables: must be at least 1, not 0; nearest legal value: 1; also wrong: memory.beat_bytes (line 3)",
    "tables: 4\ntables: 5": "c.yaml:2: tables: key must appear once, it stands at line 1 already",
    "memory: &m {beat_bytes: 4}\nports: [*m]": "c.yaml:1: ports.0: aliases (*name) are not allowed in a configuration, write the value out",
    "4: 4": "c.yaml:1: a key must be plain text, not '4'",
    "tables: [4": "c.yaml:1: is not valid YAML: expected ',' or ']', but got '<stream end>'",
    "a: b: c": "c.yaml:1: is not valid YAML: mapping values are not allowed here",
    "tables: !!python/object/apply:os.getcwd []": "could not determine a constructor for the tag",
    "tables: 4\n---\ntables: 5": "c.yaml:2: is not valid YAML: but found another document",
    "tables: \x01": "c.yaml:1: is not valid YAML: special characters are not allowed",
    "- tables": "c.yaml:1: a configuration must be a mapping of keys to values, not a list",
    "tables": "c.yaml:1: a configuration must be a mapping of keys to values, not a single value",
    "# nothing\n": "c.yaml:1: a configuration must be a mapping of keys to values, not empty",
}


@pytest.mark.parametrize("text", MESSAGES)
def test_message(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, Needy if "requried" in text else Core, source="c.yaml")
    message = str(caught.value)
    assert MESSAGES[text] in message and "\n" not in message


def test_deep_nesting_is_an_error() -> None:
    with pytest.raises(ConfigError, match="is not valid YAML"):
        parse_config("tables: " + "[" * 5000, Core)


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "tiny.yaml").write_text("tables: 6\n")
    (folder / "kv260.yaml").write_text("tables: 99\n")
    return folder


def test_presets_and_files(presets: Path, tmp_path: Path) -> None:
    assert preset_names(presets) == ["kv260", "tiny"]
    assert load_config("tiny", Core, presets=presets).tables == 6
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD)
    assert load_config(file, Core, presets=presets).tables == 4
    with pytest.raises(ConfigError, match=r"^kv260\.yaml:1: tables: must be at most 64"):
        load_config("kv260", Core, presets=presets)


def test_files_that_cannot_be_read(presets: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config kv620: no such file and no shipped preset of that name; nearest preset: kv260 \(presets: kv260, tiny\)"):
        load_config("kv620", Core, presets=presets)
    with pytest.raises(ConfigError, match=r"nearest preset: tiny"):
        load_config("somewhere/tiny.yml", Core, presets=presets)
    with pytest.raises(ConfigError, match="is a folder, must be a YAML file"):
        load_config(tmp_path, Core, presets=presets)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="must be UTF-8 text"):
        load_config(tmp_path / "latin.yaml", Core, presets=presets)
    (tmp_path / "large.yaml").write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="must be at most"):
        load_config(tmp_path / "large.yaml", Core, presets=presets)


def test_nearest() -> None:
    assert nearest("Tabels", ["tables", "group"]) == "tables" and nearest("x", ["tables"]) == ""
    assert PRESETS.name == "presets"
