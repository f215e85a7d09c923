"""README's first page, followed to the letter: a fresh clone, an empty home, and the stand-in of the hub.

Every command before the heading `Speed` runs as it is written, in order. Only what installs is replaced, because pip
would need a network: `python3 -m venv`, `pip`, `pipx` and `uv` are stand-ins that put the files of the clone where an
installation has them, and run them with this environment's Python and packages. The hub serves a tiny checkpoint
under the name of the repository that the page pulls.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from qwchat.store.catalogue import find_entry
from tests.clocks import PATIENCE_SECONDS
from tests.docs.pages import REPOSITORY, Block, blocks
from tests.quant.checkpoints import make_checkpoint
from tests.store.hub_server import HubState, serving

NAME = "qwen2.5:7b"
FIRST_START_SECONDS = 3 * PATIENCE_SECONDS  # Compiles the kernels.
INSTALL = """#!/bin/sh
# Stands in for {tool}: installs the folder that it is given into {site}, and the command into {bin}.
case "$*" in {arguments}) ;; *) echo "{tool} does not know: $*" >&2; exit 2 ;; esac
test -f pyproject.toml || exit 3
rm -rf {site} && mkdir -p {site} {bin}
cp -r qwchat quant {site}/ && mkdir {site}/qwchat/embedded && cp -r models/mini {site}/qwchat/embedded/mini
cat > {bin}/qwchat <<'END'
#!/bin/sh
PYTHONPATH={site} exec {python} -P -c "from qwchat.cli.main import main; main()" "$@"
END
chmod +x {bin}/qwchat
"""

pytestmark = pytest.mark.slow


def first_page() -> list[Block]:
    """Return the blocks of commands before the heading `Speed`."""
    file = REPOSITORY / "README.md"
    end = file.read_text(encoding="utf-8").splitlines().index("## Speed")
    return [block for block in blocks(file) if block.line < end and block.language in ("sh", "console")]


def write_tool(folder: Path, tool: str, arguments: str, site: Path, commands: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    quoted = {"site": shlex.quote(str(site)), "bin": shlex.quote(str(commands)), "python": shlex.quote(sys.executable)}
    (folder / tool).write_text(INSTALL.format(tool=tool, arguments=arguments, **quoted))
    (folder / tool).chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Clone the commit of this checkout, with the changes in its files; the model's weights come from the checkout."""
    folder = tmp_path / "clone"
    if not (REPOSITORY / ".git").exists():
        pytest.skip("this is not a checkout")
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(REPOSITORY), str(folder)], check=True)
    changed = subprocess.run(
        ["git", "ls-files", "-m", "-o", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in changed.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, folder / name)
    return folder


@pytest.fixture
def home(tmp_path: Path, clone: Path) -> Path:
    """Make an empty home, with stand-ins of the tools that install."""
    folder, tools = tmp_path / "home", tmp_path / "tools"
    folder.mkdir()
    venv = clone / ".venv"
    write_tool(tools, "pipx", '"install ."', folder / ".local/share/pipx/qwchat", folder / ".local/bin")
    write_tool(tools, "uv", '"tool install ."', folder / ".local/share/uv/qwchat", folder / ".local/bin")
    write_tool(tools / "venv", "pip", '"install ."', venv / "lib/site", venv / "bin")
    (tools / "python3").write_text(
        '#!/bin/sh\ntest "$1 $2 $3" = "-m venv .venv" || exit 2\n'
        f"mkdir -p .venv/bin && cp {shlex.quote(str(tools / 'venv/pip'))} .venv/bin/pip\n"
    )
    (tools / "python3").chmod(0o755)
    return folder


@pytest.fixture
def environment(home: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    entry = find_entry(NAME)
    assert entry is not None
    served = make_checkpoint(
        tmp_path / "served", shards=2, config_overrides={"hidden_size": 128, "max_position_embeddings": 512}
    )
    with serving(HubState({entry.repository: served})) as url:
        path = [str(home / ".local/bin"), str(home.parent / "tools"), "/usr/bin", "/bin"]
        yield {"HOME": str(home), "PATH": ":".join(path), "TERM": "dumb", "LANG": "C.UTF-8", "HF_ENDPOINT": url}


def chat(command: str, clone: Path, environment: dict[str, str]) -> None:
    """Run a chat in a terminal, ask a question, and leave with Ctrl-D."""
    process = pexpect.spawn(
        "bash", ["-c", command], env=environment, cwd=str(clone), timeout=FIRST_START_SECONDS, encoding="utf-8"
    )
    process.expect("Ctrl-D to leave")
    process.expect("> ")
    process.sendline("/set max-tokens 8")
    process.expect("max-tokens 8")
    process.expect("> ")
    process.sendline("hello")
    process.expect("tok/s|cut off")
    process.expect("> ")
    process.sendeof()
    process.expect(pexpect.EOF)
    process.close()
    assert process.exitstatus == 0


@pytest.mark.timeout(900)
def test_the_first_page_to_the_letter(clone: Path, environment: dict[str, str]) -> None:
    commands = [line for block in first_page() for line in lines(block)]
    assert [line.split()[0] for line in commands] == ["python3", "pipx", "qwchat", "qwchat", "qwchat"]
    pull, talk = (line.partition("#")[0].strip() for line in commands[3:])
    assert (pull, talk) == (f"qwchat pull {NAME}", f"qwchat chat -m {NAME}")
    for command in commands[:-1]:
        ran = subprocess.run(
            ["bash", "-e", "-c", command],
            cwd=clone,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FIRST_START_SECONDS,
            check=False,
        )
        assert ran.returncode == 0, (command, ran.stderr)
        if command.startswith("python3"):
            assert ran.stdout.startswith("I am mini, "), ran.stdout
    home = Path(environment["HOME"])
    [pulled] = [path for path in home.rglob("qwen2.5-7b-q4") if path.is_dir()]
    assert pulled.parent.is_relative_to(home / ".local/share")
    chat(commands[-1], clone, environment)
    # The other way to install that the page names.
    assert "# or: uv tool install ." in commands[1]
    install = [str(home.parent / "tools/uv"), "tool", "install", "."]
    assert subprocess.run(install, cwd=clone, env=environment, check=False).returncode == 0


def lines(block: Block) -> list[str]:
    """Return the commands of a block: all lines of a script, the first line of an example."""
    if block.language == "console":
        return [block.text.partition("\n")[0].removeprefix("$ ")]
    return block.text.splitlines()


def test_the_example_prints_what_is_shown() -> None:
    """Check that the example of the first page is one that `tests/docs/test_commands.py` compares with its output."""
    [example] = [block for block in first_page() if block.language == "console"]
    assert example.runs
