"""From a command to its exit status: what goes wrong is said in one line, never by a traceback."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from ddray.errors import Diverged, RecordError, RequestError

_INTERRUPTED = 130
# Typer brings its own copy of click, or uses click itself, by its version: the class behind its public ones is right in both.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]


class Interrupted(Exception):
    """Ctrl-C, and how to go on: a KeyboardInterrupt would lose its words in Typer."""


def exit_status(command: Callable[[], Any]) -> int:
    """Run a command: 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted."""
    try:
        returned = command()
        sys.stdout.flush()
    except RequestError as error:
        return complain(error, 2)
    except _UsageError as error:
        return complain(error.format_message(), 2)
    except typer.Exit as error:
        return error.exit_code
    except (Diverged, RecordError) as error:
        return complain(error, 1)
    except Interrupted as error:
        return complain(f"interrupted; {error}", _INTERRUPTED)
    except (KeyboardInterrupt, typer.Abort):
        returned = _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if returned == _INTERRUPTED:  # Typer catches Ctrl-C, and says nothing
        return complain("interrupted", _INTERRUPTED)
    return returned if isinstance(returned, int) else 0


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Inside, a warning is told when it comes, as ddray tells everything else; a divergence each time."""

    def tell(message: Warning | str, *_: Any, **__: Any) -> None:
        complain(message, 0)

    with warnings.catch_warnings(action="always", category=RuntimeWarning):
        warnings.showwarning = tell
        yield


def complain(message: object, code: int) -> int:
    """Say what is wrong on standard error, in one line; returns the exit status."""
    print("ddray:", " ".join(str(message).split()), file=sys.stderr)
    return code
