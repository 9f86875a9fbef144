"""A user's own texts, from the table to the words that were distilled."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import ROOT, Run, python

FEW = (
    "data.max_length=6",
    "data.embedding_dim=8",
    "synthetic.steps=1",
    "synthetic.epochs=2",
    "outer.steps=4",
    "outer.score_every=2",
)
SETTINGS = [flag for setting in (*FEW, "outer.batch=16") for flag in ("--set", setting)]


def films(path: Path, separator: str = ",") -> Path:
    """Sixty films in a table."""
    rows = [("id", "said", "kind")]
    for index in range(60):
        kind = ("good", "bad")[index % 2]
        word = {"good": ("fine", "great", "a joy"), "bad": ("dull", "poor", "a bore")}[kind][index % 3]
        rows.append((str(index), f"film {index} was {word}", kind))
    path.write_text("\n".join(separator.join(row) for row in rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path: Path) -> str:
    """The name of a dataset."""
    return f"csv:{films(tmp_path / 'films.csv')}?text=said&label=kind"


def test_texts_are_distilled_scored_and_read(run: Run, table: str, work: Path) -> None:
    code, out, err = run("distill", "--dataset", table, "--arch", "TextConvNet", "--out", "set", *SETTINGS)
    assert (code, out.splitlines()[0]) == (0, f"2 samples saved in {work / 'set'}"), err
    code, out, err = run("evaluate", "set", "--nets", 2, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [score["protocol"] for score in found["scores"]] == ["as-distilled", "retrain", "decoded"]
    assert [score["n"] for score in found["scores"]] == [2, 2, 2]
    code, out, err = run("evaluate", "set", "--nets", 2, "--split", "test")
    assert code == 0 and "decoded to words" in out
    code, out, err = run("preview", "set")
    assert code == 0 and "sentence 2 ·" in out and "good:" in out
    assert run("preview", "set", "--out", "words.txt")[:2] == (0, "words.txt\n")
    assert Path("words.txt").read_text(encoding="utf-8") == out.removesuffix("\n")
    main = ("-c", "from ddray.cli import main; main()")
    ran = python(*main, "preview", "set", cwd=work, env={"PYTHONIOENCODING": "ascii"})  # it has no middle dot
    assert (ran.returncode, ran.stderr) == (0, "") and "sentence 2 \\xb7" in ran.stdout


def test_a_set_is_judged_wherever_its_table_is_now(run: Run, refused: Callable[..., str], work: Path) -> None:
    films(work / "films.csv")
    flags = ("--arch", "TextConvNet", "--out", "set", *SETTINGS)
    assert run("distill", "--dataset", "csv:films.csv?text=said&label=kind", *flags).status == 0
    (work / "elsewhere").mkdir()
    (work / "films.csv").rename(work / "elsewhere/moved.csv")
    assert "films.csv" in refused("evaluate", "set", "--nets", 2, "--no-baselines")
    name = ("--dataset", "csv:elsewhere/moved.csv?text=said&label=kind")
    code, out, err = run("evaluate", "set", "--nets", 2, "--no-baselines", *name)
    assert code == 0 and "as distilled" in out, err
    other = films(work / "other.csv")
    other.write_text(other.read_text(encoding="utf-8").replace("dull", "grim"), encoding="utf-8")
    said = refused("evaluate", "set", "--dataset", "csv:other.csv?text=said&label=kind")
    assert "csv:other.csv" in said and "is not the one this set was made from" in said
    assert "dataset: '' is refused" in refused("evaluate", "set", "--dataset", "")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("csv:{films}?text=said&label=sort", "its columns are 'id', 'said', 'kind'"),
        ("csv:{films}?text=said", "lacking: ['label']"),
        ("csv:{none}?text=said&label=kind", "can be read"),
        ("csv:{latin}?text=said&label=kind", "line 3 is not utf-8"),
        ("csv:{one}?text=said&label=kind", "two classes"),
        ("csv:{empty}?text=said&label=kind", "line 3"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(
    name: str, line: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    files = {"films": films(tmp_path / "films.csv"), "none": tmp_path / "none.csv"}
    contents = {
        "latin": b"said,kind\na,x\nna\xefve,y\n",
        "one": b"said,kind\na,x\nb,x\n",
        "empty": b"said,kind\na,x\n  ,y\n",
    }
    for key, content in contents.items():
        files[key] = tmp_path / f"{key}.csv"
        files[key].write_bytes(content)
    said = refused("distill", "--dataset", name.format(**files), "--arch", "TextConvNet", "--out", "set", *SETTINGS)
    assert line in said


@pytest.mark.parametrize(
    ("arch", "settings", "line"),
    [
        ("TextConvNet", ["data.max_length=4"], "data.max_length: 4 is refused: at least 5"),
        ("TextConvNet", ["data.max_length=0"], "data.max_length"),
        ("TextConvNet", ["data.vocab_size=2"], "data.vocab_size"),
        ("TextConvNet", ["data.vectors=glove.9B.7d"], "data.vectors: 'glove.9B.7d' is refused: a file that exists"),
        ("TextConvNet", ["data.vectors={ragged}"], "line 2 has 1 numbers where the first has 2"),
        ("TextConvNet", ["data.vectors={foreign}"], "a vector for at least one of the"),
        ("LeNet", [], "it takes images"),
        ("Transformer", ["network.args.heads=3"], "heads divide"),
        ("TextConvNet", ["labels.softmax=true"], "one logit has no softmax"),
    ],
)
def test_settings_that_texts_cannot_take_are_one_line(
    arch: str, settings: list[str], line: str, refused: Callable[..., str], table: str, tmp_path: Path
) -> None:
    files = {"ragged": tmp_path / "ragged.txt", "foreign": tmp_path / "foreign.txt"}
    files["ragged"].write_text("film 1 2\nwas 1\n", encoding="utf-8")
    files["foreign"].write_text("sjön 1 2\n", encoding="utf-8")
    flags = [*SETTINGS, *(flag for setting in settings for flag in ("--set", setting.format(**files)))]
    assert line in refused("distill", "--dataset", table, "--arch", arch, "--out", "set", *flags)


def test_images_have_no_length_of_a_sentence(refused: Callable[..., str]) -> None:
    said = refused("distill", "--dataset", "digits", "--arch", "LeNet", "--out", "set", "--set", "data.max_length=9")
    assert "data.max_length: 9 is refused: for text alone" in said


SPACE = """\
dataset: {table}
arch: TextConvNet
fixed: {{data.embedding_dim: 8, outer.steps: 4, outer.batch: 16, synthetic.steps: 1, synthetic.epochs: 1, outer.score_every: 2}}
search:
  data.max_length: {{int: [{shortest}, 6]}}
  data.vocab_size: {{choice: [4, 20]}}
