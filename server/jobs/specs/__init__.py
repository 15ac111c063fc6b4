"""What a client may ask of a job: ``{"kind", "name", "parameters"}``, discriminated by ``kind``. No torch.

Models are named only by names the operator gave at start, data and vectors by artifact name or id: nothing here is a
path. A parameter that would have no effect with the chosen mapper is refused, never ignored.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter

from server.jobs.specs.activations import CollectActivationsJob
from server.jobs.specs.data import GenerateDatasetJob
from server.jobs.specs.evaluations import EvaluateJob
from server.jobs.specs.fits import TrainMapperJob, TrainSwitchJob
from server.jobs.specs.probes import TrainProbeJob
from server.jobs.specs.sweeps import SweepSitesJob
from server.jobs.specs.vectors import (
    ExtractRefusalDirectionJob,
    ExtractVectorJob,
    TransferSwitchJob,
    TransferVectorJob,
)

_JobSpec = (
    CollectActivationsJob
    | TrainSwitchJob
    | TrainMapperJob
    | ExtractVectorJob
    | ExtractRefusalDirectionJob
    | TransferVectorJob
    | TrainProbeJob
    | TransferSwitchJob
    | SweepSitesJob
    | EvaluateJob
    | GenerateDatasetJob
)
JobSpec = Annotated[_JobSpec, Field(discriminator="kind")]
JOB_SPEC: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)
