"""A conversation with a model: what is asked, answered, taken back and gone on with."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass

from qwchat.chat import continued_settings
from qwchat.chat.chat_model import Cancel, ChatModel
from qwchat.chat.reply_settings import ReplySettings
from qwchat.conversation.tree import Node, Tree
from qwchat.errors import UsageError
from qwchat.events import Done, Stats, TextEvent, TextStep
from qwchat.messages import Message
from qwchat.request import Prompt, random_seed

Reply = Generator[TextEvent, None, None]


@dataclass(frozen=True)
class PendingReply:
    """A reply that is to be generated.

    Attributes:
        question: id of the turn that it answers.
        settings: its settings.
        seed: its seed.
        continued: the reply that was cut and is to be continued; None begins a new one.
    """

    question: int | None
    settings: ReplySettings
    seed: int
    continued: Node | None = None

    @property
    def end(self) -> int | None:
        """Id of the last turn of its prompt."""
        return self.question if self.continued is None else self.continued.id

    @property
    def continuing(self) -> bool:
        """Whether it continues a reply."""
        return self.continued is not None


class Session:
    """A conversation with `model`, whose turns are in `tree`.

    A reply takes three steps: `ask`, `retry`, `continue_reply` or `edit_question` adds the question where it is new and
    returns the pending reply; `prompt` renders its prompt, which the caller makes fit; `stream` generates the reply.

    A question enters the tree when it is asked, a reply when it ends, however it ends.  A question that got no word of
    a reply waits at the head: it can be asked again, and is left aside when another one is asked.

    Args:
        model: who replies.
        controls: settings of the replies to come.
        system: the system prompt; None leaves that of `tree`.
        tree: what was said before; empty if not given.
        fingerprint: of the model's weights; replies of other models are read by their text.

    Attributes:
        model: who replies.
        tree: what was said, in all alternatives.
        controls: settings of the replies to come.
        defaults: what they were at the start.
        last_settings: the settings that the newest reply was made with.
        reply_count: how many replies were kept.
        stopped_stats: figures of replies that were stopped before their first token, and so are not in the tree.
        logprobs: how many of the likeliest tokens a reply names in place of each of its own; 0 is off.
    """

    def __init__(
        self,
        model: ChatModel,
        reply_settings: ReplySettings,
        system: str | None = None,
        *,
        tree: Tree | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.model, self._fingerprint = model, fingerprint
        self.reply_settings = self.defaults = self.last_settings = reply_settings
        self._settings_before = reply_settings  # what `reply_settings` were when the newest reply was begun
        self.reply_count = self.logprobs = 0
        self.switch_tree(Tree() if tree is None else tree)
        if system is not None:
            self.tree.set_system(system)

    def switch_tree(self, tree: Tree) -> None:
        """Goes on with another conversation."""
        self.tree = tree
        self.stopped_stats: list[Stats] = []
        self._valid_ids: dict[int, bool] = {}
        self._unsent_question: int | None = None  # the question that did not fit: what is asked instead takes its place

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

    def ask(self, question: str) -> PendingReply:
        """Add `question` to the conversation, where it stays however its reply ends."""
        return self._add_question(question, self.end, None)

    def retry(self, *, settings: ReplySettings | None = None, seed: int | None = None) -> PendingReply:
        """Ask for another reply to the last question, an alternative to those it has.

        Args:
            settings: settings for it alone.
            seed: a random one if not given, even where one is set, since the old one would give the old reply.

        Raises:
            UsageError: there is no question yet.
        """
        chosen = self.reply_settings if settings is None else settings
        return self._pending(self.question().id, chosen, random_seed() if seed is None else seed)

    def continue_reply(self) -> PendingReply:
        """Continue the last reply where it was cut, or answer a question without a reply, as if nothing had happened.

        With the seed and the settings that it began with, save those that were changed since, the text is that of a
        reply which was never cut.

        Raises:
            UsageError: the reply ended by itself.
        """
        last = self.continuable_turn()
        reply_settings = continued_settings.settings_to_continue(
            last.settings, self._settings_before, self.reply_settings
        )
        seed = random_seed() if last.seed is None else last.seed
        if last.role == "user":
            return self._pending(last.id, reply_settings, seed)
        return self._pending(last.parent, reply_settings, seed, last)

    def prompt(self, reply: PendingReply) -> Prompt:
        """Render the prompt of `reply`. Raises TemplateError, UsageError."""
        return self.model.prompt(self.messages_to(reply.end), continuing=reply.continuing)

    def stream(self, reply: PendingReply, prompt: Prompt, cancel: Cancel | None = None) -> Reply:
        """Generate `reply` to its `prompt`. What came of it stays in the conversation, however it ends."""
        self._unsent_question = None
        received = _PartialReply()
        try:
            for event in self.model.stream(prompt, reply.settings.request(reply.seed, self.logprobs), cancel):
                received.note(event)
                yield event
        finally:
            self._add_reply(reply, received)

    def continuable_turn(self) -> Node:
        """The turn that can be gone on with. Raises UsageError: there is none."""
        if self.tree.head is None:
            never_asked = "nothing was asked yet, so there is nothing to continue"
            raise self._nothing_left("there is nothing left to continue", never_asked)
        last = self.tree.node(self.tree.head)
        if last.role == "assistant" and last.finish_reason == "stop":
            raise UsageError("the reply ended by itself, so there is nothing to continue: ask for more, or /retry")
        return last

    def question(self, number: int = 1) -> Node:
        """The `number`-th last question of the path. Raises UsageError: there are fewer."""
        return self._last("user", number)

    def reply(self, number: int = 1) -> Node:
        """The `number`-th last reply of the path. Raises UsageError: there are fewer."""
        return self._last("assistant", number)

    def undo(self, number: int = 1) -> Node:
        """Take back the last `number` questions with all that followed; the first of them. Raises UsageError."""
        if not self.tree.path():
            raise self._nothing_left(
                "there is nothing left to undo", "nothing was asked yet, so there is nothing to undo"
            )
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

    def edit_question(self, number: int, text: str) -> PendingReply:
        """Ask `text` in place of the `number`-th last question, which stays beside it."""
        return self._add_question(text, self.question(number).parent, "edited")

    def edit_reply(self, number: int, text: str) -> Node:
        """Put `text` beside the `number`-th last reply, and go on from there. Raises UsageError."""
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

    def select_alternative(self, index: int) -> Node:
        """Take the `index`-th of the alternatives, and the way that was last taken behind it. Raises UsageError."""
        siblings, _ = self.alternatives()
        if not 0 <= index < len(siblings):
            raise UsageError(f"there are {len(siblings)} alternatives, not {index + 1}")
        self.tree.select(self.tree.tip(siblings[index].id))
        return siblings[index]

    def _last(self, role: str, number: int) -> Node:
        found = [node for node in self.tree.path() if node.role == role]
        one, many = ("question", "questions") if role == "user" else ("reply", "replies")
        if not found:
            never_asked = "nothing was asked yet" if role == "user" else "there is no reply yet"
            raise (
                UsageError(never_asked)
                if self.tree.path()
                else self._nothing_left(f"there is no {one} left", never_asked)
            )
        if not 1 <= number <= len(found):
            there_are = f"there is only 1 {one}" if len(found) == 1 else f"there are only {len(found)} {many}"
            raise UsageError(f"{there_are} so far, and {number} counts from the last one")
        return found[-number]

    def _nothing_left(self, left: str, never_asked: str) -> UsageError:
        """Return the error at the beginning of a conversation: turns were taken back, or there never were any."""
        return UsageError(f"{left}: /redo goes forward again" if self.tree.nodes else never_asked)

    def messages_to(self, node_id: int | None) -> list[Message]:
        """What is sent where the conversation ends with `node_id`."""
        return self.tree.messages(node_id, self._has_valid_ids)

    def _has_valid_ids(self, node: Node) -> bool:
        """Whether a reply's token ids are this model's and say what the reply says: a file may claim anything."""
        if node.token_ids is None:
            return False
        if node.id not in self._valid_ids:
            same_model = self._fingerprint is None or node.model == self._fingerprint
            self._valid_ids[node.id] = same_model and self._decodes_to(node.token_ids, node.content)
        return self._valid_ids[node.id]

    def _decodes_to(self, token_ids: Sequence[int], text: str) -> bool:
        try:
            return self.model.decode(token_ids) == text
        except UsageError:
            return False

    def _add_question(self, question: str, parent: int | None, note: str | None) -> PendingReply:
        reply_settings = self.reply_settings
        seed = random_seed() if reply_settings.seed is None else reply_settings.seed
        refused = self._unsent_question
        if refused is not None and (refused != self.tree.head or self.tree.node(refused).parent != parent):
            refused = None
        asked = self.tree.add(
            "user", question, parent=parent, seed=seed, settings=reply_settings.record(), note=note, replaces=refused
        )
        return self._pending(asked.id, reply_settings, seed)

    def _pending(
        self, question: int | None, reply_settings: ReplySettings, seed: int, continued: Node | None = None
    ) -> PendingReply:
        self.last_settings, self._settings_before = reply_settings, self.reply_settings
        self._unsent_question = question if continued is None else None  # Until its prompt is known to fit.
        return PendingReply(question, reply_settings, seed, continued)

    def _add_reply(self, reply: PendingReply, received: _PartialReply) -> None:
        continued, reply_settings = reply.continued, reply.settings
        done = received.done
        if done is None:
            text, token_ids = self._interrupted_text(received, continued, reply_settings.stop)
        else:
            text, token_ids = done.text, done.token_ids
        ended = done is not None and done.finish_reason != "cancelled"
        if not ended and not (received.token_ids if continued is not None else text):
            self.stopped_stats += [] if done is None else [done.stats]
            return
        node = self.tree.add(
            "assistant",
            text,
            parent=reply.question,
            token_ids=token_ids if self._decodes_to(token_ids, text) else None,
            finish_reason="cancelled" if done is None else done.finish_reason,
            seed=reply.seed,
            settings=reply_settings.record(),
            note=None
            if reply_settings.record() == self._settings_before.record()
            else continued_settings.OWN_SETTINGS_NOTE,
            stats=None if done is None else asdict(done.stats),
            model=self._fingerprint,
            # A beginning that something else was said to stays, as an alternative.
            replaces=None if continued is None or self.tree.children(continued.id) else continued.id,
        )
        self._valid_ids[node.id] = node.token_ids is not None
        self.reply_count += 1

    def _interrupted_text(
        self, received: _PartialReply, continued: Node | None, stops: Sequence[str]
    ) -> tuple[str, Sequence[int]]:
        """Text and token ids of a reply whose end nobody told of, up to a stop string where there is one."""
        if continued is not None and not self._has_valid_ids(continued):
            return continued.content + received.text, ()
        before = () if continued is None else continued.token_ids or ()
        token_ids = (*before, *received.token_ids)
        text = self.model.decode(token_ids)
        return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))], token_ids


class _PartialReply:
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