constraints: [stored_bytes <= 500]
trials: 2
"""


def test_texts_are_searched_by_length_and_vocabulary(run: Run, table: str, work: Path, migrated: Path) -> None:
    shutil.copy(migrated, work / "mlflow.db")
    (work / "space.yaml").write_text(SPACE.format(table=json.dumps(table), shortest=5), encoding="utf-8")
    ran = python(ROOT / "run_search.py", "space.yaml", "--name", "films", "--tracking-uri", "sqlite:///mlflow.db", cwd=work)
    assert ran.returncode == 0, ran.stderr
    assert "decoded to words" in ran.stdout and "2 finished" in ran.stdout
    assert "sentence 2 ·" in (work / "sweeps/films/best.txt").read_text(encoding="utf-8")
    kind = ("--dataset", table, "--arch", "TextConvNet")
    code, _, err = run("best", *kind, "--tracking-uri", "sqlite:///mlflow.db", "--out", "home")
    assert code == 0, err
    assert run("preview", "home")[1].startswith(table)
    (work / "here/glove").mkdir(parents=True)
    (work / "here/glove/glove.6B.8d.txt").write_text("film" + 8 * " 1" + "\n", encoding="utf-8")
    code, _, err = run("search", "--name", "films", "--resume", "--trials", "3", "--data", "here")
    assert code == 2 and "the word vectors" in err and len(err.splitlines()) == 1


def test_a_space_with_sentences_too_short_for_the_network_is_refused(run: Run, table: str, work: Path) -> None:
    (work / "space.yaml").write_text(SPACE.format(table=json.dumps(table), shortest=4), encoding="utf-8")
    code, out, err = run("search", "space.yaml", "--dry-run")
    assert (code, out) == (2, "") and "search.data.max_length: 4 is refused" in err and len(err.splitlines()) == 1
    code, _, err = run("search", "space.yaml", "--dry-run", "--set", "data.max_length=9")
    assert code == 2 and "nothing in the space satisfies it" in err  # 2 × 9 × 8 numbers are more than 500 bytes
