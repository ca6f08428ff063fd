# SPDX-License-Identifier: Apache-2.0
"""The search: cheap refusals and bounds first, exact cycles for what may still be on the Pareto front of (goal, largest share of the device).

Rounds are of a fixed size and every choice is made from sorted results, so that seed and budget alone decide the outcome, not the number of workers.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lutra.exploration.evaluate import Figures, Task, keep, kept
from lutra.exploration.fit import Count, Fit, fit_of, memory_bytes
from lutra.exploration.goals import GOALS, Goal, bound_of
from lutra.exploration.space import Point, Space
from lutra.exploration.workers import Run
from lutra.fpga_flows.devices import Device
from lutra.hls_models.errors import ConfigError, LutraError
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.resources import stated_error
from lutra.inputs import spec_of
from lutra.progress import Update

__all__ = ["GRID", "ROUND", "Exploration", "Found", "explore", "front_of"]

GRID, SAMPLE, ROUND = 20_000, 8_000, 16
"""Points up to which the whole grid is taken, points that are drawn of a larger one, evaluations per round."""


@dataclass(frozen=True)
class Candidate:
    """A core that fits: its bound of the goal and its share of the device; ``fit`` tells the rest."""

    point: Point
    config: CoreConfig
    bound: float
    fit: Fit

    @property
    def pair(self) -> tuple[float, float]:
        return self.bound, self.fit.share


@dataclass(frozen=True)
class Found:
    """An evaluated core: ``value`` of the goal, exact."""

    candidate: Candidate
    figures: Figures
    value: float

    @property
    def pair(self) -> tuple[float, float]:
        return self.value, self.candidate.fit.share

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second that the core may ask of a shared memory."""
        c = self.candidate.config
        return c.memory.bandwidth(c.clock_hz) if c.memory else None


@dataclass(frozen=True)
class Exploration:
    """What a search found. ``front`` is sorted by the goal, best first; ``complete``: nothing of the grid can be better than it.

    ``bounded``: candidates that an evaluated core beats whatever their exact figures; ``reused``: evaluations that an earlier search had made.
    """

    space: Space
    device: Device
    goal: Goal
    prompt: int
    context: int
    seed: int
    budget: int
    front: Sequence[Found]
    evaluated: Sequence[Found]
    refused: int
    impossible: int
    misfits: int
    bounded: int
    reused: int
    complete: bool

    def row(self, found: Found) -> dict[str, Any]:
        """A core's figures under plain names."""
        clock, figures = self.space.base.clock_hz, found.figures
        return {
            "sizes": dict(zip(self.space.names, found.candidate.point, strict=True)),
            "config": found.candidate.config.model_dump(mode="json"),
            "decode_tokens_per_second": clock / figures["decode_cycles"],
            "decode_cycles": figures["decode_cycles"],
            "ttft_seconds": figures["ttft_cycles"] / clock,
            "ttft_cycles": figures["ttft_cycles"],
            "bytes_per_token": figures["bytes_per_token"],
            **({"bandwidth_bytes_per_second": found.bandwidth} if found.bandwidth else {}),
            "fraction_of_ceiling": figures["ceiling"],
            "resources": {kind: round(value, 1) for kind, value in found.candidate.fit.used.items()},
            "share": found.candidate.fit.share,
            "largest": found.candidate.fit.kind,
        }

    def facts(self) -> dict[str, Any]:
        """Plain JSON values: equal inputs give equal bytes."""
        return {
            "schema": "lutra-explore/1",
            "model": self.space.shape.name,
            "device": self.device.name,
            "goal": self.goal,
            "minimises": GOALS[self.goal],
            "resource_model": stated_error(),
            "prompt": self.prompt,
            "context": self.context,
            "clock_hz": self.space.base.clock_hz,
            "seed": self.seed,
            "budget": self.budget,
            "limit": self.device.limit,
            "points": self.space.count,
            "evaluated": len(self.evaluated),
            "refused": self.refused,
            "impossible": self.impossible,
            "misfits": self.misfits,
            "bounded": self.bounded,
            "complete": self.complete,
            "front": [self.row(found) for found in self.front],
            "others": [
                {"value": found.value, "share": found.candidate.fit.share, "sizes": list(found.candidate.point)}
                for found in self.evaluated
                if found not in self.front
            ],
        }


def front_of(pairs: Iterable[tuple[tuple[float, float], Any]]) -> list[Any]:
    """What is behind the pairs that no other pair equals or beats in both, by the first; of equal pairs the first given."""
    out: list[Any] = []
    least = float("inf")
    for (_, second), item in sorted(pairs, key=lambda entry: entry[0]):
        if second < least:
            out.append(item)
            least = second
    return out


def _value(goal: Goal, figures: Figures, clock: float) -> float:
    return float(figures["bytes_per_token"]) if goal == "bytes" else figures[f"{goal}_cycles"] / clock


