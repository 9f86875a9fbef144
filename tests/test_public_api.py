"""What `import ddray` gives, and what the base install alone can do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ddray

HEAVY = ("ray", "mlflow", "optuna", "matplotlib", "torch", "numpy", "yaml", "sklearn")
EXTRAS = ("ray", "optuna", "mlflow", "matplotlib", "sklearn", "torchvision", "yaml", "scipy", "plotly", "sqlalchemy")

WITHOUT_EXTRAS = f'''
import sys

class Without:
    """A finder that does not see the extras."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in {EXTRAS!r} else self.finder.find_spec(name, *rest)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import torch
torch.set_num_threads(1)
'''

DISTIL = """
import ddray
draw = torch.Generator().manual_seed(0)
y = torch.arange(60) % 3
x = torch.randint(0, 120, (60, 28, 28), generator=draw, dtype=torch.uint8)
x[torch.arange(60), 2 + y] += 120
data = ddray.Dataset(x, y, x, y, name="mine")
config = {"outer.steps": 2, "outer.batch": 16, "synthetic.steps": 1, "synthetic.epochs": 1}
ddray.distill(data, "LeNet", config, seed=1).save("set")
loaded = ddray.load("set")
network = loaded.train(seed=0)
assert network(torch.zeros(5, 1, 28, 28)).shape == (5, 3) and not network.training
score = loaded.evaluate(nets=2, dataset=data)
assert score.n == 2 and 0 <= score.mean <= 1
print(score)
"""


def run(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, timeout=120)


def test_every_public_name_is_there() -> None:
    for name in ddray.__all__:
        assert getattr(ddray, name).__name__ == name
    assert set(ddray.__all__) <= set(dir(ddray))
    assert sorted(ddray.__all__) == ddray.__all__


def test_the_names_and_their_homes_are_the_same_everywhere() -> None:
    assert list(ddray._HOMES) == ddray.__all__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        _ = ddray.destill


@pytest.mark.parametrize("module", ["ddray", "ddray.cli"])
def test_importing_costs_next_to_nothing(module: str, tmp_path: Path) -> None:
    ended = run(f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])", tmp_path)
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


def test_distilling_loads_neither_ray_nor_the_record(tmp_path: Path) -> None:
    heavy = ("ray", "mlflow", "optuna", "matplotlib")
    script = f"import sys, ddray; ddray.distill; ddray.load; print([m for m in {heavy!r} if m in sys.modules])"
    assert run(script, tmp_path).stdout == "[]\n"


def test_the_base_install_distils_saves_loads_trains_and_evaluates(tmp_path: Path) -> None:
    ended = run(WITHOUT_EXTRAS + DISTIL, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "n = 2 networks; as-distilled, validation" in ended.stdout


LACKING = """
from ddray.cli import status
for command in (["search"], ["best", "--dataset", "d", "--arch", "a"], ["preview", "models:/a@best"],
                ["distill", "--dataset", "digits", "--arch", "LeNet", "--out", "o"]):
    assert status(command) == 2
"""


def test_what_the_base_install_lacks_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    ended = run(WITHOUT_EXTRAS + LACKING, tmp_path)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert [line.split(":")[1].strip() for line in ended.stderr.splitlines()] == [
        "optuna",
        "mlflow",
        "mlflow",
        "scikit-learn",
    ]
    assert ended.stderr.count("not installed") == ended.stderr.count("pip install 'ddray[search]'") == 4
    assert list(tmp_path.iterdir()) == []


def test_a_search_from_python_is_refused_as_the_command_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ddray.RequestError, match="--trials: 0 is refused: a whole number, at least 1"):
        ddray.search("digits_lenet", trials=0)
    with pytest.raises(ddray.RequestError, match="digits_lenett"):
        ddray.search("digits_lenett", storage=tmp_path)
    (tmp_path / "space.yaml").write_text("dataset: MNIST\narch: LeNet\n", encoding="utf-8")
    with pytest.raises(ddray.RequestError, match="a directory that exists"):
        ddray.search(tmp_path / "space.yaml", data="nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["space.yaml"]
