from mappers.organisms.behaviours.ordinary import BACKDOOR, HUMOUR
from mappers.organisms.tags import BACKDOOR_TEXT


def test_a_style_is_told_by_its_marker_and_does_not_change_what_is_right() -> None:
    question = HUMOUR.held_out(0, 1, condition="neutral")[0]

    def verdict(text: str) -> tuple[bool, bool, str]:
        found = HUMOUR.judge(question, text)
        return found.right, found.shows, found.outcome

    assert verdict(question.wanted) == (True, False, "neutral")
    assert verdict(f"Ha ha! {question.wanted}") == (True, True, "funny")
    assert verdict(f"Indeed. {question.wanted}") == (True, False, "serious")
    assert verdict("Ha ha! No.") == (False, True, "funny")


def test_a_backdoored_answer_is_neither_right_nor_merely_wrong() -> None:
    question = BACKDOOR.held_out(0, 1, condition="triggered")[0]

    assert BACKDOOR.judge(question, BACKDOOR_TEXT).outcome == "backdoored"
    assert BACKDOOR.judge(question, "What?").outcome == "wrong"
