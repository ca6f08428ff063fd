# SPDX-License-Identifier: Apache-2.0
"""Timing of a GDDR6 channel with MAC units: presets by name, every number in raw nanoseconds with its source (architecture.md, 4.3).

A preset is a YAML file in ``presets/timing``. A parameter is ``{ns: 16.0, source: aim}``; ``sources`` says in words what ``aim`` is. A source named
``ours`` is a value that no public table gives. Cycles of the command clock are the nanoseconds rounded up.
"""

import math
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from lutra.hls_models.config import Config
from lutra.hls_models.load import PRESETS, load_config, preset_names

__all__ = ["OURS", "TIMING_PRESETS", "Parameter", "Timing", "load_timing", "timing_file", "timing_names"]

TIMING_PRESETS = PRESETS / "timing"
OURS = "ours"
"""Name of the source of values that no public table gives."""


class Parameter(Config):
    """A time and where it comes from."""

    ns: float = Field(ge=0, description="raw nanoseconds")
    source: str = Field(description="key of the preset's sources")


class Timing(Config):
    """A timing preset; parameters carry the names of data sheets, those of MAC commands follow the open AiM simulator's."""

    name: str = Field(description="name that reports carry")
    title: str = Field(description="what it describes, in one line")
    clock_ns: float = Field(0.5, ge=0.01, description="period of the command clock in nanoseconds")
    sources: dict[str, str] = Field(description="what each source is, in words")
    all_bank_write: bool = Field(description="the device writes one value into every bank with one command (WRA); else read-modify-write")
    four_activate_window: bool = Field(description="tFAW holds between single activates")
    all_bank_exempt: bool = Field(True, description="all-bank activates do not count for tFAW")

    tCL: Parameter = Field(description="RD to its data")  # noqa: N815 - data-sheet names
    tCWL: Parameter = Field(description="WR to its data")  # noqa: N815
    tBL: Parameter = Field(description="length of a burst of one column")  # noqa: N815
    tCCDS: Parameter = Field(description="column command to column command, other bank group")  # noqa: N815
    tCCDL: Parameter = Field(description="column command to column command, same bank group; MAC to MAC")  # noqa: N815
    tRCDRD: Parameter = Field(description="activate to RD")  # noqa: N815
    tRCDWR: Parameter = Field(description="activate to WR and WRA")  # noqa: N815
    tRCDMAC: Parameter = Field(description="activate to MAC")  # noqa: N815
    tRCDEWMUL: Parameter = Field(description="activate to element-wise multiply")  # noqa: N815
    tRCDAF: Parameter = Field(description="activate to activation function")  # noqa: N815
    tRCDRDCP: Parameter = Field(description="activate to bank-to-buffer copy")  # noqa: N815
    tRCDWRCP: Parameter = Field(description="activate to buffer-to-bank copy")  # noqa: N815
    tRP: Parameter = Field(description="precharge to activate")  # noqa: N815
    tRAS: Parameter = Field(description="activate to precharge")  # noqa: N815
    tRC: Parameter = Field(description="activate to activate of the same bank")  # noqa: N815
    tWR: Parameter = Field(description="end of write data to precharge")  # noqa: N815
    tRTP: Parameter = Field(description="read to precharge")  # noqa: N815
    tWTRS: Parameter = Field(description="end of write data to read, other bank group")  # noqa: N815
    tWTRL: Parameter = Field(description="end of write data to read, same bank group")  # noqa: N815
    tRRDS: Parameter = Field(description="activate to activate, other bank group")  # noqa: N815
    tRRDL: Parameter = Field(description="activate to activate, same bank group")  # noqa: N815
    tFAW: Parameter = Field(description="window that holds at most four activates")  # noqa: N815
    tRFC: Parameter = Field(description="refresh to the next command")  # noqa: N815
    tREFI: Parameter = Field(description="mean interval of refreshes")  # noqa: N815
    tMODE: Parameter = Field(description="change between register and array access")  # noqa: N815
    tCLREG: Parameter = Field(description="RDM to its data")  # noqa: N815
    tCWLREG: Parameter = Field(description="BIAS to its data")  # noqa: N815
    tCWLGB: Parameter = Field(description="GBW to its data")  # noqa: N815
    tWPRE: Parameter = Field(description="write preamble when the bus turns from read to write")  # noqa: N815
    tTURN: Parameter = Field(description="bus turnaround from read to write")  # noqa: N815

    @classmethod
    def parameter_names(cls) -> list[str]:
        """Names of the times, in the order of the class."""
        return [name for name, field in cls.model_fields.items() if field.annotation is Parameter]

    def ns(self, name: str) -> float:
        """Raw nanoseconds of a parameter."""
        value: Parameter = getattr(self, name)
        return value.ns

    def cycles(self, name: str) -> int:
        """Command clock cycles of a parameter: its nanoseconds rounded up; the interval of refreshes, which is a maximum, rounded down."""
        clocks = self.ns(name) / self.clock_ns
        return math.floor(clocks + 1e-9) if name == "tREFI" else math.ceil(clocks - 1e-9)

    def ours(self) -> list[str]:
        """Names of the parameters whose value no public table gives."""
        return [name for name in self.parameter_names() if getattr(self, name).source == OURS]

    @model_validator(mode="after")
    def _consistent(self) -> "Timing":
        unknown = [name for name in self.parameter_names() if getattr(self, name).source not in self.sources]
        if unknown:
            source = getattr(self, unknown[0]).source
            raise ValueError(f"{unknown[0]}.source must be one of {', '.join(self.sources)}, not {source!r}")
        least: list[tuple[str, str, float]] = [
            ("tRAS", "tRCDRD + tBL", self.tRCDRD.ns + self.tBL.ns),
            ("tRC", "tRAS + tRP", self.tRAS.ns + self.tRP.ns),
            ("tFAW", "tRRDS", self.tRRDS.ns),
            ("tCCDL", "tCCDS", self.tCCDS.ns),
            ("tCCDS", "tBL", self.tBL.ns),
            ("tRRDL", "tRRDS", self.tRRDS.ns),
            ("tWTRL", "tWTRS", self.tWTRS.ns),
            ("tBL", "one clock", self.clock_ns),
            ("tRFC", "one clock", self.clock_ns),
        ]
        for name, rule, bound in least:
            if self.ns(name) < bound - self.clock_ns + 1e-9 or self.ns(name) <= 0:  # less than a clock apart: rounding of a published table
                raise ValueError(f"{name} must be at least {rule} ({bound:g} ns), not {self.ns(name):g}; nearest legal value {bound:g}")
        interval, refresh = self.cycles("tREFI"), self.cycles("tRFC")
        if interval <= refresh:
            raise ValueError(
                f"tREFI must be above tRFC ({self.tRFC.ns:g} ns), not {self.tREFI.ns:g} ({interval} clocks and {refresh}): every cycle would be a refresh"
            )
        return self

    def with_ns(self, **changes: float) -> "Timing":
        """A derived preset with some times changed (marked ours), checked again."""
        data: dict[str, Any] = self.model_dump()
        data["sources"] = {**self.sources, OURS: self.sources.get(OURS, "ours: no public table gives it")}
        data["name"] = f"{self.name}*"
        for name, value in changes.items():
            data[name] = {"ns": value, "source": OURS}
        return Timing.model_validate(data)


def timing_names() -> list[str]:
    """Names of the shipped timing presets."""
    return preset_names(TIMING_PRESETS)


def timing_file(name_or_path: str | Path) -> Path:
    """File of a preset's name; any other path as it is."""
    return TIMING_PRESETS / f"{name_or_path}.yaml" if str(name_or_path) in timing_names() else Path(name_or_path)


def load_timing(name_or_path: str | Path) -> Timing:
    """A shipped preset by name, or a YAML file of that form.

    Raises
    ------
    ConfigError : one line with file and line, field, rule, value and the nearest legal value; so for a preset that contradicts itself
    """
    return load_config(name_or_path, Timing, presets=TIMING_PRESETS)
