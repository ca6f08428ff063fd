# SPDX-License-Identifier: Apache-2.0
"""A compiled model: instructions, memory image and map. The golden executor, the cycle model and the RTL read nothing else of the model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lutra.hls_models.errors import ModelError
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.isa import INSTRUCTION_BITS, Destination, Instruction, LoadMode, LoadTarget, Operation, Semaphore, Source, Unit, When, decode

__all__ = ["Program", "Region"]

WORD_BYTES = INSTRUCTION_BITS // 8
ENUMERATED: dict[str, Any] = {"target": LoadTarget, "mode": LoadMode, "source": Source, "operation": Operation, "destination": Destination}


@dataclass(frozen=True)
class Region:
    """A named range of the memory: ``beats`` beats from beat ``address``; ``useful_bits`` of them carry model data."""

    name: str
    address: int
    beats: int
    useful_bits: int

    @property
    def end(self) -> int:
        return self.address + self.beats


@dataclass(frozen=True, eq=False)
class Program:
    """Instructions of a pass and the memory that they address.

    Parameters
    ----------
    shape
        The model's shape (head counts, context and eps are the hardware's parameters too).
    beat_bytes
        Bytes of a memory beat; every address and length is in beats.
    instructions
        In program order, END last; the sequencer hands each to its unit's queue.
    labels
        One name per instruction, for listings, timelines and messages ("layers.0.qkv.weights").
    regions
        The address map, ascending, without overlap, from beat 0 ("program", the encoded instructions) to the end of the image. In a shared memory blocks
        begin at bursts, so that there may be beats between them; keys and values ("cache") begin as zeros.
    image
        uint8, whole beats; None where only the shape is known (enough for cycles).
    """

    shape: ModelShape
    beat_bytes: int
    instructions: tuple[Instruction, ...]
    labels: tuple[str, ...]
    regions: tuple[Region, ...]
    image: np.ndarray | None

    @property
    def beats(self) -> int:
        """Beats of the whole image."""
        return self.regions[-1].end

    @property
    def word_beats(self) -> int:
        """Beats of one encoded instruction."""
        return -(-WORD_BYTES // self.beat_bytes)

    def region(self, name: str) -> Region:
        """The region called ``name``; KeyError where there is none."""
        for region in self.regions:
            if region.name == name:
                return region
        raise KeyError(f"the memory map has no region {name!r}")

    def read(self, address: int, beats: int) -> np.ndarray:
        """Bytes of ``beats`` beats from beat ``address``: uint8, a view of the image."""
        if self.image is None:
            raise ModelError(f"{self.shape.name}: only the shape is known, so there is no memory image; give a folder with weights")
        return self.image[address * self.beat_bytes : (address + beats) * self.beat_bytes]

    def decoded(self) -> tuple[Instruction, ...]:
        """The instructions as the hardware reads them: decoded from the image up to END."""
        found: list[Instruction] = []
        while not found or found[-1].unit is not Unit.END:
            data = self.read(len(found) * self.word_beats, self.word_beats)
            found.append(decode(int.from_bytes(data[:WORD_BYTES].tobytes(), "little")))
        return tuple(found)

    def listing(self) -> str:
        """One line per instruction: number, pass condition, unit, label, fields, waits and signals."""
        lines = [f"# {self.shape.name}: {len(self.instructions)} instructions of {WORD_BYTES} bytes, {self.beats} beats of {self.beat_bytes} bytes"]
        for number, (instruction, label) in enumerate(zip(self.instructions, self.labels, strict=True)):
            fields = " ".join(f"{k}={ENUMERATED[k](v).name if k in ENUMERATED else v}" for k, v in instruction.fields.items())
            when = "" if instruction.when is When.ALWAYS else instruction.when.name
            events = "".join(
                f" {verb} {flag.name}" for verb, mask in (("waits", instruction.wait), ("signals", instruction.signal)) for flag in Semaphore if flag & mask
            )
            lines.append(f"{number:4d} {when:8s} {instruction.unit.name:6s} {label:28s} {fields}{events}".rstrip())
        return "\n".join(lines) + "\n"

    def memory_map(self) -> str:
        """One line per region: first beat, beats, bytes, share that is not padding, name."""
        lines = [f"{'beat':>10} {'beats':>9} {'bytes':>11} {'useful':>7}  region"]
        for r in self.regions:
            size = r.beats * self.beat_bytes
            lines.append(f"{r.address:10d} {r.beats:9d} {size:11d} {r.useful_bits / (8 * size):7.1%}  {r.name}")
        return "\n".join(lines) + "\n"

    def save(self, folder: Path) -> None:
        """Write ``program.json`` and, with an image, ``memory.bin``, ``program.txt`` and ``memory.txt`` beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        words = [{**_numbers(i), "label": label} for i, label in zip(self.instructions, self.labels, strict=True)]
        facts = {"shape": self.shape.model_dump(), "beat_bytes": self.beat_bytes, "regions": [asdict(r) for r in self.regions], "instructions": words}
        (folder / "program.json").write_text(json.dumps(facts, indent=1) + "\n")
        (folder / "program.txt").write_text(self.listing())
        (folder / "memory.txt").write_text(self.memory_map())
        if self.image is not None:
            self.image.tofile(folder / "memory.bin")

    @classmethod
    def load(cls, folder: Path) -> Program:
        """Inverse of ``save``; the image is mapped, not read."""
        image = folder / "memory.bin"
        try:
            facts = json.loads((folder / "program.json").read_text())
            words = facts["instructions"]
            return cls(
                shape=ModelShape.model_validate(facts["shape"]),
                beat_bytes=facts["beat_bytes"],
                instructions=tuple(Instruction(Unit(w["unit"]), w["fields"], When(w["when"]), Semaphore(w["wait"]), Semaphore(w["signal"])) for w in words),
                labels=tuple(w["label"] for w in words),
                regions=tuple(Region(**r) for r in facts["regions"]),
                image=np.memmap(image, np.uint8, "r") if image.exists() else None,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            raise ModelError(f"{folder}: no usable program.json ({reason}); make one with `lutra compile`") from None


def _numbers(instruction: Instruction) -> dict[str, Any]:
    """Plain numbers of an instruction, for JSON."""
    i = instruction
    return {"unit": int(i.unit), "when": int(i.when), "wait": int(i.wait), "signal": int(i.signal), "fields": {k: int(v) for k, v in i.fields.items()}}
