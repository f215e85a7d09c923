"""`qwchat eval` and the adapter compute what lm-evaluation-harness computes with transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import quant
import qwchat
from qwchat.evaluation.choice_summary import summarise
from qwchat.evaluation.multiple_choice import answer_all, read_tasks
from tests.clocks import PATIENCE_SECONDS
from tests.evaluation.choice_tasks import write_tasks
from tests.oracle.reference import torch, transformers

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra `eval`)")
pytest.importorskip("accelerate", reason="accelerate is not installed")

MINI = Path(__file__).resolve().parents[2] / "models" / "mini"
CONTEXT = 1024
NAMES = {"elementary_mathematics_test": ".csv", "law_val": ".csv", "plain": ".jsonl"}
LETTERED = """
doc_to_choice: ["A", "B", "C", "D"]
metric_list: [{metric: acc}]
doc_to_text: "{{question.strip()}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nD. {{choices[3]}}\\n"""
TASKS = {
    "elementary_mathematics_test": LETTERED
    + 'Answer:"\ndescription: "The following are multiple choice questions (with answers) about elementary mathematics.'
    '\\n\\n"\n',
    "law_val": LETTERED + '答案："\ndescription: "以下是中国关于法学的单项选择题，请选出其中的正确答案。\\n\\n"\n',
    "plain": """
doc_to_text: "Question: {{question.strip()}}\\nAnswer:"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]
""",
}
TASK = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/NAME.test, dev: FOLDER/NAME.dev}}
test_split: test
fewshot_split: dev
fewshot_config: {sampler: first_n}
output_type: multiple_choice
doc_to_target: answer
"""


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
            patch.setenv(name, "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the tasks, which the harness gets as JSON Lines."""
    folder = tmp_path_factory.mktemp("tasks")
    tasks = write_tasks(folder)
    for kind, name in (("test", "plain.jsonl"), ("dev", "plain_dev.jsonl")):
        file = folder / kind / name
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        file.write_text("".join(json.dumps(each | {"subject": "plain"}) + "\n" for each in lines), "utf-8")
    for task in read_tasks([tasks / f"{name}{ending}" for name, ending in NAMES.items()], 1, None, None):
        name = task.file.path.stem
        (folder / f"{name}.yaml").write_text(
            TASK.replace("NAME", name).replace("FOLDER", str(folder)) + TASKS[name], "utf-8"
        )
        assert task.examples is not None
        for split, questions in (("test", task.questions), ("dev", task.examples.questions)):
            objects = [{"question": each.text, "choices": each.choices, "answer": each.answer} for each in questions]
            (folder / f"{name}.{split}").write_text("".join(json.dumps(each) + "\n" for each in objects))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "dense"
    list(quant.convert(MINI, path, preset="dense"))
    return path


@pytest.fixture(scope="module")
def adapter(model: Path) -> Any:
    from qwchat.harness import QwchatLM

    return QwchatLM(str(model), ctx=CONTEXT, threads=1)


@pytest.fixture(scope="module")
def reference() -> Any:
    from lm_eval.models.huggingface import HFLM

    model = transformers.AutoModelForCausalLM.from_pretrained(MINI, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINI)
    return HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", max_length=CONTEXT)


def harness(lm: Any, folder: Path, *, chat: bool) -> Any:
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(
        model=lm,
        tasks=list(NAMES),
        num_fewshot=1,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        log_samples=True,
        bootstrap_iters=0,
    )


@pytest.mark.parametrize("chat", [False, True])
def test_answers_are_those_of_the_harness(folder: Path, model: Path, adapter: Any, reference: Any, chat: bool) -> None:
    tasks = read_tasks([folder / "test" / f"{name}{ending}" for name, ending in NAMES.items()], 1, None, None)
    with qwchat.load(model, context=CONTEXT, kv="f32", threads=1) as opened:
        own = {(each.task, each.index): each.answer for each in answer_all(opened, tasks, chat=chat)}
    figures = summarise(tasks, own).tasks
    for lm in (adapter, reference):
        theirs = harness(lm, folder, chat=chat)
        for number, name in enumerate(NAMES):
            samples = sorted(theirs["samples"][name], key=lambda sample: sample["doc_id"])
            assert len(samples) == len(tasks[number].questions)
            for index, sample in enumerate(samples):
                answer = own[number, index]
                assert [total for total, _ in sample["filtered_resps"]] == pytest.approx(
                    list(answer.log_likelihoods), abs=1e-4
                )
                assert [greedy for _, greedy in sample["filtered_resps"]] == list(answer.greedy)
            for metric in ("acc", "acc_norm", "acc_bytes"):
                estimate = getattr(figures[number], metric)
                expected = theirs["results"][name].get(f"{metric},none")
                assert (None if estimate is None else estimate.value) == expected


def requests(*arguments: Any) -> list[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


def test_other_requests_are_answered_as_with_transformers(adapter: Any, reference: Any) -> None:
    text = (MINI.parent.parent / "README.md").read_text("utf-8")
    assert len(adapter.tok_encode(text)) > CONTEXT
    rolling = requests((text,), ("Two words.",), ("",))
    own, theirs = (lm.loglikelihood_rolling(rolling, disable_tqdm=True) for lm in (adapter, reference))
    assert own == pytest.approx(theirs, rel=1e-5, abs=1e-4)
    pairs = requests(("", "Hello"), ("What is 7 + 8? ", "15"), (text, " end"), ("<|im_start|>user\nHi", "<|im_end|>"))
    own, theirs = (lm.loglikelihood(pairs, disable_tqdm=True) for lm in (adapter, reference))
    assert [total for total, _ in own] == pytest.approx([total for total, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in own] == [greedy for _, greedy in theirs]
    prompt = adapter.apply_chat_template([{"role": "user", "content": "What is 7 + 8?"}])
    assert prompt == reference.apply_chat_template([{"role": "user", "content": "What is 7 + 8?"}])
    begun = [{"role": "user", "content": "What is 7 + 8?"}, {"role": "assistant", "content": "7 + 8"}]
    assert adapter.apply_chat_template(begun, False) == reference.apply_chat_template(begun, False)
    greedy = requests((prompt, {"until": ["\n\n"], "max_gen_toks": 40}), (text, {"until": [" "], "max_gen_toks": 8}))
    own, theirs = (lm.generate_until(greedy, disable_tqdm=True) for lm in (adapter, reference))
    assert own == theirs
    assert "15" in own[0]


def test_the_command_line_of_the_harness_knows_the_model(folder: Path, model: Path) -> None:
    arguments = ["run", "--model", "qwchat", "--model_args", f"pretrained={model},ctx={CONTEXT},threads=1"]
    arguments += ["--tasks", "plain", "--include_path", str(folder), "--num_fewshot", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "qwchat.harness", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if "acc_bytes" in line]
    (task,) = read_tasks([folder / "test" / "plain.jsonl"], 1, None, None)
    with qwchat.load(model, context=CONTEXT, kv="f32", threads=1) as opened:
        own = {(0, each.index): each.answer for each in answer_all(opened, [task], chat=False)}
    expected = summarise([task], own).overall.acc_bytes
    assert expected is not None
    assert [float(cell) for cell in rows[0] if cell.startswith(("0.", "1."))][:1] == [round(expected.value, 4)]
