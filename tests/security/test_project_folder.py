"""The program opens only its project file in a folder full of files that libraries and tools read."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwchat.cpu.kernels.kernel_store import KERNELS
from qwchat.models_folder import embedded_checkpoint, is_checkpoint
from tests.chat.pty import Terminal
from tests.quant.checkpoints import make_checkpoint
from tests.security.watching import AUDITED_PROGRAM, HAS_INOTIFY, FolderWatch, audit_events

ROOT = Path(__file__).resolve().parents[2]
PROJECT_FILE = ".qwchat.toml"
RAISE = "raise SystemExit('code of the folder was run')\n"
MODULES = (
    *("numba", "yaml", "numpy", "llvmlite", "rich", "typer", "click", "jinja2", "tokenizers", "huggingface_hub"),
    *("prompt_toolkit", "pygments", "platformdirs", "tomllib", "json", "readline", "sitecustomize", "usercustomize"),
    *("qwchat", "quant", "pickle", "_pyrepl", "shellingham", "llguidance", "wcwidth", "safetensors", "conftest"),
)
# Files by name; the contents of each would have an effect if they were read.
FILES = {
    ".numba_config.yaml": "cache_dir: cache\ndebug: 1\ndump_assembly: 1\n",
    ".env": "QWCHAT_CACHE=cache\nQWCHAT_MODELS=models\nNUMBA_CACHE_DIR=cache\nPYTHONPATH=.\n",
    ".envrc": "export QWCHAT_CACHE=cache\n",
    ".flaskenv": "QWCHAT_CACHE=cache\n",
    ".pdbrc": f"!{RAISE}",
    ".pythonrc.py": RAISE,
    ".inputrc": "set editing-mode vi\n",
    "pyvenv.cfg": "home = .\ninclude-system-site-packages = true\n",
    "evil.pth": "import sys; sys.exit('code of the folder was run')\n",
    "pip.conf": "[global]\nindex-url = http://127.0.0.1:1/\n",
    "setup.cfg": "[options]\n",
    "pyproject.toml": "[tool.qwchat]\nmodel = 'models/mini'\n",
    "config.toml": "model = 'models/mini'\n",
    "logging.conf": "[loggers]\nkeys=root\n",
    "llvm.cfg": "-load=evil.so\n",
    "libsvml.so": "not a library",
    "tokenizer.json": "{",
    "tokenizer_config.json": "{",
    "chat_template.jinja": "{{",
    "config.json": "{",
    "generation_config.json": "{",
    "manifest.json": "{",
    "model.safetensors": "nothing",
    "objects": "nothing",
    "history": "nothing",
    "cache/objects": "nothing",
    "mini/config.json": "{",
    "mini/model.safetensors": "nothing",
    "mini-q4/manifest.json": "{",
    "models/mini/config.json": "{",
    "models/mini/manifest.json": "{",
    "models/mini-q4/manifest.json": "{",
    "personas/pirate.toml": "system = 'Arr'\n",
    "sessions/3f9a1c20/session.jsonl": "{",
    "qwchat-0.1.dist-info/entry_points.txt": "[numba_extensions]\ninit = evil:init\n[pygments.lexers]\nx = evil:X\n",
    "qwchat-0.1.dist-info/METADATA": "Name: evil\nVersion: 1\n",
    "evil.py": RAISE,
}


class Bomb:
    """Object that leaves a trace when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch exploded",))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Return a hostile folder whose project file sets what it may set."""
    folder = tmp_path / "cloned"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(RAISE)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for name in ("bomb.nbi", "bomb.nbc", "bomb.pkl"):
        (folder / "cache" / name).write_bytes(pickle.dumps(Bomb()))
    (folder / "libcuda.so.1").write_bytes(b"\x7fELF")
    (folder / ".git").mkdir()
    (folder / PROJECT_FILE).write_text("temp = 0.5\n")
    return folder


