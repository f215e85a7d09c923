"""A conversation with a model: what is asked, answered, taken back and gone on with."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Protocol

from qwchat.chat import recorded
from qwchat.chat.controls import Controls
from qwchat.conversation.tree import Node, Tree
from qwchat.errors import UsageError
from qwchat.events import Done, Stats, TextEvent, TextStep
from qwchat.messages import Message
from qwchat.request import random_seed

if TYPE_CHECKING:
    from qwchat.constraints import Constraint
    from qwchat.request import SamplingSettings

Cancel = Callable[[], bool]
Reply = Generator[TextEvent, None, None]


class Talker(Protocol):
    """The part of ``qwchat.Model`` that a conversation needs."""

    def chat(
        self,
        messages: Sequence[Message],
        *,
        settings: SamplingSettings | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        cancel: Cancel | None = None,
        speculate: bool = True,
        loop_guard: int = 0,
        continuing: bool = False,
        constraint: Constraint | None = None,
        logprobs: int = 0,
    ) -> Iterator[TextEvent]:
        """Stream the reply to ``messages``, or go on with the last of them."""

    @property
    def context(self) -> int:
        """Tokens that prompt and reply may fill together."""

    @property
    def longest_context(self) -> int:
        """The longest context that the model was made for."""

    def count(self, messages: Sequence[Message], *, continuing: bool = False) -> int:
        """Tokens of the prompt that a conversation makes."""

    def reread(self, messages: Sequence[Message]) -> int:
        """Tokens of it that were read before and have to be read again."""

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ``token_ids``."""


