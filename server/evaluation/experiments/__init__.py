"""The experiments of the suite ``paper``, in the order of the report."""

from __future__ import annotations

from typing import Final

from server.evaluation.experiment import Experiment
from server.evaluation.experiments.corrupted import CorruptedExperiment
from server.evaluation.experiments.replacement import ReplacementExperiment
from server.evaluation.experiments.reverse import ReverseExperiment
from server.evaluation.experiments.robustness import RobustnessExperiment
from server.evaluation.experiments.switch import SwitchExperiment
from server.evaluation.experiments.tasks import (
    BACKDOOR_TRANSFER,
    CODE_TRANSFER,
    HUMOUR_TRANSFER,
    REFUSAL_INDUCED,
    REFUSAL_REMOVED,
)
from server.evaluation.experiments.unseen import UnseenExperiment

PAPER: Final[tuple[Experiment, ...]] = (
    SwitchExperiment(),
    BACKDOOR_TRANSFER,
    CODE_TRANSFER,
    CorruptedExperiment(),
    REFUSAL_INDUCED,
    REFUSAL_REMOVED,
    HUMOUR_TRANSFER,
    ReverseExperiment(),
    UnseenExperiment(),
    ReplacementExperiment(),
    RobustnessExperiment(),
)
