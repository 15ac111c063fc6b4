"""The experiments of the suite ``paper``, in the order of the report."""

from __future__ import annotations

from typing import Final

from server.evaluation.experiment import Experiment
from server.evaluation.experiments.switch import SwitchExperiment
from server.evaluation.experiments.transfer import TransferExperiment

PAPER: Final[tuple[Experiment, ...]] = (SwitchExperiment(), TransferExperiment())
