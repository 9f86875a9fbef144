"""What ddray says when it cannot go on, and whose fault it was."""

from __future__ import annotations

from operator import index


class RequestError(ValueError):
    """The request was wrong: one line that names the key, the value given and what is allowed (exit status 2)."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(" ".join(f"{key}: {value!r} is refused: {allowed}".split("\n")))


def whole_number(key: str, number: object, least: int | None = None) -> int:
    """A whole number of any type (NumPy's, too), at least `least`.

    Raises:
        RequestError: it is not; `key` names it.

    """
    try:
        found = index(number)  # type: ignore[arg-type]
    except TypeError:
        found = None
    if found is None or isinstance(number, bool) or (least is not None and found < least):
        raise RequestError(key, number, "a whole number" + ("" if least is None else f", at least {least}"))
    return found


class MissingExtra(RequestError):
    """A part of ddray was asked for whose optional packages are not installed."""

    def __init__(self, package: str, needed_for: str) -> None:
        super().__init__(package, "not installed", f"{needed_for} needs it: pip install 'ddray[search]'")


class Diverged(ArithmeticError):
    """A loss, gradient or weight stopped being finite at `outer_step` (and, inside the unroll, at `inner_step`)."""

    def __init__(self, what: str, outer_step: int, inner_step: int | None = None) -> None:
        self.what, self.outer_step, self.inner_step = what, outer_step, inner_step
        where = f"outer step {outer_step}" + (f", inner step {inner_step}" if inner_step is not None else "")
        super().__init__(f"{what} is not finite at {where}")

    def __reduce__(self) -> tuple[type[Diverged], tuple[str, int, int | None]]:
        return type(self), (self.what, self.outer_step, self.inner_step)


class RecordError(RuntimeError):
    """A sweep ran, but its record could not be written; the sweep itself is safe in its study (exit status 1)."""

    def __init__(self, cause: str, directory: str) -> None:
        name = directory.rstrip("/").rpartition("/")[2]
        super().__init__(
            f"the record could not be written: {cause}; the trials are safe in {directory}, and "
            f"--resume --name {name} goes on from here"
        )
