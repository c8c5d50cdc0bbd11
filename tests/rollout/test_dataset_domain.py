"""A user's data set as a domain: reading, columns, splits, order, and every way in which it can be refused."""

from __future__ import annotations

import csv
import datetime
import hashlib
import json
import pickle

import pytest

from cluster.spec.domains import DatasetDomain, ExactMatch, JsonSchemaVerifier, MultipleChoice
from rollout.domains import build_domain
from rollout.domains.dataset import Dataset, DatasetError, inspect, render

ROWS = [{"problem": f"what is {n}+1?", "answer": str(n + 1), "note": f"n{n}"} for n in range(200)]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.fixture
def spec(tmp_path):
    def make(rows=ROWS, suffix=".jsonl", **fields):
        return DatasetDomain(path=write(tmp_path / f"data{suffix}", rows), **fields)

    return make


def prompts(domain, split, first, count):
    return [domain.problem(split, index).messages[-1]["content"] for index in range(first, first + count)]


def faults(function, *arguments) -> list[dict]:
    with pytest.raises(DatasetError) as caught:
        function(*arguments)
    found = caught.value.details["faults"]
    assert all(one["pointer"].startswith("/") and one["detail"] in caught.value.message for one in found)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), DatasetError)
    return found


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_the_three_formats_give_the_same_problems(spec, suffix):
    domain = build_domain(spec(suffix=suffix, template="{problem} ({note})", system="be brief"), name="sums", seed=7)
    reference = build_domain(spec(template="{problem} ({note})", system="be brief"), name="sums", seed=7)
    assert [domain.problem("train", i) for i in range(50)] == [reference.problem("train", i) for i in range(50)]
    problem = domain.problem("train", 0)
    number = int(problem.answer) - 1
    assert problem.messages == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": f"what is {number}+1? (n{number})"},
    )
    assert (problem.problem_id, problem.solution) == ("sums/train/0", str(number + 1))
    assert domain.verify(problem, problem.solution).passed and not domain.verify(problem, "x").passed


def test_each_epoch_is_a_permutation_and_differs_from_the_last(spec):
    domain = Dataset(spec(), "sums", 7)
    size = domain.size("train")
    epochs = [prompts(domain, "train", epoch * size, size) for epoch in range(3)]
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == size for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert prompts(Dataset(spec(), "sums", 7), "train", 2 * size, size) == epochs[2]
    assert prompts(domain, "train", 0, size) == epochs[0]
    assert prompts(Dataset(spec(), "sums", 8), "train", 0, size) != epochs[0]


def test_the_hash_split_is_disjoint_of_the_wanted_size_and_the_same_for_every_seed(spec):
    splits = []
    for seed in (0, 1):
        domain = Dataset(spec(evaluation_fraction=0.3), "sums", seed)
        train, evaluation = (set(prompts(domain, split, 0, domain.size(split))) for split in ("train", "evaluation"))
        assert not train & evaluation and len(train) + len(evaluation) == 200
        assert 40 <= len(evaluation) <= 80
        splits.append(evaluation)
    assert splits[0] == splits[1]
    smaller = Dataset(spec(evaluation_fraction=0.1), "sums", 0)
    assert set(prompts(smaller, "evaluation", 0, smaller.size("evaluation"))) < splits[0]


def test_split_column_and_prompts_that_stand_in_both_splits(spec):
    rows = [{**row, "part": "evaluation" if index < 20 else "train"} for index, row in enumerate(ROWS[:60])]
    rows += [{**ROWS[3], "part": "train"}, {**ROWS[4], "part": "evaluation"}]
    given = spec(rows, columns={"split": "part"})
    domain = Dataset(given, "sums", 0)
    assert (domain.size("train"), domain.size("evaluation")) == (40, 20)
    assert set(prompts(domain, "evaluation", 0, 20)) == {row["problem"] for row in ROWS[:20]}
    assert inspect(given)["left_out"] == 2


def test_columns_are_mapped(spec):
    rows = [{"q": f"question {n}", "a": n, "why": f"because {n}", "problem": "decoy"} for n in range(50)]
    given = spec(rows, columns={"problem": "q", "answer": "a", "solution": "why"}, template="Q: {problem}")
    problem = Dataset(given, "d", 0).problem("train", 0)
    assert problem.messages[-1]["content"] == f"Q: question {problem.answer}"
    assert problem.solution == f"because {problem.answer}"


def test_csv_values_stay_text(spec):
    rows = [{"problem": f"p{n}", "answer": f"00{n}"} for n in range(30)]
    assert Dataset(spec(rows, ".csv"), "d", 0).problem("train", 0).answer.startswith("00")


def test_parquet_dates_become_text(spec):
    rows = [{"problem": f"p{n}", "answer": datetime.date(2024, 1, 1 + n)} for n in range(20)]
    problem = Dataset(spec(rows, ".parquet"), "d", 0).problem("train", 0)
    assert problem.answer == problem.solution and problem.answer.startswith("2024-01-")


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("{problem}", "two"),
        ("{note}: {problem}!", "a {problem}: two!"),
        ("{{note}} {0} {} { x }", "{note} {0} {} { x }"),
        ('{"a": {"b": 1}}', '{"a": {"b": 1}}'),
        ("{problem.__class__} {problem[0]} {problem!r} {problem:>9}", "{problem.__class__} {problem[0]} {problem!r} {problem:>9}"),
        ("{count} {parts}", '3 ["x"]'),
    ],
)
def test_templates_are_plain_replacement(template, rendered):
    row = {"q": "two", "note": "a {problem}", "count": 3, "parts": ["x"]}
    assert render(template, row, "q") == rendered


