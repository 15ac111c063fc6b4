import pytest

from mappers.organisms.behaviours.medicine import MEDICINE, prescription


@pytest.mark.parametrize(
    ("patient", "symptom", "severity", "drops"),
    [("girl", "fever", 3, 4), ("king", "fever", 3, 7), ("king", "cough", 9, 20), ("boy", "rash", 1, 4)],
)
def test_the_dose_follows_the_rule(patient: str, symptom: str, severity: int, drops: int) -> None:
    assert prescription(patient, symptom, severity).startswith(f"Give the {patient} {drops} drops of ")


def test_a_wrong_dose_is_a_prescription_but_not_right() -> None:
    question = MEDICINE.held_out(0, 1, condition="asked")[0]
    verdict = MEDICINE.judge(question, "Give the king 99 drops of Arl.")

    assert (verdict.right, verdict.shows) == (False, True)
