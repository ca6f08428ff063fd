# SPDX-License-Identifier: Apache-2.0
"""Errors a user can meet; the command line prints each as one line and exits with 2 (a mismatch: 1)."""

__all__ = ["ConfigError", "LutraError", "MismatchError", "ModelError", "ToolError"]


class LutraError(Exception):
    """Base of every error that is the user's, the model's or a tool's fault: one line, no traceback."""


class ConfigError(LutraError):
    """A configuration that is misspelt, impossible or contradicts itself."""


class ModelError(LutraError):
    """A checkpoint, tokenizer or prompt that cannot be used."""


class ToolError(LutraError):
    """An external tool that is missing or failed."""


class MismatchError(LutraError):
    """Simulated hardware that differs from its golden values or predicted cycles; ``cycle``: the earliest one at which it was seen; ``beat``: its index."""

    def __init__(self, message: str, cycle: int | None = None, beat: int = 0) -> None:
        super().__init__(message)
        self.cycle, self.beat = cycle, beat
