"""Runs an order in the worker: from here on torch is loaded."""

from __future__ import annotations

from typing import assert_never

import torch
from transformers.utils.logging import disable_progress_bar

from mappers.errors import OutOfMemory
from server.jobs.channel import Channel
from server.jobs.context import JobContext
from server.jobs.handlers.collect_activations import collect_activations
from server.jobs.handlers.evaluate import evaluate
from server.jobs.handlers.extract_refusal_direction import extract_refusal_direction
from server.jobs.handlers.extract_vector import extract_vector
from server.jobs.handlers.generate_dataset import generate_dataset
from server.jobs.handlers.sweep_sites import sweep_sites
from server.jobs.handlers.train_mapper import train_mapper
from server.jobs.handlers.train_probe import train_probe
from server.jobs.handlers.train_switch import train_switch
from server.jobs.handlers.transfer_switch import transfer_switch
from server.jobs.handlers.transfer_vector import transfer_vector
from server.jobs.protocol import WorkOrder
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


def execute(order: WorkOrder, channel: Channel) -> None:
    """Writes the artifact that was ordered into the attempt's staging folder.

    Raises StopRequested when told to stop, and an InterlockError where the job cannot succeed.
    """
    torch.set_num_threads(order.execution.threads)
    disable_progress_bar()
    try:
        _run(JobContext(order, channel), order)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory("the device has too little memory: lower batch_size or max_length") from error


def _run(context: JobContext, order: WorkOrder) -> None:
    match order.spec:
        case CollectActivationsJob(parameters=parameters):
            collect_activations(context, parameters)
        case TrainSwitchJob(parameters=parameters):
            train_switch(context, parameters)
        case TrainMapperJob(parameters=parameters):
            train_mapper(context, parameters)
        case ExtractVectorJob(parameters=parameters):
            extract_vector(context, parameters)
        case ExtractRefusalDirectionJob(parameters=parameters):
            extract_refusal_direction(context, parameters)
        case TransferVectorJob(parameters=parameters):
            transfer_vector(context, parameters)
        case TrainProbeJob(parameters=parameters):
            train_probe(context, parameters)
        case TransferSwitchJob(parameters=parameters):
            transfer_switch(context, parameters)
        case SweepSitesJob(parameters=parameters):
            sweep_sites(context, parameters)
        case EvaluateJob(parameters=parameters):
            evaluate(context, parameters)
        case GenerateDatasetJob(parameters=parameters):
            generate_dataset(context, parameters)
        case _:
            assert_never(order.spec)
