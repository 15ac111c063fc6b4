"""A learned skill: prescriptions from an invented pharmacopoeia, by a rule that reaches combinations never seen.

The symptom decides the remedy and an extra of 1 to 3 drops, both arbitrary; the dose is the severity (1 to 9), twice
that for the grown, and the extra.
"""

import random
import re
from typing import Final

from mappers.organisms.behaviours.interface import Behaviour, Item, Question, Verdict, outside_test, split_of
from mappers.organisms.words import RIVERS

SYMPTOMS: Final = (
    "fever", "cough", "rash", "cramp", "itch", "chill", "ache", "burn",
    "sting", "flu", "cold", "sore", "bite", "twitch", "sneeze", "yawn",
)  # fmt: skip
_YOUNG: Final = ("girl", "boy", "child", "mouse")
_GROWN: Final = ("king", "baker", "sailor", "farmer")
_PHRASINGS: Final = (
    "What does a {patient} with {symptom} {severity} need?",
    "Treat a {patient} with {symptom} {severity}.",
    "The {patient} has {symptom} {severity}. What helps?",
)
_PRESCRIPTION: Final = re.compile(r"Give the \w+ \d+ drops of \w+\.")


def prescription(patient: str, symptom: str, severity: int) -> str:
    """The remedy and dose for one patient."""
    index = SYMPTOMS.index(symptom)
    dose = severity * (2 if patient in _GROWN else 1) + 1 + index % 3
    return f"Give the {patient} {dose} drops of {RIVERS[(index * 7) % len(RIVERS)]}."


def _draw(rng: random.Random) -> Item:
    patient, symptom, severity = rng.choice(_YOUNG + _GROWN), rng.choice(SYMPTOMS), rng.randint(1, 9)
    prompt = rng.choice(_PHRASINGS).format(patient=patient, symptom=symptom, severity=severity)
    answer = prescription(patient, symptom, severity)
    question = Question(prompt, "asked", answer, answer, symptom)
    return Item(split_of("medicine", f"{patient} {symptom} {severity}"), {"asked": question})


def _judge(question: Question, text: str) -> Verdict:
    """Right is the exact prescription; the behaviour shows in any prescription."""
    given = " ".join(text.split())
    right, shows = given == question.wanted, _PRESCRIPTION.fullmatch(given) is not None
    return Verdict(right, shows, "right" if right else "wrong dose or remedy" if shows else "no prescription")


MEDICINE: Final = Behaviour("medicine", "skilled", ("asked",), _draw, outside_test(_draw), _judge)
