"""How tables, lines and documents are put on standard output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_PIPED = 200


def console() -> Console:
    """Standard output; where it is no terminal there is no width to keep to, and rows stay whole."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPED
    return Console(width=width, markup=False, highlight=False)


def make_table(*columns: str, folded: Sequence[str] = ()) -> Table:
    """A table whose `columns` are never broken over lines; only the `folded` ones, which come last, give way."""
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in columns:
        table.add_column(heading, no_wrap=True, overflow="ignore")
    for heading in folded:
        table.add_column(heading, overflow="fold")
    return table


def show_table(out: Console, title: str, table: Table) -> None:
    """A table under its title."""
    print_lines(out, [title])
    out.print(table)


def print_lines(out: Console, lines: Sequence[str]) -> None:
    """Lines as they are, however long."""
    for line in lines:
        out.print(line, soft_wrap=True)


def print_document(content: Any) -> None:
    """One JSON document."""
    print(json.dumps(content, indent=1, allow_nan=False))