class WatchedProgram:
    """The program, run in a folder that is watched.

    Args:
        tmp_path: folder of its script, its home and its report.
        hostile: working folder, which is watched.
        cache: folder of the compiled code.
    """

    def __init__(self, tmp_path: Path, hostile: Path, cache: Path) -> None:
        self.folder, self.report, home = hostile, tmp_path / "report", tmp_path / "home"
        self._script = tmp_path / "bin" / "qwchat"
        self._script.parent.mkdir()
        self._script.write_text(AUDITED_PROGRAM)
        home.mkdir()
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("QWCHAT_", "XDG_"))},
            "HOME": str(home),
            "QWCHAT_CACHE": str(cache),
            "PYTHONPATH": str(ROOT),
            "QWCHAT_MODELS": str(tmp_path / "models"),
            "TERM": "xterm-256color",
        }
        self._before = {path: path.lstat().st_mtime_ns for path in sorted(hostile.rglob("*")) if path.is_file()}
        self.watch = FolderWatch(hostile)

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a run."""
        return [sys.executable, str(self._script), str(self.folder), str(self.report), *arguments]

    def run(self, *arguments: str) -> None:
        """Run the program to its end and check which files it opened."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self.check(*arguments)

    def chat(self) -> None:
        """Chat in a pseudo-terminal and check which files the program opened."""
        home = self._script.parent.parent / "terminal"
        with Terminal(
            models=home, command=self.command("chat"), folder=self.folder, variables=self._environment
        ) as terminal:
            terminal.prompt()
            terminal.type("Hello\r")
            terminal.wait(" decode ")
            terminal.type("/set te")
            terminal.type("\x15/quit\r")
            assert terminal.end() == 0
        self.check("chat")

    def check(self, *run: str) -> None:
        """Assert that only the project file was opened and that no file changed."""
        project = self.folder / PROJECT_FILE
        assert self.watch.opened() - {project} == set(), run
        assert [event for event in audit_events(self.report) if event[1] != str(project)] == [], run
        after = {path: path.lstat().st_mtime_ns for path in sorted(self.folder.rglob("*")) if path.is_file()}
        assert after == self._before, run
        self.watch.opened()  # Drop the events of this check.


pytestmark = pytest.mark.skipif(
    not is_checkpoint(embedded_checkpoint()), reason="models/mini holds no weights yet: models/recipe trains them"
)


@pytest.mark.skipif(not HAS_INOTIFY, reason="inotify is Linux's")
def test_the_watch_sees_what_is_opened_and_made(hostile: Path, tmp_path: Path) -> None:
    watch = FolderWatch(hostile)
    assert watch.opened() == set()
    (hostile / "models" / "mini" / "config.json").read_text()
    (hostile / "new").touch()
    assert watch.opened() == {hostile / "models" / "mini" / "config.json", hostile / "new"}
    watched = WatchedProgram(tmp_path, hostile, tmp_path / "cache")
    (hostile / ".env").read_text()
    with pytest.raises(AssertionError, match=r"\.env"):
        watched.check()


@pytest.mark.slow
@pytest.mark.timeout(900)  # Everything is compiled, possibly on a busy machine.
def test_first_runs_open_the_project_file_alone(tmp_path: Path, hostile: Path) -> None:
    watched = WatchedProgram(tmp_path, hostile, tmp_path / "cache")
    source = make_checkpoint(tmp_path / "tiny")
    watched.run("--help")
    watched.run("convert", str(source), str(tmp_path / "converted"), "--preset", "q8")
    watched.run("-p", "Hello", "--max-tokens", "2")


@pytest.mark.slow
def test_later_runs_open_the_project_file_alone(tmp_path: Path, hostile: Path) -> None:
    watched = WatchedProgram(tmp_path, hostile, KERNELS.folder.parent)
    for arguments in (
        ["-p", "Hello", "--max-tokens", "2"],
        ["list"],
        ["doctor"],
        ["config", "show"],
        ["sessions", "list"],
    ):
        watched.run(*arguments)
    watched.chat()


@pytest.mark.slow
def test_names_of_models_do_not_mean_folders_of_the_project(tmp_path: Path, hostile: Path) -> None:
    watched = WatchedProgram(tmp_path, hostile, KERNELS.folder.parent)
    watched.run("-m", "mini", "-p", "Hello", "--max-tokens", "1")
    assert (tmp_path / "models" / "mini-q4" / "manifest.json").is_file()
    shutil.rmtree(tmp_path / "models")
