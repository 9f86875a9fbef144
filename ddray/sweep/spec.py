"""A search_spaces/*.yaml file, validated."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ddray.data import Corpus, RealData
from ddray.distillation.config import DataConfig, DistillConfig, EngineConfig, SyntheticConfig
from ddray.distillation.keys import nest, parse, split_engine
from ddray.distillation.problem import check_problem
from ddray.errors import RequestError
from ddray.sweep.constraint import QUANTITIES, Constraint, Problem, parse_constraint
from ddray.sweep.space import Parameter, parse_search
from ddray.sweep.space_file import SpaceFile
from ddray.sweep.space_yaml import parse_yaml

# Settings that decide what an inner step looks like, other than its numbers.
_SHAPING = ("data.", "inner.", "network.args", "synthetic.samples_per_class", "synthetic.classes")
SPACES = Path(__file__).resolve().parents[2] / "search_spaces"


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

    @property
    def steps_alike(self) -> bool:
        """Whether the inner steps of all trials have the same shapes and constants."""
        return not any(parameter.key.startswith(_SHAPING) for parameter in self.parameters)

    def identity(self) -> dict[str, Any]:
        """What may not change when a sweep is resumed: all but its size and where it runs."""
        return self.file.model_dump(mode="json", exclude={"trials", "resources"})

    def config(self, values: Mapping[str, Any]) -> DistillConfig:
        """The configuration of a trial with these values."""
        return DistillConfig.from_flat(values)

    def check(self, dataset: RealData) -> None:
        """Hold every end and every choice of the space against the dataset and the network.

        Raises:
            RequestError: the first key whose value they cannot take, or a constraint that nothing satisfies.

        """
        searched = {p.key: p.extremes()[0] for p in self.parameters if not p.when}  # in place of their defaults
        self._check(dataset, {**self.fixed, **searched})
        for parameter in self.parameters:
            for value in parameter.extremes():
                settings = {**self.fixed, **searched, **parameter.when, parameter.key: value}
                try:
                    self._check(dataset, settings)
                except RequestError as error:
                    if error.key.startswith("search."):
                        raise
                    raise RequestError(f"search.{parameter.key}", value, str(error)) from None
        self.vectors(dataset)
        problem = Problem.of(dataset)
        smallest = self.config(self._smallest(problem))
        self._check_unroll("outer.window", min(smallest.outer.unroll_steps or smallest.inner_steps, smallest.inner_steps))
        self._check_unroll("outer.unroll_steps", smallest.inner_steps)
        for constraint in self.constraints:
            if constraint.violation(smallest, problem) > 0:
                least = QUANTITIES[constraint.quantity](smallest, problem)
                given = f"{constraint.quantity} <= {constraint.bound:g}"
                raise RequestError("constraints", given, f"nothing in the space satisfies it: the least is {least}")

    def vectors(self, dataset: RealData) -> dict[str, str]:
        """The digests of the word vectors that trials will ask for, by what asks for them; of images, none.

        They are found here and now: they travel with the data, and their files may not.
        """
        found: dict[str, str] = {}
        if isinstance(dataset, Corpus):
            keys = ("data.vectors", "data.vocab_size", "data.embedding_dim")
            searched = {p.key: p.extremes() for p in self.parameters if p.key in keys}
            for values in product(*searched.values()):
                asked = dict(zip(searched, values, strict=True))
                found[json.dumps(asked)] = dataset.table(self.config({**self.fixed, **asked}).data.text).digest()
        return found

    def _check_unroll(self, key: str, shortest: int) -> None:
        searched = [value for p in self.parameters if p.key == key for value in p.extremes() if value is not None]
        widest = max(searched, default=self.fixed.get(key) or 0)
        if widest > shortest:
            where = f"search.{key}" if searched else key
            raise RequestError(where, widest, f"at most the {shortest} inner steps of the space's shortest unroll")

    def _check(self, dataset: RealData, settings: Mapping[str, Any]) -> None:
        try:
            check_problem(dataset, self.file.arch, self.config(settings))
        except RequestError as error:
            if error.key in self.file.search:
                raise RequestError(f"search.{error.key}", error.value, error.allowed) from None
            raise

    def _smallest(self, problem: Problem) -> dict[str, Any]:
        """The values that make every quantity as small as the space allows: each grows with each of these keys."""
        values = dict(self.fixed)
        for parameter in self.parameters:
            if parameter.key == "outer.unroll_steps":
                values[parameter.key] = min((v for v in parameter.extremes() if v is not None), default=None)
            if parameter.key in ("synthetic.steps", "synthetic.epochs", "synthetic.samples_per_class"):
                usual = [getattr(SyntheticConfig(), parameter.key.removeprefix("synthetic."))] if parameter.when else []
                values[parameter.key] = min([*parameter.extremes(), *usual])
            if parameter.key == "synthetic.classes":
                sized = {i: len(DistillConfig.from_flat({parameter.key: c}).class_ids(problem.classes))
                         for i, c in enumerate(parameter.extremes())}  # fmt: skip
                values[parameter.key] = parameter.extremes()[min(sized, key=lambda i: sized[i])]
        keys = ("max_length", "embedding_dim", "vectors")
        texts = {p.key: (*p.extremes(), *([getattr(DataConfig(), key)] if p.when else []))
                 for p in self.parameters for key in keys if p.key == f"data.{key}"}  # fmt: skip
        shown = [{**values, **dict(zip(texts, chosen, strict=True))} for chosen in product(*texts.values())]
        return min(shown, key=lambda settings: math.prod(problem.shape(self.config(settings))))


def read(space: str, assignments: Sequence[str] = ()) -> SweepSpec:
    """Read a space by path or by its stem in search_spaces/, and apply `KEY=VALUE` assignments to it.

    An assigned key is fixed to its value and no longer searched.

    Raises:
        RequestError: no such file, YAML that does not parse (line and column), or a setting that is not allowed.

    """
    path = find(space)
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise RequestError("space", str(path), f"it cannot be read: {error}") from None
    return build(path.stem, parse_yaml(text, str(path)), assignments)


def build(name: str, content: Mapping[str, Any], assignments: Sequence[str] = ()) -> SweepSpec:
    """Validate the content of a space file."""
    file = parse(SpaceFile, content)
    assigned, engine = split_engine(assignments)
    engine_config = parse(EngineConfig, file.engine.model_dump() | engine, "engine.")
    fixed = file.fixed | assigned
    search = _still_searched(file.search, assigned)
    for key in file.fixed.keys() & search.keys():
        raise RequestError(f"search.{key}", search[key], "it is fixed as well; name it once")
    nest(search, DistillConfig)  # every key is one that a configuration has
    if file.scheduler is not None and "outer.score_every" not in search:
        fixed.setdefault("outer.score_every", file.scheduler.asha.grace_steps)
    settings = DistillConfig.from_flat(fixed)
    parsed = settings.flat()
    fixed = {key: parsed.get(key, value) for key, value in fixed.items()}
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
    file = file.model_copy(update={"fixed": fixed, "search": search, "engine": engine_config})
    return SweepSpec(name, file, parameters, constraints)


def _still_searched(search: Mapping[str, Any], assigned: Mapping[str, Any]) -> dict[str, Any]:
    """The searched keys without those assigned, those whose condition an assignment rules out, and what hangs on these."""
    left = {key: rule for key, rule in search.items() if key not in assigned}

    def ruled_out(rule: Any) -> bool:
        when = rule.get("when") if isinstance(rule, Mapping) else None
        conditions = when.items() if isinstance(when, Mapping) else ()
        return any(
            assigned[key] != wanted if key in assigned else key in search and key not in left
            for key, wanted in conditions
        )

    while gone := [key for key, rule in left.items() if ruled_out(rule)]:
        left = {key: rule for key, rule in left.items() if key not in gone}
    return left


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
    known = sorted(p.stem for p in SPACES.glob("*.yaml"))
    raise RequestError("space", space, ", or one of ".join(["a YAML file", *([", ".join(known)] if known else [])]))