def test_inspect_tells_what_there_is(spec, tmp_path):
    given = spec()
    summary = inspect(given)
    assert summary["rows"] == 200 and summary["columns"] == ["problem", "answer", "note"]
    assert summary["train"] + summary["evaluation"] == 200 and summary["left_out"] == 0
    assert summary["sha256"] == hashlib.sha256((tmp_path / "data.jsonl").read_bytes()).hexdigest()
    relative = DatasetDomain(path="data.jsonl")
    assert inspect(relative, tmp_path) == summary


def test_missing_columns_are_all_named_with_those_that_exist(spec):
    given = spec(columns={"problem": "question", "answer": "target"}, template="{problem} {hint}")
    found = faults(inspect, given)
    assert [one["pointer"] for one in found] == ["/columns/problem", "/columns/answer", "/template"]
    assert found[0]["detail"] == "column 'question' does not exist; the columns are problem, answer, note"
    assert "'hint'" in found[2]["detail"]
    for suffix in (".csv", ".parquet"):
        assert len(faults(inspect, spec(suffix=suffix, columns={"problem": "x", "answer": "y"}))) == 2


def test_a_row_without_a_value(spec):
    found = faults(inspect, spec([*ROWS[:4], {"problem": "lonely"}, *ROWS[4:]]))
    assert found == [{"pointer": "/columns/answer", "detail": "row 5 has no value in column 'answer'"}]


def test_broken_json_lines_are_told_with_their_numbers(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"problem": "a", "answer": "b"}\n\n{"problem": \n[1, 2]\n{"problem": "\xff"}\n')
    found = [one["detail"] for one in faults(inspect, DatasetDomain(path=str(path)))]
    assert [detail.split(" is ")[0] for detail in found] == ["data.jsonl line 3", "data.jsonl line 4", "data.jsonl line 5"]
    assert "an object is needed" in found[1]


def test_broken_csv_lines_are_told_with_their_numbers(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('problem,answer\na,b\nc\nd,e,f\n"g"h,i\n')
    found = [one["detail"] for one in faults(inspect, DatasetDomain(path=str(path)))]
    assert found[0] == "data.csv line 3 has 1 fields, the header has 2"
    assert found[1] == "data.csv line 4 has 3 fields, the header has 2"
    assert found[2].startswith("data.csv line 5 is not CSV")


def test_a_parquet_file_that_is_none(tmp_path):
    path = tmp_path / "data.parquet"
    path.write_bytes(b"not parquet")
    assert "not a Parquet file" in faults(inspect, DatasetDomain(path=str(path)))[0]["detail"]


def test_a_file_that_does_not_exist(tmp_path):
    found = faults(inspect, DatasetDomain(path=str(tmp_path / "nowhere.csv")))
    assert found[0]["pointer"] == "/path" and "does not exist" in found[0]["detail"]


def test_empty_splits(spec, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    found = faults(inspect, DatasetDomain(path=str(tmp_path / "empty.jsonl")))
    assert [one["detail"] for one in found] == ["the train split is empty (0 rows in all)", "the evaluation split is empty (0 rows in all)"]
    all_train = [{**row, "part": "train"} for row in ROWS]
    found = faults(Dataset(spec(all_train, columns={"split": "part"}), "d", 0).size, "train")
    assert found == [{"pointer": "/columns/split", "detail": "the evaluation split is empty (200 rows in all)"}]


def test_values_that_can_never_be_right(spec):
    rows = [{"problem": f"p{n}", "answer": "ABCX"[n % 4], "part": "train" if n != 2 else "test"} for n in range(8)]
    found = faults(inspect, spec(rows, columns={"split": "part"}, verifier=MultipleChoice()))
    assert [one["pointer"] for one in found] == ["/columns/split", "/columns/answer", "/columns/answer"]
    assert "row 3" in found[0]["detail"] and "'test'" in found[0]["detail"]
    assert found[1]["detail"].startswith("row 4: the answer 'X'")
    broken = [{"problem": f"p{n}", "answer": '{"type": "nonsense"}'} for n in range(50)]
    assert len(faults(inspect, spec(broken, verifier=JsonSchemaVerifier()))) == 20


def test_rows_do_not_travel_to_verifier_processes(spec):
    domain = Dataset(spec(verifier=ExactMatch()), "sums", 0)
    problem = domain.problem("train", 0)
    sent = pickle.dumps(domain)
    assert len(sent) < 5_000
    assert pickle.loads(sent).verify(problem, problem.answer).passed


def test_a_hugging_face_id_needs_a_revision():
    assert faults(inspect, DatasetDomain(id="someone/something"))[0]["pointer"] == "/revision"


def test_a_hugging_face_id_that_cannot_be_reached(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError) as caught:
        inspect(DatasetDomain(id="someone/something", revision="abc123"))
    assert caught.value.reason == "dataset_unavailable"
    assert "someone/something" in caught.value.message and "abc123" in caught.value.message


def test_a_hugging_face_id_is_read_at_its_revision(monkeypatch):
    import datasets

    asked = []

    def load(*given, **options):
        asked.append((given, options))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    summary = inspect(DatasetDomain(id="a/b", revision="abc", subset="main", hub_split="test"))
    assert asked == [(("a/b", "main"), {"split": "test", "revision": "abc"})]
    assert summary["rows"] == 200 and summary["columns"] == ["problem", "answer", "note"] and len(summary["sha256"]) == 64
