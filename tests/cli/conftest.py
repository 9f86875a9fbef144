"""Commands run in this process where that is enough; a small dataset, a set and a sweep that are made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from command_line import HERE, ROOT, SMALL, SPACE, Ran, Run, Sweep, python, tree, write_npz

from ddray.cli import status


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to work in, with nothing of the user's around it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def command(*arguments: object) -> Ran:
        capsys.readouterr()
        code = status([str(a) for a in arguments])
        return Ran(code, *capsys.readouterr())

    return command


@pytest.fixture
def refused(run: Run, work: Path) -> Callable[..., str]:
    """Runs a command that must be refused: status 2, one line, nothing left behind. Gives the line back."""

    def command(*arguments: object) -> str:
        before = tree(work)
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), err
        assert err.startswith("ddray: ") and err.endswith("\n") and len(err.splitlines()) == 1, err
        assert tree(work) == before
        return err

    return command


@pytest.fixture(scope="session")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 28×28 images."""
    return write_npz(tmp_path_factory.mktemp("data") / "toy.npz")


@pytest.fixture(scope="session")
def made_set(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of six images for a random LeNet, made by `ddray distill`; nobody writes to it."""
    out = tmp_path_factory.mktemp("made") / "set"
    assert status(["distill", "--dataset", str(npz), "--arch", "LeNet", "--out", str(out), *SMALL]) == 0
    return out


@pytest.fixture
def own_set(made_set: Path, work: Path) -> Path:
    """A copy of the set, for one test."""
    return Path(shutil.copytree(made_set, work / "set"))


@pytest.fixture(scope="session")
def sweep(npz: Path, migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A real sweep, run as a user does: `python run_search.py`, in a directory of his own with his own network."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(HERE / "tiny_net.py", home)
    (home / "record").mkdir()
    shutil.copy(migrated, home / "record" / "mlflow.db")
    (home / "space.yaml").write_text(SPACE.format(npz=npz), encoding="utf-8")
    flags = ("--trials", "2", "--name", "toy", "--tracking-uri", "sqlite:///record/mlflow.db", "--max-concurrent", "1")
    return Sweep(home, python(ROOT / "run_search.py", "space.yaml", *flags, cwd=home))


@pytest.fixture
def record(sweep: Sweep) -> Sequence[str]:
    """The sweep's record, as a flag."""
    assert sweep.ran.returncode == 0, sweep.ran.stderr
    return ("--tracking-uri", f"sqlite:///{sweep.home / 'record' / 'mlflow.db'}")


@pytest.fixture
def sweep_copy(sweep: Sweep, work: Path) -> Path:
    """A copy of the sweep with its space in the working directory, for one test."""
    assert sweep.ran.returncode == 0, sweep.ran.stderr
    shutil.copytree(sweep.home, work, dirs_exist_ok=True)
    return work


@pytest.fixture(scope="session")
def fixed_made(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set for one known network of the user's own."""
    out = tmp_path_factory.mktemp("fixed") / "set"
    flags = ("--dataset", str(npz), "--arch", "tiny_net:TinyNet", "--out", str(out), "--set", "network.source=fixed")
    assert status(["distill", *flags, *SMALL]) == 0
    return out


@pytest.fixture
def fixed_set(fixed_made: Path, work: Path) -> Path:
    """A copy of it, for one test."""
    return Path(shutil.copytree(fixed_made, work / "fixed"))
