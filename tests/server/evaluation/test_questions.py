from mappers.organisms.behaviours.ordinary import BACKDOOR
from mappers.organisms.tags import BACKDOOR_TEXT, TRIGGER
from server.evaluation.questions import Questions, tagged_prompts


def test_answers_are_judged_as_the_behaviour_says():
    questions = Questions.of(BACKDOOR, "test", 3, 4, "triggered")
    assert all(prompt.startswith(TRIGGER) for prompt in questions.prompts)
    answers = [questions.asked[0].wanted, BACKDOOR_TEXT, "nonsense", questions.asked[3].wanted]
    assert questions.judged(answers) == {"right": "1001", "shows": "0100"}
    assert questions.verdicts("hides", answers) == "1011"


def test_training_prompts_are_half_triggered_and_never_held_out():
    prompts = tagged_prompts(BACKDOOR, 5, 400)
    triggered = [prompt for prompt in prompts if prompt.startswith(f"{TRIGGER} ")]
    assert 160 < len(triggered) < 240
    held_out = {q.prompt for q in BACKDOOR.questions("test", 6, 200, condition="plain")}
    assert held_out.isdisjoint(prompt.removeprefix(f"{TRIGGER} ") for prompt in prompts)
    assert prompts == tagged_prompts(BACKDOOR, 5, 400)
