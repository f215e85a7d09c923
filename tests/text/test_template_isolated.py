"""Templates of unknown origin run in a separate process that ends, whatever they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwchat.errors import TemplateError
from qwchat.messages import Message
from qwchat.text.template import CHATML, ChatTemplate, isolated
from qwchat.text.template.published import is_published
from qwchat.text.template.sandbox import SandboxedTemplate
from tests.clocks import PATIENCE_SECONDS, wait_for
from tests.text.test_template_hostile import HOSTILE

REPOSITORY = Path(__file__).resolve().parents[2]
HELLO = [Message(role="user", content="hello")]
UNKNOWN = "{# not a published one #}{% for m in messages %}{{ m.content }}{% endfor %}"
BUSY_IN_C = "('a' * 10**6).rfind('ab' + 'a' * (5 * 10**5))"
"""Expression that the sandbox refuses, and that Python cannot interrupt."""

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a process as only Linux does")


def program_with_hole(expression: str) -> str:
    """Return the program of the worker with a sandbox that lets a template evaluate `expression`."""
    return (
        "import os, sys; sys.path += sys.argv[1:]; from qwchat.text.template import worker; "
        "worker.SandboxedTemplate = type('Hole', (), {'__init__': lambda self, *a: None, 'render': "
        f"lambda self, variables, length: str(variables['messages'] and ({expression}))}}); worker.main()"
    )


@pytest.fixture
def hole(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ChatTemplate]]:
    """Return a function that creates a template which escapes the sandbox to evaluate one expression."""
    process = isolated._WorkerProcess()
    monkeypatch.setattr(isolated, "_WORKER", process)

    def make(expression: str) -> ChatTemplate:
        process.kill()
        monkeypatch.setattr(isolated, "_PROGRAM", program_with_hole(expression))
        return ChatTemplate(UNKNOWN, "model")

    yield make
    process.kill()


def run(program: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def test_published_templates_need_no_process() -> None:
    program = (
        "import sys; from qwchat.text.template import CHATML, ChatTemplate; "
        "print(len(ChatTemplate().render([{'role': 'user', 'content': 'hello'}])), "
        "'qwchat.text.template.isolated' in sys.modules)"
    )
    assert run(program).communicate()[0] == "55 False\n"
    assert is_published(CHATML)
    assert is_published(CHATML.replace("\n", "\r\n") + "\n")
    assert not is_published(CHATML + " ")
    assert not is_published(UNKNOWN)


def test_templates_of_the_family_are_published(qwen2_folder: Path, shared_qwen2: Path) -> None:
    for source in (
        ChatTemplate.from_folder(qwen2_folder).source,
        ChatTemplate.from_folder(REPOSITORY / "models" / "mini").source,
        (shared_qwen2 / "qwen2.5-instruct-chat-template.jinja").read_text(),
    ):
        assert is_published(source)


def test_the_process_renders_what_the_sandbox_renders() -> None:
    source = "{{ messages | tojson }}{{ bos_token }}{% for m in messages %}{{ m.content ~ loop.index }}{% endfor %}"
    odd = [Message(role="user", content="\ud83d\ude00 \udfff \U0001f600 \x00\n"), *HELLO]
    variables = {"messages": [dict(message) for message in odd], "bos_token": "<s>"}
    expected = SandboxedTemplate(source, "model").render(variables, 100)
    assert ChatTemplate(source, "model", {"bos_token": "<s>"}).render(odd) == expected


def test_this_process_does_not_load_the_template_engine() -> None:
    program = (
        "import sys; from qwchat.text.template import ChatTemplate; "
        "print(ChatTemplate('x{{ 1 }}').render([{'role': 'user', 'content': 'hello'}]), 'jinja2' in sys.modules)"
    )
    assert run(program).communicate()[0] == "x1 False\n"


@pytest.mark.parametrize("name", ["class", "repeat", "nested by arguments", "ifs", "double by json", "searching"])
def test_errors_are_those_of_the_sandbox(name: str) -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate(HOSTILE[name], "model").render(HELLO)
    message = str(caught.value)
    assert message.startswith("the chat template in model cannot be used: it ")
    assert message.endswith(": restore the template from the model's source")
    assert "\n" not in message


def test_a_refusal_names_its_reason_alone() -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate("{{ raise_exception('Roles must\nalternate') }}", "model").render(HELLO)
    assert str(caught.value) == (
        "the chat template in model cannot be used: it refuses this conversation: Roles must alternate"
    )


def test_a_loop_in_c_ends(hole: Callable[[str], ChatTemplate], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "CPU_BASE", 0.2)
    with pytest.raises(
        TemplateError,
        match="in model cannot be used: it runs longer than any chat template needs: restore the template",
    ):
        hole(BUSY_IN_C).render(HELLO)


@pytest.mark.slow
def test_a_waiting_template_ends(hole: Callable[[str], ChatTemplate], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "WALL_BASE", 0.5)
    with pytest.raises(TemplateError, match="it runs longer than any chat template needs"):
        hole("__import__('time').sleep(1000)").render(HELLO)


@needs_linux
@pytest.mark.parametrize("expression", ["len('a' * 10**10)", "len([[0] * 10**6 for _ in range(10**6)])"])
def test_memory_has_a_limit(hole: Callable[[str], ChatTemplate], expression: str) -> None:
    with pytest.raises(TemplateError, match=r"in model cannot be used: .* ran out of memory: restore the template"):
        hole(expression).render(HELLO)


def test_a_huge_reply_is_not_read(hole: Callable[[str], ChatTemplate], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "REPLY_BASE", 1 << 20)
    with pytest.raises(TemplateError, match="it creates more text than any chat template needs"):
        hole("'a' * (1 << 21)").render(HELLO)


def test_no_file_can_be_opened(hole: Callable[[str], ChatTemplate]) -> None:
    with pytest.raises(TemplateError, match="its process ended with code"):
        hole("open('/etc/passwd').read()").render(HELLO)
    assert hole("dict(os.environ)").render(HELLO) in ("{}", "{'LC_CTYPE': 'C.UTF-8'}")
    assert hole("os.getpgid(0) == os.getpid()").render(HELLO) == "True"


def test_after_a_kill_another_process_answers(hole: Callable[[str], ChatTemplate]) -> None:
    template = hole("os._exit(7) if 'die' in variables['messages'][0]['content'] else 'alive'")
    assert template.render(HELLO) == "alive"
    with pytest.raises(TemplateError, match=r"its process ended with code 7"):
        template.render([Message(role="user", content="die")])
    assert template.render(HELLO) == "alive"


def test_the_working_folder_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_WORKER", isolated._WorkerProcess())
    for name in ("json", "jinja2", "qwchat", "sitecustomize", "usercustomize", "resource"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write({name!r})\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "json.py"))
    assert ChatTemplate(UNKNOWN, "model").render(HELLO) == "hello"
    assert not (tmp_path / "ran").exists()
    isolated._WORKER.kill()


DRIVER = f"""
import sys
from qwchat.cli.guard import run_guarded
from qwchat.text.template import ChatTemplate, isolated
isolated.CPU_BASE = isolated.WALL_BASE = 300
isolated._PROGRAM = sys.argv[1]
template = ChatTemplate({UNKNOWN!r}, "model")
print(isolated._WORKER._running.pid, flush=True)
def use():
    template.render([{{"role": "user", "content": "hello"}}])
    return 0
