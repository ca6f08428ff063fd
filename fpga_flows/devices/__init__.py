# SPDX-License-Identifier: Apache-2.0
"""Devices as data: what an FPGA board has, how much of it a core may take, and which sizes a search varies. One YAML file per device, or a user's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from lutra.hls_models.config import Config
from lutra.hls_models.load import load_named, preset_names

__all__ = ["Device", "DeviceMemory", "Excess", "device_names", "load_device"]

HERE = Path(__file__).parent
Kind = Literal["lut", "lutram", "ff", "bram36", "bram18", "uram", "dsp"]
Choice = bool | int | str


class DeviceMemory(Config):
    """The memory beside the FPGA."""

    bytes: float = Field(gt=0, description="what model, keys and values may fill")
    peak_bytes_per_second: float = Field(gt=0, description="of the memory's pins; a core that asks for more does not fit")
    proven_bytes_per_second: float = Field(gt=0, description="reached by a published design; what is above is a bound that nobody has shown")
    proven_by: str


@dataclass(frozen=True)
class Excess:
    """A total that a core exceeds."""

    kind: str
    used: float
    allowed: float
    total: float

    def __str__(self) -> str:
        share = f"{100 * self.allowed / self.total:.0f} % of {self.total:,.0f}" if self.allowed < self.total else "all there are"
        return f"{self.kind} {self.used:,.0f} of {self.allowed:,.0f} ({share}), {self.used - self.allowed:,.0f} too many"


class Device(Config):
    """An FPGA board."""

    name: str
    part: str = Field(description="the vendor's name")
    family: Literal["xcup", "ecp5"]
    preset: str = Field(description="configuration that a search starts from")
    limit: float = Field(0.85, gt=0, le=1, description="share of every total that a core may take")
    totals: dict[Kind, float] = Field(description="what the FPGA has")
    memory: DeviceMemory | None = None
    space: dict[str, list[Choice]] = Field(description="what a search varies, and the values that it tries")

    @property
    def peak(self) -> float | None:
        """Bytes per second that its memory moves at most."""
        return self.memory.peak_bytes_per_second if self.memory else None

    def excess(self, used: Mapping[str, float], memory_bytes: float = 0, bytes_per_second: float = 0) -> list[Excess]:
        """What is exceeded, the worst first; of the memory nothing is left for others."""
        found = [Excess(kind, used[kind], self.limit * total, total) for kind, total in self.totals.items() if used.get(kind, 0) > self.limit * total]
        if self.memory:
            memory = self.memory
            asked = (("bytes of memory", memory_bytes, memory.bytes), ("bytes per second of memory", bytes_per_second, memory.peak_bytes_per_second))
            found += [Excess(kind, amount, total, total) for kind, amount, total in asked if amount > total]
        return sorted(found, key=lambda one: -one.used / one.allowed)

    def share(self, used: Mapping[str, float]) -> tuple[float, str]:
        """(largest share of a total, its kind)."""
        return max((used.get(kind, 0) / total, kind) for kind, total in self.totals.items())


def device_names() -> list[str]:
    """Names of the shipped devices."""
    return preset_names(HERE)


def load_device(name_or_path: str | Path) -> Device:
    """A shipped device by name, or a YAML file; ConfigError in one line."""
    return load_named("device", name_or_path, Device, HERE)