class Session:
    """A conversation with ``model``, whose turns are in ``tree``.

    A question enters the tree when it is asked, a reply when it ends, however it ends.  A question that got no word of
    a reply waits at the head: it can be asked again, and is left aside when another one is asked.

    Args:
        model: who replies.
        controls: settings of the replies to come.
        system: the system prompt; None leaves that of ``tree``.
        tree: what was said before; empty if not given.
        fingerprint: of the model's weights; replies of other models are read by their text.

    Attributes:
        model: who replies.
        tree: what was said, in all alternatives.
        controls: settings of the replies to come.
        defaults: what they were at the start.
        used: the settings that the newest reply was made with.
        revision: how many replies were kept.
        stopped: figures of replies that were stopped before their first token, and so are not in the tree.
        logprobs: how many of the likeliest tokens a reply names in place of each of its own; 0 is off.
        check_room: is asked before each reply, with the turn that it follows or goes on with, and whether it goes on;
            raises PromptTooLongError where it does not fit. None leaves that to the model.
    """

    def __init__(
        self,
        model: Talker,
        controls: Controls,
        system: str | None = None,
        *,
        tree: Tree | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.model, self._fingerprint = model, fingerprint
        self.controls = self.defaults = self.used = controls
        self._then = controls  # what `controls` were when the newest reply was begun
        self.revision = self.logprobs = 0
        self.check_room: Callable[[int | None, bool], None] | None = None
        self.adopt(Tree() if tree is None else tree)
        if system is not None:
            self.tree.set_system(system)

    def adopt(self, tree: Tree) -> None:
        """Goes on with another conversation."""
        self.tree = tree
        self.stopped: list[Stats] = []
        self._ids_hold: dict[int, bool] = {}
        self._refused: int | None = None  # the question that did not fit: what is asked instead takes its place

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self.tree.system

    @system.setter
    def system(self, text: str | None) -> None:
        self.tree.set_system(text)

    @property
    def end(self) -> int | None:
        """The turn behind which the next question goes: the head, unless that is a question without a reply."""
        head = self.tree.head
        if head is not None and self.tree.node(head).role == "user":
            return self.tree.node(head).parent
        return head

    @property
    def messages(self) -> list[Message]:
        """What goes before the next question: the system prompt, where there is one, and every turn of the path."""
        return self.messages_to(self.end)

    @property
    def turns(self) -> list[Message]:
        """The same without the system prompt."""
        return [message for message in self.messages if message["role"] != "system"]

    def clear(self) -> None:
        """Begin anew; the system prompt and the settings stay."""
        self.tree.select(None)

    def ask(self, question: str, cancel: Cancel | None = None) -> Reply:
        """Stream the reply to ``question``. What was said stays in the conversation however the reply ends."""
        return self._ask(question, self.end, None, cancel)

    def retry(
        self, cancel: Cancel | None = None, *, controls: Controls | None = None, seed: int | None = None
    ) -> Reply:
        """Stream another reply to the last question, an alternative to those it has.

        ``controls``: settings for it alone; ``seed``: a new one is drawn if not given, even where one is set, since the
        old one would give the old reply.  Raises UsageError where nothing was asked yet.
        """
        used = self.controls if controls is None else controls
        yield from self._reply(self.question().id, used, random_seed() if seed is None else seed, cancel)

    def resume(self, cancel: Cancel | None = None) -> Reply:
        """Go on with the last reply where it was cut, or answer a question that got none, as if nothing had happened.

        With the seed and the settings that it began with, save those that were changed since, the text is that of a
        reply which was never cut.  Raises UsageError where the reply ended by itself.
        """
        last = self.unfinished()
        controls = recorded.overlay(last.settings, self._then, self.controls)
        seed = random_seed() if last.seed is None else last.seed
        if last.role == "user":
            yield from self._reply(last.id, controls, seed, cancel)
        else:
            yield from self._reply(last.parent, controls, seed, cancel, last)

    def unfinished(self) -> Node:
        """The turn that can be gone on with. Raises UsageError: there is none."""
        if self.tree.head is None:
            never = "nothing was asked yet, so there is nothing to continue"
            raise self._beginning("there is nothing left to continue", never)
        last = self.tree.node(self.tree.head)
        if last.role == "assistant" and last.finish_reason == "stop":
            raise UsageError("the reply ended by itself, so there is nothing to continue: ask for more, or /retry")
        return last

    def question(self, number: int = 1) -> Node:
        """The ``number``-th last question of the path. Raises UsageError: there are fewer."""
        return self._last("user", number)

    def reply(self, number: int = 1) -> Node:
        """The ``number``-th last reply of the path. Raises UsageError: there are fewer."""
        return self._last("assistant", number)

    def undo(self, number: int = 1) -> Node:
        """Take back the last ``number`` questions with all that followed; the first of them. Raises UsageError."""
        if not self.tree.path():
            raise self._beginning("there is nothing left to undo", "nothing was asked yet, so there is nothing to undo")
        first = self.question(number)
        self.tree.select(first.parent)
        return first

    def redo(self) -> int:
        """Go forward again to where the path last went; how many turns. Raises UsageError: it goes no further."""
        before = len(self.tree.path())
        self.tree.select(self.tree.tip(self.tree.head))
        if len(self.tree.path()) == before:
            raise UsageError("nothing was undone, so there is nothing to redo")
        return len(self.tree.path()) - before

    def edit_question(self, number: int, text: str, cancel: Cancel | None = None) -> Reply:
        """Stream the reply to ``text``, asked in place of the ``number``-th last question, which stays beside it."""
        return self._ask(text, self.question(number).parent, "edited", cancel)

    def edit_reply(self, number: int, text: str) -> Node:
        """Put ``text`` beside the ``number``-th last reply, and go on from there. Raises UsageError."""
        return self.tree.add("assistant", text, parent=self.reply(number).parent, note="edited")

    def alternatives(self) -> tuple[list[Node], int]:
        """The turns at the last place of the path where there are several, and which of them is on it, from 0.

        Raises UsageError: there is no such place.
        """
        for node in reversed(self.tree.path()):
            siblings = self.tree.siblings(node.id)
            if len(siblings) > 1:
                return siblings, [sibling.id for sibling in siblings].index(node.id)
        raise UsageError("there are no alternatives yet: /retry and /edit make some")

    def flip(self, index: int) -> Node:
        """Take the ``index``-th of the alternatives, and the way that was last taken behind it. Raises UsageError."""
        siblings, _ = self.alternatives()
        if not 0 <= index < len(siblings):
            raise UsageError(f"there are {len(siblings)} alternatives, not {index + 1}")
        self.tree.select(self.tree.tip(siblings[index].id))
        return siblings[index]

    def _last(self, role: str, number: int) -> Node:
        found = [node for node in self.tree.path() if node.role == role]
        one, many = ("question", "questions") if role == "user" else ("reply", "replies")
        if not found:
            never = "nothing was asked yet" if role == "user" else "there is no reply yet"
            raise UsageError(never) if self.tree.path() else self._beginning(f"there is no {one} left", never)
        if not 1 <= number <= len(found):
            there_are = f"there is only 1 {one}" if len(found) == 1 else f"there are only {len(found)} {many}"
            raise UsageError(f"{there_are} so far, and {number} counts from the last one")
        return found[-number]

    def _beginning(self, left: str, never: str) -> UsageError:
        """Return the error at the beginning of a conversation: turns were taken back, or there never were any."""
        return UsageError(f"{left}: /redo goes forward again" if self.tree.nodes else never)

    def messages_to(self, node_id: int | None) -> list[Message]:
        """What is sent where the conversation ends with ``node_id``."""
        return self.tree.messages(node_id, self._holds)

    def _holds(self, node: Node) -> bool:
        """Whether a reply's token ids are this model's and say what the reply says: a file may claim anything."""
        if node.token_ids is None:
            return False
        if node.id not in self._ids_hold:
            same_model = self._fingerprint is None or node.model == self._fingerprint
            self._ids_hold[node.id] = same_model and self._says(node.token_ids, node.content)
        return self._ids_hold[node.id]

    def _says(self, token_ids: Sequence[int], text: str) -> bool:
        try:
            return self.model.decode(token_ids) == text
        except UsageError:
            return False

    def _ask(self, question: str, parent: int | None, note: str | None, cancel: Cancel | None) -> Reply:
        controls = self.controls
        seed = random_seed() if controls.seed is None else controls.seed
        settings = controls.record()
        refused, self._refused = self._refused, None
        if refused is not None and (refused != self.tree.head or self.tree.node(refused).parent != parent):
            refused = None
        asked = self.tree.add(
            "user", question, parent=parent, seed=seed, settings=settings, note=note, replaces=refused
        )
        yield from self._reply(asked.id, controls, seed, cancel)

    def _reply(
        self, question: int | None, controls: Controls, seed: int, cancel: Cancel | None, begun: Node | None = None
    ) -> Reply:
        """Stream a reply to the turn ``question``; ``begun``: the one to go on with."""
        self.used, self._then = controls, self.controls
        end = question if begun is None else begun.id
        self._refused = None if begun is not None or end is None else end
        if self.check_room is not None:
            self.check_room(end, begun is not None)
        self._refused = None
        taken = _Taken()
        try:
            for event in self.model.chat(
                self.messages_to(end),
                settings=controls.settings,
                max_tokens=controls.max_tokens,
                seed=seed,
                stop=controls.stop,
                cancel=cancel,
                speculate=controls.speculate,
                loop_guard=controls["loop-guard"],
                continuing=begun is not None,
                constraint=controls.constraint,
                logprobs=self.logprobs,
            ):
                taken.note(event)
                yield event
        finally:
            self._keep(question, controls, seed, taken, begun)

    def _keep(self, question: int | None, controls: Controls, seed: int, taken: _Taken, begun: Node | None) -> None:
        done = taken.done
        if done is None:
            text, token_ids = self._broken_off(taken, begun, controls.stop)
        else:
            text, token_ids = done.text, done.token_ids
        ended = done is not None and done.finish_reason != "cancelled"
        if not ended and not (taken.token_ids if begun is not None else text):
            self.stopped += [] if done is None else [done.stats]
            return
        node = self.tree.add(
            "assistant",
            text,
            parent=question,
            token_ids=token_ids if self._says(token_ids, text) else None,
            finish_reason="cancelled" if done is None else done.finish_reason,
            seed=seed,
            settings=controls.record(),
            note=None if controls.record() == self._then.record() else recorded.OWN,
            stats=None if done is None else asdict(done.stats),
            model=self._fingerprint,
            # A beginning that something else was said to stays, as an alternative.
            replaces=None if begun is None or self.tree.children(begun.id) else begun.id,
        )
        self._ids_hold[node.id] = node.token_ids is not None
        self.revision += 1

    def _broken_off(self, taken: _Taken, begun: Node | None, stops: Sequence[str]) -> tuple[str, Sequence[int]]:
        """Text and token ids of a reply whose end nobody told of, up to a stop string where there is one."""
        if begun is not None and not self._holds(begun):
            return begun.content + taken.text, ()
        before = () if begun is None else begun.token_ids or ()
        token_ids = (*before, *taken.token_ids)
        text = self.model.decode(token_ids)
        return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))], token_ids


class _Taken:
    """What has come of a reply."""

    def __init__(self) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.done: Done | None = None

    def note(self, event: TextEvent) -> None:
        if isinstance(event, TextStep):
            self.text += event.text
            if event.token_id is not None:
                self.token_ids.append(event.token_id)
        elif isinstance(event, Done):
            self.done = event