class _Search:
    """State between rounds."""

    def __init__(self, space: Space, device: Device, goal: Goal, prompt: int, context: int, count: Count) -> None:
        self.space, self.device, self.goal, self.prompt, self.context, self.count = space, device, goal, prompt, context, count
        self.seen: set[Point] = set()
        self.open: list[Candidate] = []
        self.found: list[Found] = []
        self.refused = self.impossible = self.misfits = self.bounded = self.reused = 0
        self.closest: tuple[float, CoreConfig, Fit] | None = None

    def add(self, points: Iterable[Point]) -> None:
        """Candidates of the points that are possible and fit."""
        for point in points:
            if point in self.seen:
                continue
            self.seen.add(point)
            spec = self.space.spec(point)
            if spec is None:
                self.impossible += 1
                continue
            fit = fit_of(spec, self.device, self.count)
            if fit.excess:
                self.misfits += 1
                if self.closest is None or fit.share < self.closest[0]:
                    self.closest = fit.share, spec.config, fit
                continue
            cycles = bound_of(spec, self.prompt, self.context)
            bound = cycles.bytes if self.goal == "bytes" else getattr(cycles, self.goal) / spec.config.clock_hz
            self.open.append(Candidate(point, spec.config, bound, fit))

    @property
    def front(self) -> list[Found]:
        return front_of((found.pair, found) for found in self.found)

    def prune(self) -> None:
        """Drops candidates that cannot come onto the front."""
        front, left = [found.pair for found in self.front], []
        for candidate in self.open:
            bound, share = candidate.pair
            if not any(value <= bound and taken <= share for value, taken in front):
                left.append(candidate)
        self.bounded += len(self.open) - len(left)
        self.open = left

    def choose(self, most: int) -> list[Candidate]:
        """At most ``most`` candidates of the front that the bounds allow, evenly over it."""
        hopeful = front_of((candidate.pair, candidate) for candidate in sorted(self.open, key=lambda one: one.point))
        if len(hopeful) > most:
            hopeful = [hopeful[place * (len(hopeful) - 1) // max(1, most - 1)] for place in range(most)]
        return hopeful

    def evaluate(self, chosen: Sequence[Candidate], run: Run, done: Callable[[], None]) -> None:
        """Exact figures of the chosen, kept as they come."""
        tasks = [Task(one.config, self.space.shape, self.prompt, self.context) for one in chosen]
        results: dict[int, Figures] = {}
        for place, task in enumerate(tasks):
            figures = kept(task)
            if figures is not None:
                results[place] = figures
                self.reused += 1
                done()
        missing = [place for place in range(len(tasks)) if place not in results]
        for number, figures in run([tasks[place] for place in missing]):
            keep(tasks[missing[number]], figures)
            results[missing[number]] = figures
            done()
        points = {one.point for one in chosen}
        self.open = [one for one in self.open if one.point not in points]
        for place, candidate in enumerate(chosen):
            if "refused" in results[place]:
                self.refused += 1
            else:
                self.found.append(Found(candidate, results[place], _value(self.goal, results[place], candidate.config.clock_hz)))


def explore(
    shape: ModelShape,
    device: Device,
    base: CoreConfig,
    *,
    goal: Goal,
    prompt: int,
    context: int,
    budget: int,
    seed: int,
    run: Run,
    count: Count,
    update: Update = lambda done, total: None,
) -> Exploration:
    """The Pareto front of a shape on a device.

    Parameters
    ----------
    base : configuration that the search starts from; what the device's space does not name stays as it is
    goal : what is minimised beside the largest share of the device (``GOALS``)
    prompt, context : tokens of the prompt, and rows that the decoded token attends
    budget : evaluations by the exact cycle model, at most
    run : where they run (``workers``)
    count : resources of a core

    Raises
    ------
    LutraError : the model does not fit the device's memory, or nothing of the space fits; ConfigError : a space with unknown sizes
    """
    needed = memory_bytes(shape)
    if device.memory and needed > device.memory.bytes:
        excess = device.excess({}, needed)[0]
        raise LutraError(f"{shape.name} does not fit {device.name}: {excess}; no sizes of the core help, a smaller model or context does")
    space = Space(device.space, base, shape, device.peak)
    search, generator = _Search(space, device, goal, prompt, context, count), random.Random(seed)
    whole = space.count <= GRID
    search.add([space.start])
    search.add(space.points() if whole else space.sample(SAMPLE, generator))
    if not search.open:
        raise _nothing(search, base, shape)
    spent = 0

    def done() -> None:
        nonlocal spent
        spent += 1
        update(spent, budget)

    own = [one for one in search.open if one.point == space.start]  # what the search starts from is always counted, for comparison
    if own:
        search.evaluate(own, run, done)
    while spent < budget:
        search.prune()
        chosen = search.choose(min(ROUND, budget - spent))
        if not chosen:
            break
        search.evaluate(chosen, run, done)
        points = {one.point for one in chosen}
        if not whole:
            for found in search.front:
                if found.candidate.point in points:
                    search.add(space.neighbours(found.candidate.point))
    search.prune()
    if not search.found:
        raise LutraError(f"{shape.name} on {device.name}: the mapping refused all {search.refused} cores that were tried; a larger --budget tries more")
    return Exploration(
        space,
        device,
        goal,
        prompt,
        context,
        seed,
        budget,
        search.front,
        search.found,
        search.refused,
        search.impossible,
        search.misfits,
        search.bounded,
        search.reused,
        whole and not search.open,
    )


def _nothing(search: _Search, base: CoreConfig, shape: ModelShape) -> LutraError:
    """Why no core of the space is a candidate."""
    device = search.device
    if search.closest is None:
        none = f"{shape.name} on {device.name}: none of {search.impossible:,} cores of its space is possible"
        try:
            spec_of(base, shape)
        except ConfigError as error:
            return ConfigError(f"{none}; {error}")
        return ConfigError(none)
    _, config, fit = search.closest
    sizes = f"tables {config.tables}, columns {config.columns}, lanes {config.lanes}"
    return LutraError(
        f"{shape.name} does not fit {device.name}: of {search.misfits:,} cores the nearest ({sizes}) exceeds {'; '.join(str(one) for one in fit.excess)}"
    )
