"""What a person sees of a run: a live bar on a terminal, else a line an epoch."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table


class Display:
    """Progress of a run from step `start` to step `last`; silent unless `shown`."""

    def __init__(self, start: int, last: int, title: str, shown: bool = True):
        self._console = Console(highlight=False, soft_wrap=True, quiet=not shown)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps  {task.fields[rate]:,.0f}/s  loss {task.fields[loss]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self.live,
        )
        self._task = self._bar.add_task(
            title, total=last, completed=start, rate=0.0, loss="-"
        )
        self._bar.start()

    @property
    def live(self) -> bool:
        """Whether there is a bar to look at."""
        return self._console.is_terminal and not self._console.quiet

    def advance(self, step: int, loss: float, rate: float) -> None:
        """Move the bar; loss is the newest, rate in steps per second."""
        self._bar.update(self._task, completed=step, loss=f"{loss:.4f}", rate=rate)

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


def print_rows(rows: Sequence[Mapping[str, object]]) -> None:
    """Rows of the same columns."""
    table = Table(*(rows[0] if rows else ()))
    for row in rows:
        table.add_row(
            *(f"{v:,}" if isinstance(v, int) else str(v) for v in row.values())
        )
    Console(highlight=False, soft_wrap=True).print(table if rows else "none")


def print_table(rows: Mapping[str, object]) -> None:
    """Names and values, one pair a row."""
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console(highlight=False, soft_wrap=True).print(table)
