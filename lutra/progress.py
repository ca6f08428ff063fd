# SPDX-License-Identifier: Apache-2.0
"""Progress on a terminal's standard error; silent anywhere else, so that pipes, logs and ``--json`` stay clean."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Update", "note", "quiet", "step"]

Update = Callable[[int, int], None]
"""Called with (done, total); a total of 0 means that it is not known."""

_quiet = False


def quiet(silent: bool = True) -> None:
    """Turns all progress off (or on again)."""
    global _quiet
    _quiet = silent


def note(text: str) -> None:
    """One line on standard error for what is no mistake and should be known, terminal or not."""
    if not _quiet:
        print(text, file=sys.stderr)


@contextmanager
def step(title: str, *, megabytes: bool = False) -> Iterator[Update]:
    """A line with the title, a bar and the time; the body calls what it is given as often as it likes, with bytes if ``megabytes`` are to be shown."""
    if _quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=32), TextColumn("{task.fields[count]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None, count="")

        def update(done: int, total: int) -> None:
            shown = [f"{value / 1e6:,.1f} MB" if megabytes else f"{value:,}" for value in ((done, total) if total else (done,))]
            bar.update(task, completed=done, total=total or None, count=" / ".join(shown))

        yield update
