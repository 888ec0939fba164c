"""What a person sees of a run: a live bar on a terminal, else a line an epoch."""

from collections.abc import Collection, Iterable
from typing import Literal

from rich import progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

WHOLE = 10_000  # columns: more than a table has, as in a file nothing need be cut


class Display:
    """Progress of a run from step `start` to step `last`; silent unless `shown`."""

    def __init__(self, start: int, last: int, title: str, shown: bool):
        self._console = Console(highlight=False, soft_wrap=True, quiet=not shown)
        figures = "steps  {task.fields[rate]:,.0f}/s  loss {task.fields[loss]}  ETA"
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn(figures),
            progress.TimeRemainingColumn(),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._bar.add_task(
            title, total=last, completed=start, rate=0.0, loss="-"
        )
        self._bar.start()

    def advance(self, step: int, loss: float, rate: float) -> None:
        """Move the bar; loss is the newest, rate in steps per second."""
        self._bar.update(self._task, completed=step, loss=digits(loss), rate=rate)

    def epoch(self, text: str) -> None:
        """A line for an epoch, where there is no bar to look at."""
        if self._bar.disable:
            self.say(text)

    def say(self, text: str) -> None:
        """A line, above the bar if there is one."""
        self._console.print(text, markup=False)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


def words(name: str) -> str:
    """A figure's name for people."""
    return name.replace("_", " ")


def digits(figure: float) -> str:
    """A figure for people: four digits, of whatever size it is."""
    return f"{figure:#.4g}"


def print_table(
    rows: Iterable[Iterable[object]],
    header: Collection[str] = (),
    title: str = "",
    justify: Literal["left", "right"] = "left",
) -> None:
    """Rows of values; `justify` is for all columns but the first."""
    table = Table(title=Text(title) if title else None, show_header=bool(header))
    table.title_justify = "left"
    for i, name in enumerate(header):
        table.add_column(Text(name), justify=justify if i else "left")
    for row in rows:
        table.add_row(*(Text(_text(value)) for value in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WHOLE
    console.print(table)


def _text(value: object) -> str:
    """A value in a table: numbers with commas, or in four digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)
