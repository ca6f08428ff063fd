# SPDX-License-Identifier: Apache-2.0
"""Whether a core fits its device, and where it does not: what is exceeded, by how much, the nearest configuration that fits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lutra.exploration.space import Point, Space
from lutra.fpga_flows.devices import Device, Excess, load_device
from lutra.hls_models.errors import ConfigError
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.memory import MemoryConfig
from lutra.schema import ResourceFigures

__all__ = ["Count", "Fit", "check_fit", "counter", "figures_of", "fit_of", "memory_bytes", "nearest_fit", "refusal"]

Used = Mapping[str, float]
Count = Callable[[CoreSpec], Used]
"""Resources of a core by kind."""

CHANGED = (2, 3)
"""Sizes that may differ from a configuration that does not fit in the nearest one that does: few first, then more."""


@dataclass(frozen=True)
class Fit:
    """What a core takes of a device, and what of that is too much (the worst first)."""

    device: Device
    used: Used
    excess: Sequence[Excess]
    share: float
    kind: str


def counter(device: Device) -> Count:
    """The fitted resource model of the device's family, where it needs a core's sizes alone: that of ecp5 (``ternary/ecp5.py``) takes the length of the
    program, and leaves multipliers to a count in the RTL."""
    if device.family != "xcup":
        raise ConfigError(
            f"device {device.name}: must be of family xcup, whose resources follow from a core's sizes, not {device.family}; nearest: kv260 "
            f"(lutra fpga holds a compiled core against {device.name})"
        )
    from lutra.hls_models.ternary.resources import KINDS, resources

    def count(spec: CoreSpec) -> Used:
        found = resources(spec)
        return {kind: float(getattr(found, kind)) for kind in KINDS}

    return count


def memory_bytes(shape: ModelShape) -> float:
    """What no placement of a model can do without: 1.6 bits per ternary weight, 8-bit table, keys and values of the whole context."""
    tables = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    return shape.ternary_weights / 5 + tables + 2 * shape.layers * shape.kv_columns * shape.context


def fit_of(spec: CoreSpec, device: Device, count: Count) -> Fit:
    """Resources of a core against a device."""
    used = count(spec)
    share, kind = device.share(used)
    c = spec.config
    asked = round(c.memory.bandwidth(c.clock_hz)) if c.memory else 0
    return Fit(device, used, device.excess(used, memory_bytes(spec.shape), asked), share, kind)


def nearest_fit(space: Space, device: Device, count: Count) -> tuple[Point, Fit] | None:
    """The point that fits with the fewest grid steps, then sizes, from the base; None where none with ``CHANGED`` sizes does."""
    near = {space.start}
    for changed in range(1, CHANGED[-1] + 1):
        near |= {other for point in near for other in space.neighbours(point)}
        if changed in CHANGED:
            for point in sorted(near, key=lambda one: (space.distance(one), one)):
                spec = space.spec(point)
                if spec is not None and not (fit := fit_of(spec, device, count)).excess:
                    return point, fit
    return None


def refusal(spec: CoreSpec, device: Device, fit: Fit, count: Count) -> str:
    """One line for a core that does not fit."""
    c, s = spec.config, spec.shape
    text = f"config {c.name} for {s.name} does not fit {device.name}: " + "; ".join(str(one) for one in fit.excess)
    if any(one.kind == "bytes of memory" for one in fit.excess):
        return f"{text}; no sizes of the core help, a smaller model or context does"
    sizes = {name: values for name, values in device.space.items() if c.memory or name not in MemoryConfig.model_fields}
    base = c.model_copy(update={"memory": c.memory.at_most(device.peak, c.clock_hz)}) if c.memory and device.peak else c
    space = Space(sizes, base, s, device.peak)
    found = nearest_fit(space, device, count)
    if found is None:
        return f"{text}; nothing near it fits, lutra explore {s.name} --device {device.name} searches further"
    point, other = found
    changes, near = space.changes(point), space.config(point)
    for name in ("rate_numerator", "rate_denominator"):  # they follow from the ports
        if near and getattr(near.memory, name, None) != getattr(c.memory, name, None):
            changes[name] = getattr(near.memory, name)
    changed = ", ".join(f"{name} {str(value).lower()}" for name, value in changes.items())
    return f"{text}; nearest that fits: {changed} ({other.kind} {100 * other.share:.0f} %)"


def check_fit(spec: CoreSpec) -> tuple[Fit, str | None] | None:
    """(what the core takes of the device that its configuration names, one line where that is too much); None where it names none."""
    if spec.config.device is None:
        return None
    device = load_device(spec.config.device)
    count = counter(device)
    fit = fit_of(spec, device, count)
    return fit, refusal(spec, device, fit, count) if fit.excess else None


def figures_of(fit: Fit) -> ResourceFigures:
    """For a report."""
    used = {kind: round(fit.used[kind]) for kind in ("lut", "lutram", "ff", "uram", "dsp") if kind in fit.used}
    return ResourceFigures(
        device=fit.device.name,
        fits=not fit.excess,
        exceeds=[str(one) for one in fit.excess] or None,
        share=fit.share,
        largest=fit.kind,
        lut=used.get("lut"),
        lutram=used.get("lutram"),
        ff=used.get("ff"),
        bram=fit.used.get("bram36"),
        uram=used.get("uram"),
        dsp=used.get("dsp"),
        source="model fitted to synthesis of the blocks by yosys (docs/kv260.md)",
    )
