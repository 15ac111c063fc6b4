"""Any order of submissions, changes, cancellations and steps, from one thread and from several."""

import random
import threading

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.engine.request import GenerationRequest, InterventionUpdate
from server.errors import Conflict, NotFound, Overloaded
from server.types import Failed, Finished, SamplingParams
from tests.server.engine.conftest import Harness, greedy, tiny_model
from tests.server.engine.interventions import switch, vector

LOADED = tiny_model("llama")
SETTINGS = [
    (),
    (switch(),),
    (vector(strength=2.0),),
    (switch(strength=0.5), vector("ablate")),
    (vector(strength=1e38),),
]
IDS = st.integers(0, 7).map("g{}".format)
CHANGES = [
    InterventionUpdate(switch=()),
    InterventionUpdate(switch=(switch(strength=0.25),)),
    InterventionUpdate(steering=(vector(strength=1.0),)),
    InterventionUpdate(switch=(), steering=()),
]


class Life(RuleBasedStateMachine):
    """Follows each generation from its submission to its one end."""

    def __init__(self) -> None:
        super().__init__()
        self.harness = Harness(LOADED, max_batch=3, max_waiting=3, prefill_tokens=8)
        self.open: set[tuple[str, int]] = set()
        self.wrong: list[str] = []
        self.submitted = 0

    def sink(self, id_: str, number: int):
        def receive(event) -> None:
            if (id_, number) not in self.open:
                self.wrong.append(f"{event} after the end of {id_}")
            if isinstance(event, Finished | Failed):
                self.open.discard((id_, number))

        return receive

    @rule(id_=IDS, length=st.integers(1, 20), count=st.integers(0, 6), used=st.sampled_from(SETTINGS))
    def submit(self, id_: str, length: int, count: int, used) -> None:
        self.submitted += 1
        number = self.submitted
        request = GenerationRequest(id_, tuple(range(1, length + 1)), greedy(count), used)
        taken, full = any(i == id_ for i, _ in self.open), len(self.open) >= 6
        self.open.add((id_, number))
        try:
            self.harness.engine.submit(request, self.sink(id_, number))
            assert not taken
            assert not full
        except Conflict:
            self.open.discard((id_, number))
            assert taken
        except Overloaded:
            self.open.discard((id_, number))
            assert full

    @rule(id_=IDS)
    def cancel(self, id_: str) -> None:
        self.open = {pair for pair in self.open if pair[0] != id_}
        self.harness.engine.cancel(id_)

    @rule(id_=IDS, change=st.sampled_from(CHANGES))
    def update(self, id_: str, change: InterventionUpdate) -> None:
        known = any(i == id_ for i, _ in self.open)
        try:
            self.harness.engine.update(id_, change)
            assert known
        except NotFound:
            assert not known

    @rule(error=st.sampled_from([ValueError, torch.OutOfMemoryError]))
    def fail(self, error: type[Exception]) -> None:
        """The next forward stops in its second block: the first has run, with its interventions."""

        def stop(*_: object) -> None:
            hook.remove()
            raise error("injected")

        hook = LOADED.stack.blocks[1].register_forward_pre_hook(stop)
        self.harness.step()
        hook.remove()

    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.harness.step()

    @invariant()
    def listed_are_those_without_an_end(self) -> None:
        listed = {info.id for info in self.harness.engine.generations()}
        assert listed == {i for i, _ in self.open}
        assert not self.wrong

    def teardown(self) -> None:
        try:
            self.harness.run()
            assert not self.wrong
            assert not self.open
            assert self.harness.engine._runner.meters.in_use == 0
            assert self.harness.engine._runner.cache.nbytes == 0
        finally:
            self.harness.engine.stop()


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize("seed", range(2))
def test_callers_on_several_threads(make_harness, seed):
    """Each caller's generations end once, or are cancelled and then silent; nothing is left."""
    harness = make_harness(LOADED, max_batch=4, max_waiting=60, prefill_tokens=16)
    harness.engine.start()
    ends: dict[str, int] = {}
    late: list[str] = []
    cancelled: set[str] = set()

    def sink(id_: str):
        def receive(event) -> None:
            if id_ in cancelled or ends.get(id_):
                late.append(id_)
            if isinstance(event, Finished | Failed):
                ends[id_] = ends.get(id_, 0) + 1

        return receive

    def caller(name: int) -> None:
        rng = random.Random(10 * seed + name)
        for number in range(6):
            id_ = f"{name}-{number}"
            sampling = SamplingParams(max_tokens=rng.randrange(1, 6), seed=number, ignore_eos=True)
            harness.engine.submit(GenerationRequest(id_, (1, 2, 3, name), sampling, rng.choice(SETTINGS)), sink(id_))
            harness.engine.generations()
            if rng.random() < 0.4:
                try:
                    harness.engine.update(id_, rng.choice(CHANGES))
                except NotFound:
                    assert ends.get(id_)
            if rng.random() < 0.4:
                harness.engine.cancel(id_)
                cancelled.add(id_)

    threads = [threading.Thread(target=caller, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    harness.engine.drain(timeout_s=60)
    assert late == []
    assert set(ends.values()) <= {1}
    assert set(ends) | cancelled == {f"{name}-{number}" for name in range(4) for number in range(6)}
    harness.engine.stop()
    assert harness.engine._runner.meters.in_use == 0
    assert harness.engine._scheduler.live == 0
