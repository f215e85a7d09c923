"""A conversation with a model: asking, retrying, continuing, undoing and editing."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from qwchat.chat import continued_settings
from qwchat.chat.chat_model import Cancel, ChatModel
from qwchat.chat.chat_models import OpenedModel
from qwchat.chat.partial_reply import PartialReply
from qwchat.chat.reply_settings import ReplySettings
from qwchat.conversation.reply_parts import REASONING_TOKENS, has_thought, is_unfinished_thought, reply_parts
from qwchat.conversation.tree import Node, Tree
from qwchat.errors import UsageError
from qwchat.events import Stats, TextEvent
from qwchat.messages import Message
from qwchat.reasoning import CLOSING_TAG, split_reply, written_text
from qwchat.request import Prompt, PromptOptions, random_seed

Reply = Generator[TextEvent, None, None]


@dataclass(frozen=True)
class PendingReply:
    """A reply that is to be generated.

    Attributes:
        question: id of the turn that it answers.
        settings: its settings.
        seed: its seed.
        continued: the interrupted reply that it continues; None for a new reply.
    """

    question: int | None
    settings: ReplySettings
    seed: int
    continued: Node | None = None

    @property
    def end(self) -> int | None:
        """Id of the last turn in its prompt."""
        return self.question if self.continued is None else self.continued.id

    @property
    def continuing(self) -> bool:
        """Whether it continues an interrupted reply."""
        return self.continued is not None


class Session:
    """A conversation with `model`, whose turns are in `tree`.

    A reply takes three steps. `ask`, `retry`, `continue_reply` or `edit_question` adds the message, if it is new, and
    returns the pending reply. `prompt` renders its prompt, which the caller makes fit into the context. `stream`
    generates the reply.

    A message is added to the tree when it is asked, a reply when it ends, for whatever reason. A message without any
    text of a reply stays at the head: it can be asked again, and becomes an alternative when another message is sent.

    Args:
        model: generates the replies.
        reply_settings: settings of the next replies.
        system: the system prompt; None keeps that of `tree`.
        tree: the conversation so far; empty if not given.
        fingerprint: fingerprint of the model's weights; token ids of replies by other models are not reused.
        model_name: name of the model, stored with its replies.

    Attributes:
        model: generates the replies.
        tree: the conversation with all alternatives.
        reply_settings: settings of the next replies.
        defaults: the settings at the start.
        last_settings: the settings of the newest reply.
        reply_count: how many replies were added.
        stopped_stats: figures of replies that were stopped before their first token, which are not in the tree.
        logprobs: how many likely alternatives a reply reports for each token; 0 is off.
        thinking: False asks the model to answer without a thought, which some models do not support.
    """

    def __init__(
        self,
        model: ChatModel,
        reply_settings: ReplySettings,
        system: str | None = None,
        *,
        tree: Tree | None = None,
        fingerprint: str | None = None,
        model_name: str | None = None,
    ) -> None:
        self.model, self._fingerprint, self._model_name = model, fingerprint, model_name
        self.reply_settings = self.defaults = self.last_settings = reply_settings
        self._settings_before = reply_settings  # `reply_settings` when the newest reply began.
        self.reply_count = self.logprobs = 0
        self.thinking = True
        self._valid_ids: dict[int, bool] = {}
        self.switch_tree(Tree() if tree is None else tree)
        if system is not None:
            self.tree.set_system(system)

    def switch_model(self, opened: OpenedModel) -> None:
        """Continue with another model, whose defaults replace those of the model before.

        Raises:
            TemplateError, UsageError: its template fails on the conversation. Nothing has changed then.
        """
        before = self.model, self._fingerprint, self._model_name, self._valid_ids
        self.model, self._fingerprint, self._model_name = opened.model, opened.fingerprint, opened.name
        self._valid_ids = {}
        try:
            if self.turns:
                self.render(self.messages)
        except BaseException:
            self.model, self._fingerprint, self._model_name, self._valid_ids = before
            raise
        self.reply_settings = self.reply_settings.with_model_defaults(opened.defaults)
        self.defaults = self.defaults.with_model_defaults(opened.defaults)

    def switch_tree(self, tree: Tree) -> None:
        """Continue with another conversation."""
        self.tree = tree
        self.stopped_stats: list[Stats] = []
        self._valid_ids = {}
        self._unsent_question: int | None = None  # It did not fit; the next message replaces it.

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self.tree.system

    @system.setter
    def system(self, text: str | None) -> None:
        self.tree.set_system(text)

    @property
    def end(self) -> int | None:
        """Id of the turn that the next message follows: the head, or its parent if the head has no reply yet."""
        head = self.tree.head
        if head is not None and self.tree.node(head).role == "user":
            return self.tree.node(head).parent
        return head

    @property
    def messages(self) -> list[Message]:
        """What precedes the next message: the system prompt, if any, and every turn of the path."""
        return self.messages_to(self.end)

    @property
    def turns(self) -> list[Message]:
        """The same without the system prompt."""
        return [message for message in self.messages if message["role"] != "system"]

    def clear(self) -> None:
        """Start a new conversation; the system prompt and the settings stay."""
        self.tree.select(None)

    def ask(self, question: str) -> PendingReply:
        """Add a message of the user. It stays in the conversation however its reply ends."""
        return self._add_question(question, self.end, None)

    def retry(self, *, settings: ReplySettings | None = None, seed: int | None = None) -> PendingReply:
        """Ask for another reply to the last message, as an alternative.

        Args:
            settings: settings of this reply alone.
            seed: its seed; random if not given, even if one is set, because the same seed would give the same reply.

        Raises:
            UsageError: the conversation has no message yet.
        """
        chosen = self.reply_settings if settings is None else settings
        return self._pending(self.question().id, chosen, random_seed() if seed is None else seed)

    def continue_reply(self) -> PendingReply:
        """Continue the last reply where it was interrupted, or answer a message without a reply.

        The reply keeps its seed and settings, except those changed since, so that its text is the same as without the
        interruption.

        Raises:
            UsageError: the last reply is complete.
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
        thinks = reply.continued is not None and has_thought(reply.continued)
        options = replace(self.prompt_options(reply.settings), thinking=thinks or self.thinking)
        return self.model.prompt(self.messages_to(reply.end), continuing=reply.continuing, options=options)

    def prompt_options(self, reply_settings: ReplySettings) -> PromptOptions:
        """Return how to render prompts with `reply_settings`."""
        return PromptOptions(self.thinking, reply_settings["keep-thoughts"], reply_settings.template_variables)

    def render(self, messages: Sequence[Message], *, continuing: bool = False) -> Prompt:
        """Render `messages` with the settings of the conversation. Raises TemplateError, UsageError."""
        return self.model.prompt(messages, continuing=continuing, options=self.prompt_options(self.reply_settings))

    def stream(self, reply: PendingReply, prompt: Prompt, cancel: Cancel | None = None) -> Reply:
        """Generate `reply`. Its text stays in the conversation however it ends."""
        self._unsent_question = None
        received = PartialReply()
        try:
            for event in self.model.stream(prompt, reply.settings.request(reply.seed, self.logprobs), cancel):
                received.note(event)
                yield event
        finally:
            self._add_reply(reply, received)

    def continuable_turn(self) -> Node:
        """Return the turn that can be continued. Raises UsageError if no turn can."""
        if self.tree.head is None:
            raise self._nothing_left("there is nothing left to continue", "there is nothing to continue yet")
        last = self.tree.node(self.tree.head)
        if last.role == "assistant" and last.finish_reason == "stop":
            raise UsageError("the reply is complete: ask for more, or use /retry")
        if self._is_foreign(last) and has_thought(last):
            raise UsageError("the reply has a thought of another model, which this one cannot continue: use /retry")
        return last

    def question(self, number: int = 1) -> Node:
        """Return the last message of the user, or the `number`-th last. Raises UsageError if there are fewer."""
        return self._last("user", number)

    def reply(self, number: int = 1) -> Node:
        """Return the last reply, or the `number`-th last. Raises UsageError if there are fewer."""
        return self._last("assistant", number)

    def undo(self, number: int = 1) -> Node:
        """Remove the last `number` messages, with all that follows, from the path. Return the first one.

        Raises:
            UsageError: there are fewer.
        """
        if not self.tree.path():
            raise self._nothing_left("there is nothing left to undo", "there is nothing to undo yet")
        first = self.question(number)
        self.tree.select(first.parent)
        return first

    def redo(self) -> int:
        """Restore the turns that were undone last. Return how many. Raises UsageError if nothing was undone."""
        before = len(self.tree.path())
        self.tree.select(self.tree.tip(self.tree.head))
        if len(self.tree.path()) == before:
            raise UsageError("there is nothing to redo")
        return len(self.tree.path()) - before

    def edit_question(self, number: int, text: str) -> PendingReply:
        """Ask `text` instead of the `number`-th last message, which becomes an alternative. Raises UsageError."""
        return self._add_question(text, self.question(number).parent, "edited")

    def edit_reply(self, number: int, text: str) -> Node:
        """Add `text` as an alternative to the `number`-th last reply and continue from it. Raises UsageError."""
        edited, stats = self.reply(number), None
        if has_thought(edited) and CLOSING_TAG in text:
            thought = text.removesuffix(split_reply(text).answer)
            stats = {REASONING_TOKENS: len(self.model.encode(thought))}
        return self.tree.add("assistant", text, parent=edited.parent, note="edited", stats=stats)

    def alternatives(self) -> tuple[list[Node], int]:
        """Return the alternatives of the last turn that has any, and the index of the one on the path.

        Raises:
            UsageError: no turn has alternatives.
        """
        for node in reversed(self.tree.path()):
            siblings = self.tree.siblings(node.id)
            if len(siblings) > 1:
                return siblings, [sibling.id for sibling in siblings].index(node.id)
        raise UsageError("there are no alternatives yet: /retry and /edit create them")

    def select_alternative(self, index: int) -> Node:
        """Switch to the alternative with that index, and to the turns that last followed it. Raises UsageError."""
        siblings, _ = self.alternatives()
        if not 0 <= index < len(siblings):
            raise UsageError(f"there is no alternative {index + 1}: there are {len(siblings)}")
        self.tree.select(self.tree.tip(siblings[index].id))
        return siblings[index]

    def _last(self, role: str, number: int) -> Node:
        found = [node for node in self.tree.path() if node.role == role]
        one, many = ("message", "messages") if role == "user" else ("reply", "replies")
        if not found:
            if_new = "there is no message yet" if role == "user" else "there is no reply yet"
            raise (UsageError(if_new) if self.tree.path() else self._nothing_left(f"there is no {one} left", if_new))
        if not 1 <= number <= len(found):
            there_are = f"there is only 1 {one}" if len(found) == 1 else f"there are only {len(found)} {many}"
            raise UsageError(f"{there_are} ({number} counts back from the last one)")
        return found[-number]

    def _nothing_left(self, if_undone: str, if_new: str) -> UsageError:
        """Return the error for an empty path: `if_undone` if turns were undone, otherwise `if_new`."""
        return UsageError(f"{if_undone}: /redo restores undone turns" if self.tree.nodes else if_new)

    def messages_to(self, node_id: int | None) -> list[Message]:
        """Return the messages of the path that ends with `node_id`."""
        return self.tree.messages(node_id, partial(self._as_message, node_id))

    def _as_message(self, last: int | None, node: Node) -> Message:
        """Return a turn of the path to `last` as a message, so that no thought passes for an answer."""
        if self._is_foreign(node) and has_thought(node):
            return {"role": node.role, "content": reply_parts(node).answer}
        message = node.as_message(with_ids=self._has_valid_ids(node))
        if node.id != last and is_unfinished_thought(node) and CLOSING_TAG not in node.content:
            message["content"] += f"\n{CLOSING_TAG}"
        return message

    def _is_foreign(self, node: Node) -> bool:
        return node.model is not None and self._fingerprint not in (None, node.model)

    def _has_valid_ids(self, node: Node) -> bool:
        """Return whether a reply's token ids belong to this model and match its text: a file may claim anything."""
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
        self._unsent_question = question if continued is None else None  # Reset once its prompt fits.
        return PendingReply(question, reply_settings, seed, continued)

    def _add_reply(self, reply: PendingReply, received: PartialReply) -> None:
        continued, reply_settings = reply.continued, reply.settings
        done = received.done
        if done is None:
            text, token_ids, stats = self._interrupted_text(received, continued, reply_settings.stop)
        else:
            text, token_ids, stats = done.content, done.token_ids, asdict(done.stats)
        ended = done is not None and done.finish_reason != "cancelled"
        if not ended and not (received.tokens if continued is not None else text):
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
            stats=stats,
            model=self._fingerprint,
            model_name=self._model_name,
            # An interrupted reply that other turns follow stays in the tree as an alternative.
            replaces=None if continued is None or self.tree.children(continued.id) else continued.id,
        )
        self._valid_ids[node.id] = node.token_ids is not None
        self.reply_count += 1

    def _interrupted_text(
        self, received: PartialReply, continued: Node | None, stops: Sequence[str]
    ) -> tuple[str, Sequence[int], dict[str, object] | None]:
        """Return text, token ids and figures of a reply that ended without a Done event, cut at its stop string."""
        reasoning_tokens = received.reasoning_tokens
        if continued is not None and has_thought(continued):
            reasoning_tokens += (continued.stats or {})[REASONING_TOKENS]
        stats: dict[str, object] | None = {REASONING_TOKENS: reasoning_tokens} if reasoning_tokens else None
        if continued is not None and not self._has_valid_ids(continued):
            closed = f"\n{CLOSING_TAG}\n\n" if received.thought and received.answer else ""
            return f"{continued.content}{received.thought}{closed}{received.answer}", (), stats
        if not received.token_ids:  # From a server.
            return written_text(received.thought, received.answer), (), stats
        before = () if continued is None else continued.token_ids or ()
        token_ids = (*before, *received.token_ids)
        text = self.model.decode(token_ids)
        answer = split_reply(text).answer if reasoning_tokens else text
        end = min((answer.index(stop) for stop in stops if stop in answer), default=len(answer))
        return text[: len(text) - len(answer) + end], token_ids, stats
