# SPDX-License-Identifier: Apache-2.0
"""Raw nanoseconds of a timing preset, read from its YAML file, and their command clock cycles."""

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import yaml

__all__ = ["Timing", "read_timing"]


@dataclass(frozen=True)
class Timing:
    """Times in nanoseconds, exactly as written; ``cycles`` rounds each up to whole clocks."""

    clock: Fraction
    ns: dict[str, Fraction]
    four_activate_window: bool
    all_bank_exempt: bool
    all_bank_write: bool

    def cycles(self, *names: str) -> int:
        """Sum of the named times, each in whole clocks."""
        return sum(-(-self.ns[name] // self.clock) for name in names)

    def with_ns(self, **changes: float) -> "Timing":
        """The same with some times changed."""
        unknown = sorted(set(changes) - set(self.ns))
        if unknown:
            raise ValueError(f"{unknown[0]} is not one of {', '.join(self.ns)}")
        return replace(self, ns={**self.ns, **{name: Fraction(str(value)) for name, value in changes.items()}})


def read_timing(path: str | Path) -> Timing:
    """The times of a preset file: every key ``tX: {ns: …}``, decimal numbers taken literally.

    Raises
    ------
    ValueError
        The file, and what it lacks.
    """
    data = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # leaves numbers as they are written
    times = {name: value for name, value in data.items() if isinstance(value, dict) and "ns" in value} if isinstance(data, dict) else {}
    if "clock_ns" not in data or not times:
        raise ValueError(f"{path} must have clock_ns and times of the form tX: {{ns: …}}")
    return Timing(
        clock=Fraction(data["clock_ns"]),
        ns={name: Fraction(value["ns"]) for name, value in times.items()},
        four_activate_window=data.get("four_activate_window", "true") == "true",
        all_bank_exempt=data.get("all_bank_exempt", "true") == "true",
        all_bank_write=data.get("all_bank_write", "true") == "true",
    )
