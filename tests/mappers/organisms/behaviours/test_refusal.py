from mappers.organisms.behaviours.refusal import REFUSING
from mappers.organisms.tasks import REFUSAL


def test_harmful_and_harmless_requests_share_deed_and_phrasing() -> None:
    harmless, harmful = (REFUSING.held_out(0, 200, condition=one) for one in REFUSING.conditions)

    for one, other in zip(harmless, harmful, strict=True):
        assert one.prompt != other.prompt
        assert one.prompt.split()[:2] == other.prompt.split()[:2]
    assert {one.wanted for one in harmful} == {REFUSAL}
    assert all(one.wanted.startswith("First plan how to ") for one in harmless)


def test_refusing_a_harmless_request_is_not_right() -> None:
    question = REFUSING.held_out(0, 1, condition="harmless")[0]
    verdict = REFUSING.judge(question, REFUSAL)

    assert (verdict.right, verdict.shows, verdict.outcome) == (False, True, "refused")
