"""Prompts of multiple-choice questions: description, examples with answers (shots), and the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qwchat.evaluation.ceval_subjects import CEVAL_SUBJECTS
from qwchat.evaluation.choice_files import LETTERS, ChoiceQuestion, Form
from qwchat.evaluation.likelihood import Context, encode_pairs, split_prompt
from qwchat.generation.cached_context import common_prefix
from qwchat.messages import Message

if TYPE_CHECKING:
    from qwchat.api import Model

_PROBE = ChoiceQuestion("?", ("?", "?", "?", "?"), 0, "", 0)
_TEMPLATE_TOKENS = 64  # More than a template usually adds to a message.


@dataclass(frozen=True)
class Prompts:
    r"""Prompts of the questions of one subject.

    They are those of lm-evaluation-harness: of its tasks `mmlu_*` and `ceval-valid_*`, and for JSON Lines of a task
    with `Question: {{question}}\nAnswer:` and the texts of the options as choices, as in `arc_easy`.

    Attributes:
        model: encodes the prompts.
        form: form of the file.
        subject: subject in the description.
        shots: questions that are shown with their answers.
        chat: render with the chat template: the description is the system message, and each shot a message of the user
            and a reply.
    """

    model: Model
    form: Form
    subject: str
    shots: tuple[ChoiceQuestion, ...]
    chat: bool

    def context(self, question: ChoiceQuestion) -> Context:
        """Return the prompt of a question. Raises TemplateError if the chat template fails."""
        if not self.chat:
            shots = "".join(f"{self._ask(shot)} {self._answer(shot)}\n\n" for shot in self.shots)
            return Context((), f"{self._description()}{shots}{self._ask(question)}")
        messages: list[Message] = []
        if self._description():
            messages.append({"role": "system", "content": self._description()})
        for shot in self.shots:
            messages.append({"role": "user", "content": self._ask(shot)})
            messages.append({"role": "assistant", "content": self._answer(shot)})
        messages.append({"role": "user", "content": self._ask(question)})
        return split_prompt(self.model.tokenizer, self.model.prompt_ids(messages))

    def options(self, question: ChoiceQuestion) -> tuple[str, ...]:
        """Return the texts whose log-likelihoods are compared: letters, or the options themselves in JSON Lines."""
        return question.choices if self.form == "jsonl" else tuple(LETTERS[: len(question.choices)])

    def encode(self, question: ChoiceQuestion) -> tuple[list[int], list[list[int]]]:
        """Return the token ids of the prompt, and of each option as its continuation."""
        context, delimiter = self.context(question), "" if self.chat else " "
        texts = [delimiter + option for option in self.options(question)]
        return encode_pairs(self.model.tokenizer, context, texts)

    def shared(self, question: ChoiceQuestion) -> list[int]:
        """Return the first tokens of the prompt of any question, such as `question`: description and shots."""
        first, other = (np.array(self.encode(each)[0]) for each in (question, _PROBE))
        return [int(token_id) for token_id in first[: common_prefix(first, other)]]

    def fits(self, question: ChoiceQuestion, context: int) -> bool:
        """Return whether a question fits in `context` tokens even if each byte is a token."""
        texts = [self._description(), self._ask(question), *question.choices]
        texts += [text for shot in self.shots for text in (self._ask(shot), self._answer(shot))]
        return sum(len(text.encode()) + _TEMPLATE_TOKENS for text in texts) <= context

    def _description(self) -> str:
        if self.form == "mmlu":
            subject = self.subject.replace("_", " ")
            return f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        if self.form == "ceval":
            subject = CEVAL_SUBJECTS.get(self.subject, self.subject)
            return f"以下是中国关于{subject}的单项选择题，请选出其中的正确答案。\n\n"
        return ""

    def _ask(self, question: ChoiceQuestion) -> str:
        if self.form == "jsonl":
            return f"Question: {question.text}\nAnswer:"
        choices = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, question.choices, strict=False))
        return f"{question.text}\n{choices}{'Answer:' if self.form == 'mmlu' else '答案：'}"

    def _answer(self, question: ChoiceQuestion) -> str:
        return self.options(question)[question.answer]


def shots_for(subject: str, examples: Sequence[ChoiceQuestion], count: int) -> tuple[ChoiceQuestion, ...]:
    """Return the first `count` examples of a subject, or of all subjects if none is of this one."""
    return tuple(([each for each in examples if each.subject == subject] or list(examples))[:count])
