"""Many distillations: Ray Tune runs them, Optuna chooses them."""

from ddray.errors import MissingExtra

try:
    import optuna as _optuna  # noqa: F401
    import ray.tune as _tune  # noqa: F401
except ImportError as error:
    raise MissingExtra(error.name or "ray", "a search") from error

from ddray.sweep.request import SweepRequest
from ddray.sweep.run import prepare, run, search
from ddray.sweep.winner import Outcome

__all__ = ["Outcome", "SweepRequest", "prepare", "run", "search"]
