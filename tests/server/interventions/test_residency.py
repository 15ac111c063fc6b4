"""Artifacts within a budget of bytes: least recently used first, never what somebody holds, read once at a time."""

import gc
import random
import threading

import pytest
import torch

from mappers.sites import Site
from server.interventions.residency import Residency, ResidentArtifact
from tests.server.engine.interventions import WIDTH, mapper

ONE = 4 * WIDTH


class Disk:
    """Counts what is read; artifact ``i`` holds the value ``i``."""

    def __init__(self) -> None:
        self.reads: list[str] = []

    def read(self, name: str) -> ResidentArtifact:
        self.reads.append(name)
        return ResidentArtifact("vector", name, {Site(0): torch.full((WIDTH,), float(name))})


def use(residency: Residency, disk: Disk, *names: str) -> None:
    for name in names:
        assert float(residency.get(name, lambda name=name: disk.read(name)).effects[Site(0)][0]) == float(name)


def test_counts_each_tensor_once():
    v_D = torch.ones(WIDTH)
    assert ResidentArtifact("vector", "", {Site(0): v_D, Site(1): v_D}).nbytes == ONE
    assert ResidentArtifact("switch", "", {Site(0): mapper()}).nbytes == 4 * (2 * WIDTH * WIDTH + 2 * WIDTH)


def test_the_least_recently_used_goes_first():
    residency, disk = Residency(3 * ONE), Disk()
    use(residency, disk, "1", "2", "3", "1", "4")
    assert residency.nbytes == 3 * ONE
    disk.reads.clear()
    use(residency, disk, "1", "3", "4")
    assert disk.reads == []
    use(residency, disk, "2")
    assert disk.reads == ["2"]


def test_what_is_held_stays_the_same_object_and_is_counted():
    residency, disk = Residency(ONE), Disk()
    held = residency.get("1", lambda: disk.read("1"))
    use(residency, disk, "2", "3")
    assert residency.get("1", lambda: disk.read("1")) is held
    assert disk.reads == ["1", "2", "3"]
    use(residency, disk, "4")
    assert residency.nbytes == ONE
    del held
    assert residency.nbytes <= ONE


def test_one_that_is_larger_than_the_budget_is_used_and_not_kept():
    residency, disk = Residency(ONE - 1), Disk()
    use(residency, disk, "1")
    assert residency.nbytes == 0


def test_a_forgotten_artifact_is_read_again_and_counted_while_held():
    residency, disk = Residency(10 * ONE), Disk()
    held = residency.get("1", lambda: disk.read("1"))
    residency.forget("1")
    assert residency.nbytes == ONE
    assert residency.get("1", lambda: disk.read("1")) is not held
    residency.forget("never there")


def test_one_forgotten_while_it_is_read_is_not_kept():
    residency, disk = Residency(10 * ONE), Disk()

    def read() -> ResidentArtifact:
        residency.forget("1")
        return disk.read("1")

    residency.get("1", read)
    assert residency.nbytes == 0


def test_a_read_that_fails_is_tried_again():
    residency, disk = Residency(ONE), Disk()
    with pytest.raises(OSError, match="gone"):
        residency.get("1", lambda: (_ for _ in ()).throw(OSError("gone")))
    use(residency, disk, "1")


def test_threads_that_want_the_same_read_it_once_and_others_do_not_wait():
    residency, disk = Residency(10 * ONE), Disk()
    use(residency, disk, "9")
    found: list[ResidentArtifact] = []
    go_on, in_time = threading.Event(), []

    def read() -> ResidentArtifact:
        in_time.append(go_on.wait(timeout=10))
        return disk.read("1")

    threads = [threading.Thread(target=lambda: found.append(residency.get("1", read))) for _ in range(8)]
    for thread in threads:
        thread.start()
    use(residency, disk, "9")
    go_on.set()
    for thread in threads:
        thread.join()
    assert in_time == [True], "read once, and another artifact could be had meanwhile"
    assert disk.reads == ["9", "1"]
    assert len(set(map(id, found))) == 1


def test_thrash_from_many_threads_always_gives_what_was_asked():
    residency, disk = Residency(4 * ONE), Disk()
    wrong: list[str] = []

    def client(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(200):
            name = str(rng.randrange(12))
            found = residency.get(name, lambda name=name: disk.read(name))
            if float(found.effects[Site(0)][0]) != float(name):
                wrong.append(name)
            if rng.random() < 0.05:
                residency.forget(name)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert wrong == []
    assert residency.nbytes <= 4 * ONE
    assert len(disk.reads) > 12
