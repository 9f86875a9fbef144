"""One distillation: torch only."""

from ddray.distillation.config import DistillConfig, EngineConfig
from ddray.distillation.distilled_set import DistilledSet, load
from ddray.distillation.distiller import Distiller
from ddray.distillation.evaluate import Score
from ddray.distillation.run import Progress, distill

__all__ = ["DistillConfig", "DistilledSet", "Distiller", "EngineConfig", "Progress", "Score", "distill", "load"]
