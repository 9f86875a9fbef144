"""A search_spaces/*.yaml file, validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from ddray.data import Dataset
from ddray.distillation.config import DistillConfig, EngineConfig, Record, nest, parse, parse_assignment
from ddray.distillation.distiller import check_problem
from ddray.errors import RequestError
from ddray.sweep.constraint import QUANTITIES, Constraint, Problem, parse_constraint
from ddray.sweep.space import Parameter, parse_search

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"


class AshaConfig(Record):
    """Asynchronous successive halving on outer steps."""

    grace_steps: Annotated[int, Field(ge=1)]
    reduction_factor: Annotated[int, Field(ge=2, le=100)] = 3


class SchedulerConfig(Record):
    """Which trials are stopped early."""

    asha: AshaConfig


class Resources(Record):
    """What one trial occupies; `gpu` is the share of a card where there is one."""

    cpu: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    gpu: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class SpaceFile(Record):
    """The file as it is written."""

    dataset: str
    arch: str
    fixed: dict[str, Any] = {}
    search: dict[str, Any] = {}
    constraints: tuple[str, ...] = ()
    objectives: dict[Literal["val_accuracy"], Literal["max"]] = {"val_accuracy": "max"}
    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 32
    scheduler: SchedulerConfig | None = None
    resources: Resources = Resources()
    engine: EngineConfig = EngineConfig()


@dataclass(frozen=True)
class SweepSpec:
    """A search space that has been read and checked; `check` holds it against its dataset."""

    name: str
    file: SpaceFile
    parameters: tuple[Parameter, ...]
    constraints: tuple[Constraint, ...]

    @property
    def fixed(self) -> Mapping[str, Any]:
        """The settings that every trial shares, under dotted keys."""
        return self.file.fixed

    def identity(self) -> dict[str, Any]:
        """What may not change when a sweep is resumed: all but its size and where it runs."""
        return self.file.model_dump(mode="json", exclude={"trials", "resources"})

    def config(self, values: Mapping[str, Any]) -> DistillConfig:
        """The configuration of a trial with these values."""
        return DistillConfig.from_flat(values)

    def check(self, dataset: Dataset) -> None:
        """Hold every end and every choice of the space against the dataset and the network.

        Raises:
            RequestError: the first key whose value they cannot take, or a constraint that nothing satisfies.

        """
        check_problem(dataset, self.file.arch, self.config(self.fixed))
        for parameter in self.parameters:
            for value in parameter.extremes():
                settings = {**self.fixed, **parameter.when, parameter.key: value}
                try:
                    check_problem(dataset, self.file.arch, self.config(settings))
                except RequestError as error:
                    raise RequestError(f"search.{parameter.key}", value, str(error)) from None
        problem = Problem(dataset.classes, dataset.input_shape)
        smallest = self.config(self._smallest(dataset.classes))
        for constraint in self.constraints:
            if constraint.violation(smallest, problem) > 0:
                least = QUANTITIES[constraint.quantity](smallest, problem)
                given = f"{constraint.quantity} <= {constraint.bound:g}"
                raise RequestError("constraints", given, f"nothing in the space satisfies it: the least is {least}")

    def _smallest(self, classes: int) -> dict[str, Any]:
        """The values that make every quantity as small as the space allows: each grows with each of these keys."""
        values = dict(self.fixed)
        for parameter in self.parameters:
            if parameter.key in ("synthetic.steps", "synthetic.epochs", "synthetic.samples_per_class"):
                values[parameter.key] = min(parameter.extremes())
            if parameter.key == "synthetic.classes":
                sized = {i: len(DistillConfig.from_flat({parameter.key: c}).class_ids(classes))
                         for i, c in enumerate(parameter.extremes())}  # fmt: skip
                values[parameter.key] = parameter.extremes()[min(sized, key=lambda i: sized[i])]
        return values


def read(space: str, assignments: Sequence[str] = ()) -> SweepSpec:
    """Read a space by path or by its stem in search_spaces/, and apply `KEY=VALUE` assignments to it.

    An assigned key is fixed to its value and no longer searched.

    Raises:
        RequestError: no such file, YAML that does not parse (line and column), or a setting that is not allowed.

    """
    path = find(space)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise RequestError("space", str(path), f"it is not YAML: {where}{error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RequestError("space", str(path), f"it cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise RequestError("space", str(path), "a mapping with dataset, arch, fixed, search, …")
    return build(path.stem, content, assignments)


def build(name: str, content: Mapping[str, Any], assignments: Sequence[str] = ()) -> SweepSpec:
    """Validate the content of a space file."""
    file = parse(SpaceFile, content)
    fixed, search = dict(file.fixed), dict(file.search)
    for key, value in map(parse_assignment, assignments):
        fixed[key] = value
        search.pop(key, None)
    for key in fixed.keys() & search.keys():
        raise RequestError(f"search.{key}", search[key], "it is fixed as well; name it once")
    nest(search, DistillConfig)  # every key is one that a configuration has
    if file.scheduler is not None:
        fixed.setdefault("outer.score_every", file.scheduler.asha.grace_steps)
    settings = DistillConfig.from_flat(fixed)
    if file.scheduler is not None and file.scheduler.asha.grace_steps % settings.outer.score_every:
        grace = file.scheduler.asha.grace_steps
        raise RequestError(
            "scheduler.asha.grace_steps", grace, f"a multiple of outer.score_every ({settings.outer.score_every})"
        )
    parameters = parse_search(search, fixed)
    for parameter in parameters:
        for value in parameter.extremes():
            try:
                DistillConfig.from_flat({**fixed, **parameter.when, parameter.key: value})
            except RequestError as error:
                raise RequestError(f"search.{parameter.key}", value, error.allowed) from None
    constraints = tuple(parse_constraint(text) for text in file.constraints)
    file = file.model_copy(update={"fixed": fixed, "search": search})
    return SweepSpec(name, file, parameters, constraints)


def find(space: str) -> Path:
    """The file of a space: a path, or the stem of a file in search_spaces/."""
    path = Path(space)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise RequestError("space", space, "there is no such file")
    shipped = SPACES / f"{space}.yaml"
    if shipped.is_file():
        return shipped
    known = ", ".join(sorted(p.stem for p in SPACES.glob("*.yaml")))
    raise RequestError("space", space, f"a YAML file, or one of {known}")
