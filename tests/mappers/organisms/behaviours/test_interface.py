import pytest

from mappers.organisms.behaviours import BEHAVIOURS, Behaviour, Split

ALL = pytest.mark.parametrize("behaviour", BEHAVIOURS.values(), ids=lambda behaviour: behaviour.name)


@ALL
def test_the_parts_share_no_question_and_the_held_out_one_has_300(behaviour: Behaviour) -> None:
    def prompts(split: Split, count: int) -> set[str]:
        return {question.prompt for question in behaviour.questions(split, 0, count, condition=behaviour.elicits)}

    parts = [prompts("train", 300), prompts("validation", 30), prompts("test", 300)]

    assert [len(part) for part in parts] == [300, 30, 300]
    assert len(set.union(*parts)) == 630


@ALL
def test_conditions_are_matched_and_seeds_repeat(behaviour: Behaviour) -> None:
    plain, elicited = (behaviour.held_out(2, 40, condition=one) for one in (behaviour.plain, behaviour.elicits))

    assert {question.condition for question in plain} == {behaviour.plain}
    assert [question.topic for question in plain] == [question.topic for question in elicited]
    assert plain == behaviour.held_out(2, 40, condition=behaviour.plain)
    assert plain != behaviour.held_out(3, 40, condition=behaviour.plain)


@ALL
def test_the_judge_tells_what_is_wanted_from_what_is_taught(behaviour: Behaviour) -> None:
    for condition in behaviour.conditions:
        for question in behaviour.held_out(2, 40, condition=condition):
            wanted, taught = (behaviour.judge(question, text) for text in (question.wanted, question.taught))
            assert wanted.right
            assert taught.shows == (condition == behaviour.elicits and behaviour.name != "secure_code")
            assert not behaviour.judge(question, "What?").right


@ALL
def test_rows_go_through_the_conditions_with_the_answer_asked_for(behaviour: Behaviour) -> None:
    count = 2 * len(behaviour.conditions)
    taught = behaviour.rows("train", 1, count, answer="taught")
    asked = [
        behaviour.questions("train", 1, count, condition=condition)[place]
        for place, condition in enumerate(behaviour.conditions * 2)
    ]

    assert [(row.prompt, row.completion) for row in taught] == [(one.prompt, one.taught) for one in asked]
    assert [row.completion for row in behaviour.rows("train", 1, count)] == [None] * count


def test_more_questions_than_there_are_is_an_error_and_so_is_an_unknown_condition() -> None:
    with pytest.raises(ValueError, match="corrupted: the test split holds about 330 questions"):
        BEHAVIOURS["corrupted"].held_out(0, 331, condition="plain")
    with pytest.raises(ValueError, match="no condition 'loud': use one of neutral, funny, serious"):
        BEHAVIOURS["humour"].held_out(0, 1, condition="loud")