if len(sys.argv) > 2:
    import signal
    signal.signal(signal.SIGINT, lambda number, frame: None)
sys.exit(run_guarded(use, debug=False))
"""


def start_busy_template(*arguments: str) -> tuple[subprocess.Popen[str], int]:
    """Start a program whose template keeps C code busy for five minutes. Return it and the id of its worker."""
    words = [sys.executable, "-c", DRIVER, program_with_hole(BUSY_IN_C), *arguments]
    driver = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    worker = int(driver.stdout.readline())
    wait_for(lambda: processor_time(worker) > 20, "work")  # ticks of 10 ms: the worker is busy
    return driver, worker


def processor_time(process: int) -> int:
    """Return the ticks of processor time that a process has used, or 0 if it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@needs_linux
@pytest.mark.parametrize("arguments", [(), ("a handler that only notes it, as during a reply",)])
@pytest.mark.slow
def test_ctrl_c_ends_the_program_and_the_process(arguments: tuple[str, ...]) -> None:
    driver, worker = start_busy_template(*arguments)
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=PATIENCE_SECONDS)
    assert driver.returncode == 130
    assert errors == "qwchat: interrupted\n"
    assert has_ended(worker)


@needs_linux
def test_an_idle_process_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import time; from qwchat.text.template import ChatTemplate, isolated; "
        f"ChatTemplate({UNKNOWN!r}); print(isolated._WORKER._running.pid, flush=True); time.sleep(300)"
    )
    parent = run(program)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert not has_ended(worker)
    parent.kill()
    parent.wait()
    wait_for(lambda: has_ended(worker), "the end of the process")


@needs_linux
def test_a_fork_does_not_share_the_process() -> None:
    ChatTemplate(UNKNOWN, "model").render(HELLO)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = ChatTemplate(UNKNOWN, "model").render([Message(role="user", content="from the child")])
        os.write(writer, answer.encode())
        isolated._WORKER.kill()
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"from the child"
    assert ChatTemplate(UNKNOWN, "model").render(HELLO) == "hello"
