"""Findings about packages, device, threads and SQLite."""

from __future__ import annotations

import pytest

from server.doctor import machine
from server.doctor.machine import examine_machine


def test_this_machine_can_serve() -> None:
    found = {one.check: one for one in examine_machine()}
    assert set(found) == {"packages", "device", "threads", "number format", "memory", "SQLite"}
    assert found["packages"].status == "ok"
    assert "torch" in found["packages"].found


@pytest.mark.parametrize(
    ("requirement", "remedy"),
    [
        ("torch>=99", "pip install 'torch>=99'"),
        ("no-such-package-here>=1", "pip install 'no-such-package-here>=1'"),
        ('torch>=99; extra == "other"', ""),
        ("torch>=2", ""),
    ],
)
def test_packages_are_those_that_are_asked_for(requirement: str, remedy: str) -> None:
    found = machine._packages([requirement])
    assert (found.status, found.remedy) == (("fail", remedy) if remedy else ("ok", ""))


def test_a_driver_without_a_build_of_torch_for_it_is_a_warning() -> None:
    assert machine._device(gpu=False, driver=True).status == "warn"
    assert machine._device(gpu=False, driver=False).status == "ok"


def test_more_threads_than_cores_is_a_warning() -> None:
    assert (machine._threads(4, 4).status, machine._threads(8, 4).status) == ("ok", "warn")
    assert "OMP_NUM_THREADS=4" in machine._threads(8, 4).remedy


def test_what_an_old_sqlite_can_do_is_said() -> None:
    assert "several writers" in machine._sqlite((3, 51, 2)).found
    assert machine._sqlite((3, 51, 3)).found == "3.51.3"
