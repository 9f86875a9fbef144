import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ddray.distillation import DistilledSet, load
from ddray.distillation.config import InnerConfig
from ddray.distillation.inner import InnerStep
from ddray.distillation.manifest import FORMAT
from ddray.distillation.run import artefact, finished_set
from ddray.distillation.set_files import MANIFEST, TENSORS, refuse_foreign, stamp
from ddray.distillation.streams import generator
from ddray.distillation.unroll import train_as_distilled
from ddray.errors import RequestError

from .problems import blobs, distiller, mlp

DATA = blobs()


def finished(**options: object) -> DistilledSet:
    run = distiller(**options)  # type: ignore[arg-type]
    run.advance(4)
    run.score()
    return finished_set(run)


@pytest.fixture(scope="module")
def made() -> DistilledSet:
    return finished()


@pytest.fixture(scope="module")
def known() -> DistilledSet:
    return finished(network__source="fixed")


@pytest.mark.parametrize("kind", ["made", "known"])
def test_round_trip(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    original: DistilledSet = request.getfixturevalue(kind)
    found = load(original.save(tmp_path / "set"))
    for name in ("inputs", "labels", "rates"):
        assert torch.equal(getattr(found, name), getattr(original, name))
    assert (found.known is None) == (kind == "made")
    assert found.manifest.model_copy(update={"sha256": ""}) == original.manifest
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == [TENSORS, MANIFEST]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize("kind", ["made", "known"])
def test_a_set_on_a_device_is_the_same_set(kind: str, request: pytest.FixtureRequest) -> None:
    original: DistilledSet = request.getfixturevalue(kind)
    moved = original.to("cpu")
    module = mlp((1, 4, 4), 3)
    assert moved.evaluate(dataset=DATA, network=module).mean == original.evaluate(dataset=DATA, network=module).mean
    assert moved.manifest is original.manifest and (moved.known is None) == (kind == "made")
    for device in ("meta", "tpu9"):
        with pytest.raises(RequestError, match=f"device: '{device}'"):
            original.to(device)


@pytest.mark.parametrize("optimiser", ["momentum", "adam"])
def test_a_set_is_trained_on_by_the_optimiser_it_was_made_for(optimiser: str, tmp_path: Path) -> None:
    made = finished(network__source="fixed", inner__optimiser=optimiser, inner__epsilon=1e-4)
    found = load(made.save(tmp_path / "set"))
    assert found.manifest.optimiser == optimiser and found.known is not None
    network = found.build_network(mlp((1, 4, 4), 3))
    step = InnerStep(network, InnerConfig(optimiser=optimiser, epsilon=1e-4))
    expected = train_as_distilled(step, found.known[0], found.synthetic, found.manifest.step_order)
    trained = found.train(network=mlp((1, 4, 4), 3))
    assert torch.equal(torch.cat([p.detach().flatten() for p in trained.parameters()]), expected)
    plain = train_as_distilled(InnerStep(network), found.known[0], found.synthetic, found.manifest.step_order)
    assert not torch.equal(plain, expected)


def test_saving_again_replaces(made: DistilledSet, known: DistilledSet, tmp_path: Path) -> None:
    made.save(tmp_path / "set")
    known.save(tmp_path / "set")
    assert load(tmp_path / "set").known is not None


def test_what_is_not_a_set_is_not_overwritten(made: DistilledSet, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(RequestError, match="not a distilled set"):
        made.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]
    refuse_foreign(tmp_path / "new")


@pytest.mark.parametrize("foreign", ["src", "notes.txt"])
def test_what_lies_beside_a_set_is_not_deleted(made: DistilledSet, tmp_path: Path, foreign: str) -> None:
    """Any folder may have a file of the name manifest.json."""
    (tmp_path / MANIFEST).write_text("{}")
    (tmp_path / foreign).mkdir()
    with pytest.raises(RequestError, match=f"--out: .* it holds {foreign} beside a set"):
        made.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {MANIFEST, foreign}


def test_a_set_goes_where_a_link_points(made: DistilledSet, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    made.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and load(tmp_path / "real").manifest.seed == made.manifest.seed


def test_a_set_that_cannot_be_replaced_stays(
    made: DistilledSet, known: DistilledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, rename = known.save(tmp_path / "set"), Path.rename

    def full(self: Path, target: Path) -> Path:
        if target == place and (self / TENSORS).is_file() and self.parent == tmp_path:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(RequestError, match=r"--out: .*set' is refused: a set could not be saved there: No space"):
        made.save(place)
    assert load(place).known is not None
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from([TENSORS, MANIFEST]), position=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_altered_byte_is_refused(made: DistilledSet, tmp_path: Path, file: str, position: float, flip: int) -> None:
    place = made.save(tmp_path / "set")
    data = bytearray((place / file).read_bytes())
    data[int(position * len(data))] ^= flip
    (place / file).write_bytes(data)
    before = json.loads(made_manifest(made))
    try:
        changed = json.loads(bytes(data)) if file == MANIFEST else None
    except (json.JSONDecodeError, UnicodeDecodeError):
        changed = None
    if changed is not None and {**changed, "sha256": ""} == before:
        return  # white space between fields says nothing
    with pytest.raises(RequestError) as refusal:
        load(place)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("number", ["1e908", "NaN", "-Infinity"])
def test_a_number_that_is_not_finite_is_refused(made: DistilledSet, tmp_path: Path, number: str) -> None:
    place = made.save(tmp_path / "set") / MANIFEST
    text = place.read_text()
    assert "1e-08" in text
    place.write_text(text.replace("1e-08", number, 1))
    with pytest.raises(RequestError, match="checksum does not match"):
        load(tmp_path / "set")


def made_manifest(made: DistilledSet) -> str:
    return json.dumps(made.manifest.model_dump(mode="json"))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from([TENSORS, MANIFEST]), keep=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_refused(made: DistilledSet, tmp_path: Path, file: str, keep: float) -> None:
    place = made.save(tmp_path / "set")
    data = (place / file).read_bytes().rstrip()
    (place / file).write_bytes(data[: int(keep * len(data))])
    with pytest.raises(RequestError):
        load(place)


def edit(place: Path, change: Callable[[dict[str, object]], None]) -> None:
    fields = json.loads((place / MANIFEST).read_text())
    change(fields)
    (place / MANIFEST).write_text(json.dumps(fields))


def test_a_newer_format_is_refused_as_such(made: DistilledSet, tmp_path: Path) -> None:
    place = made.save(tmp_path / "set")
    edit(place, lambda fields: fields.update(format=FORMAT + 1))
    with pytest.raises(RequestError, match=rf"format {FORMAT + 1} is newer than {FORMAT}: update ddray"):
        load(place)


def test_an_unknown_field_is_refused_even_with_a_good_checksum(made: DistilledSet, tmp_path: Path) -> None:
    from ddray.distillation.manifest import checksum

    place = made.save(tmp_path / "set")

    def change(fields: dict[str, object]) -> None:
        fields["pickle"] = "os.system"
        fields["sha256"] = checksum(fields, (place / TENSORS).read_bytes())

    edit(place, change)
    with pytest.raises(RequestError, match="pickle"):
        load(place)


def test_a_missing_set(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not a distilled set"):
        load(tmp_path / "nowhere")


def test_train_gives_the_network_that_the_score_counts(made: DistilledSet) -> None:
    score = made.evaluate(3, dataset=DATA, network=mlp((1, 4, 4), 3))
    network = made.train(seed=5, network=mlp((1, 4, 4), 3))
    assert not network.training
    logits = network(DATA.normalise(DATA.validation.x))
    right = (logits.argmax(-1) == DATA.validation.y).float().mean().item()
    assert right > 0.5
    assert score.n == 3 and score.examples == len(DATA.validation)
    again = made.train(seed=5, network=mlp((1, 4, 4), 3))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_loading_imports_nothing_that_a_manifest_names(made: DistilledSet, tmp_path: Path) -> None:
    found = load(made.save(tmp_path / "set"))
    with pytest.raises(RequestError, match="pass the module in"):
        found.train()


def test_a_known_start_is_trained_from(known: DistilledSet) -> None:
    one, other = (known.train(seed=s, network=mlp((1, 4, 4), 3)) for s in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(RequestError, match="other shapes"):
        known.train(network=mlp((1, 4, 4), 3, width=9))


def weights_of(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach()


def test_a_seed_takes_its_known_start() -> None:
    several = finished(network__source="fixed", network__starts=3)
    assert several.known is not None and len(several.known.unique(dim=0)) == 3
    step = InnerStep(several.build_network(mlp((1, 4, 4), 3)))
    for seed in range(5):
        start = several.known[seed % 3]
        expected = train_as_distilled(step, start, several.synthetic, several.manifest.step_order)
        assert torch.equal(weights_of(several.train(seed, mlp((1, 4, 4), 3))), expected)


def test_a_seed_draws_fresh_weights_by_the_recorded_law_and_gain() -> None:
    made = finished(network__law="normal", network__gain=0.5)
    network = made.build_network(mlp((1, 4, 4), 3))
    for seed in (0, 1):
        start = network.draw("normal", 0.5, generator("train", seed))
        expected = train_as_distilled(InnerStep(network), start, made.synthetic, made.manifest.step_order)
        assert torch.equal(weights_of(made.train(seed, mlp((1, 4, 4), 3))), expected)


def test_a_known_network_has_one_accuracy_and_an_interval(known: DistilledSet) -> None:
    score = known.evaluate(dataset=DATA, network=mlp((1, 4, 4), 3))
    assert score.n == 1 and score.std is None and score.interval is not None
    assert score.interval[0] < score.mean <= score.interval[1]
    assert "±" not in str(score)
    with pytest.raises(RequestError, match="nets: 5 is refused"):
        known.evaluate(5, dataset=DATA, network=mlp((1, 4, 4), 3))


def test_other_data_is_refused(made: DistilledSet) -> None:
    with pytest.raises(RequestError, match="not the one this set was made from"):
        made.evaluate(1, dataset=blobs(seed=9), network=mlp((1, 4, 4), 3))


def test_other_rates_and_epochs(made: DistilledSet) -> None:
    recorded, order = made.schedule()
    assert len(order) == 4 and torch.equal(recorded.rates, made.rates)
    fixed, longer = made.schedule(rate=0.25, epochs=5)
    assert longer == (0, 1) * 5 and fixed.rates.tolist() == [0.25] * 10
    with pytest.raises(RequestError, match="give a rate as well"):
        made.schedule(epochs=5)
    with pytest.raises(RequestError, match="positive"):
        made.schedule(rate=float("nan"))


def test_a_stamp_adds_a_score_and_keeps_the_tensors(made: DistilledSet, tmp_path: Path) -> None:
    place = made.save(tmp_path / "set")
    before = (place / TENSORS).read_bytes()
    score = made.evaluate(2, "test", dataset=DATA, network=mlp((1, 4, 4), 3))
    stamp(place, [score])
    found = load(place)
    assert found.manifest.test_looks() == 1 and found.manifest.scores[-1] == score
    assert (place / TENSORS).read_bytes() == before


def test_an_unknown_protocol_is_refused_before_the_work(made: DistilledSet) -> None:
    with pytest.raises(RequestError, match="protocol: 'bogus' is refused: one of as-distilled, retrain"):
        made.evaluate(1, dataset=DATA, network=mlp((1, 4, 4), 3), protocol="bogus")  # type: ignore[arg-type]


def test_looks_that_overlap_are_all_recorded(made: DistilledSet, tmp_path: Path) -> None:
    place = made.save(tmp_path / "set")
    first, second = (made.evaluate(2, "test", dataset=DATA, network=mlp((1, 4, 4), 3)) for _ in range(2))
    stamp(place, [first])
    stamp(place, [second])
    assert load(place).manifest.test_looks() == 2


def test_a_user_network_with_dropout_as_a_function_is_trained_as_its_seed_says(made: DistilledSet) -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.linear(nn.functional.dropout(x.flatten(1), 0.5, self.training))
            return logits

    once, again = (made.train(seed=1, network=Dropping()).get_parameter("linear.weight") for _ in range(2))
    assert torch.equal(once, again)


def test_a_preview_is_a_picture(made: DistilledSet, tmp_path: Path) -> None:
    room = tmp_path / "room"
    file = made.preview(room / "deep" / "picture.png")
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RequestError, match=r"\.png"):
        made.preview(room / "picture.doc")
    assert [p.name for p in room.rglob("*")] == ["deep", "picture.png"]


def test_an_artefact_without_a_score_tells_no_maximum() -> None:
    run = distiller()
    run.advance(4)
    run.score()
    assert artefact(run).manifest.scores == ()


def test_of_two_that_save_a_set_in_one_place_at_once_both_succeed(
    made: DistilledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, exists = tmp_path / "set", Path.exists
    made.save(tmp_path / "other")

    def late(path: Path, **options: bool) -> bool:
        """Another process puts a set there just after this one has looked."""
        there = exists(path, **options)
        if path == place and not there:
            shutil.copytree(tmp_path / "other", place)
        return there

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", late)
        made.save(place)
    assert torch.equal(load(place).inputs, made.inputs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "set"]
