"""Small files of multiple-choice questions in each form."""

from __future__ import annotations

import json
from pathlib import Path

SUMS = [("What is 2 + 3?", "4567", "B"), ("What is 7 + 8?", "5678", "A"), ("Which one is even?", "1359", "A")]
MMLU_TEST = "".join(f"{text},{','.join(digits)},{answer}\n" for text, digits, answer in SUMS)
MMLU_DEV = "What is 1 + 1?,1,3,2,4,C\nWhat is 3 + 4?,9,7,5,3,B\nWhat is 2 + 2?,4,3,2,1,A\n"
CEVAL_VAL = "id,question,A,B,C,D,answer\n0,一加一等于几？,一,二,三,四,B\n1,二加一等于几？,一,二,三,四,C\n"
CEVAL_DEV = "id,question,A,B,C,D,answer,explanation\n0,一加零等于几？,一,二,三,四,A,因为\n"
PLAIN = [
    {"question": "What does qwchat do?", "choices": ["It chats.", "It runs a model on this machine", "Nothing at all"]},
    {"question": "What is 7 + 8?", "choices": ["7 + 8 = 15.", "fourteen"], "subject": "sums"},
    {"question": "Who are you?", "choices": ["a fish", "I am mini, a small model.", "Zwölf", "?"]},
]
PLAIN_ANSWERS = (1, "A", "B")


def write_tasks(folder: Path) -> Path:
    """Write tasks as MMLU lays them out, `test/*` and `dev/*`, and return the folder of the tasks."""
    for name in ("test", "dev"):
        (folder / name).mkdir()
    plain = [{**each, "answer": answer} for each, answer in zip(PLAIN, PLAIN_ANSWERS, strict=True)]
    shots = [
        {"question": "What is 1 + 2?", "choices": ["1 + 2 = 3.", "none"], "answer": 0, "subject": "sums"},
        {"question": "Is a model a file?", "choices": ["Yes", "No"], "answer": 0},
    ]
    files = {
        "test/elementary_mathematics_test.csv": MMLU_TEST,
        "dev/elementary_mathematics_dev.csv": MMLU_DEV,
        "test/law_val.csv": CEVAL_VAL,
        "dev/law_dev.csv": "\ufeff" + CEVAL_DEV,
        "test/plain.jsonl": "".join(json.dumps(each) + "\n" for each in plain),
        "dev/plain_dev.jsonl": "".join(json.dumps(each) + "\n" for each in shots),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "test"
