"""A report of a few kinds of block, as Markdown and as one self-contained HTML file."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import NamedTuple

TEMPLATE = Path(__file__).with_name("document.html")


class Heading(NamedTuple):
    text: str


class Text(NamedTuple):
    text: str


class Warn(NamedTuple):
    """What a reader must not miss."""

    text: str


class Grid(NamedTuple):
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Picture(NamedTuple):
    png: Path
    caption: str


Block = Heading | Text | Warn | Grid | Picture


def to_markdown(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """The report to lie in `folder`, its pictures linked from there."""
    parts = [f"# {title}"]
    for block in blocks:
        match block:
            case Heading(text):
                parts.append(f"## {text}")
            case Text(text):
                parts.append(text)
            case Warn(text):
                parts.append(f"> **{text}**")
            case Grid(name, columns, rows):
                rule = "|".join("---" for _ in columns)
                lines = [" | ".join(row) for row in (columns, *rows)]
                lines = [f"| {line} |" for line in lines]
                parts.append(f"**{name}**")
                parts.append("\n".join([lines[0], f"|{rule}|", *lines[1:]]))
            case Picture(png, caption):
                parts.append(f"![{caption}]({png.relative_to(folder).as_posix()})")
                parts.append(caption)
    return "\n\n".join(parts) + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The report with everything in it: style, and pictures as base64."""
    body = "\n".join(_element(block) for block in blocks)
    return Template(TEMPLATE.read_text()).substitute(
        title=html.escape(title), body=body
    )


def _element(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Text(text):
            return f"<p>{html.escape(text)}</p>"
        case Warn(text):
            return f'<p class="warning">{html.escape(text)}</p>'
        case Grid(name, columns, rows):
            head = _row(columns, "th")
            body = "\n".join(_row(row, "td") for row in rows)
            return (
                f'<div class="table"><table>\n<caption>{html.escape(name)}</caption>\n'
                f"<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table></div>"
            )
        case Picture(png, caption):
            data = base64.b64encode(png.read_bytes()).decode()
            text = html.escape(caption)
            return (
                f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
                f"<figcaption>{text}</figcaption></figure>"
            )


def _row(cells: Sequence[str], kind: str) -> str:
    return (
        "<tr>" + "".join(f"<{kind}>{html.escape(c)}</{kind}>" for c in cells) + "</tr>"
    )
