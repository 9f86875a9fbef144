"""Sentences distilled, kept, read as words, and judged by the words and vectors that they were made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ddray.data import Corpus, TextDataset, TextOptions
from ddray.data.sentences import Sentences
from ddray.data.text import corpus
from ddray.distillation import DistillConfig, DistilledSet, Distiller, load, state
from ddray.distillation.baselines import compare
from ddray.distillation.decode import listing, nearest_words
from ddray.distillation.engine import make_engine
from ddray.distillation.evaluate import Judge
from ddray.distillation.problem import check_problem
from ddray.distillation.real import class_averages
from ddray.distillation.run import artefact, distill
from ddray.errors import RequestError
from ddray.networks import build

ARCH = f"{__name__}:pooled"
QUICK: dict[str, Any] = {
    "data.max_length": 5,
    "data.embedding_dim": 8,
    "synthetic.steps": 1,
    "synthetic.epochs": 2,
    "synthetic.lr": 0.5,
    "outer.steps": 30,
    "outer.batch": 16,
    "outer.lr": 0.05,
    "outer.score_every": 10,
}
WORDS = {"good": ("fine", "joy", "great"), "bad": ("dull", "poor", "grim"), "odd": ("weird", "queer", "strange")}


def pooled(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1], outputs))


def films(classes: int = 3, copies: int = 12) -> Corpus:
    kinds = list(WORDS)[:classes]
    rows = [
        (f"the film was {word} and {other}", kind) for kind in kinds for word in WORDS[kind] for other in WORDS[kind]
    ]
    texts, labels = zip(*rows * copies, strict=True)
    return corpus("films", Sentences(texts, labels), None, Sentences(texts[:27], labels[:27]))


FILMS = films()


def made(data: Corpus = FILMS, **settings: object) -> DistilledSet:
    return distill(data, ARCH, QUICK | {key.replace("__", "."): value for key, value in settings.items()})


@pytest.fixture(scope="module")
def text_set() -> DistilledSet:
    return made(synthetic__init="real", outer__steps=60)


def test_a_distilled_set_of_sentences_teaches_and_comes_back_from_disk(text_set: DistilledSet, tmp_path: Path) -> None:
    assert text_set.inputs.shape == (1, 3, 5, 8)
    assert text_set.manifest.scores[0].mean > 0.8  # a third of the sentences are of each class
    found = load(text_set.save(tmp_path / "set"))
    assert found.vectors is not None and text_set.vectors is not None and torch.equal(found.vectors, text_set.vectors)
    record = found.manifest.text
    assert record is not None and record.vectors == "learned" and record.max_length == 5
    assert record.vectors_sha256 == FILMS.table(TextOptions(embedding_dim=8)).digest()
    network = pooled((5, 8), 3)
    scores = [one.evaluate(nets=4, dataset=FILMS, network=network) for one in (text_set, found)]
    assert scores[0].accuracies == scores[1].accuracies


def test_a_set_is_judged_by_its_own_vectors(text_set: DistilledSet) -> None:
    """A corpus that has learned others since, or has them from a file, is shown by those that the set was made with."""
    elsewhere = films()
    real = text_set.real_data(elsewhere)
    assert isinstance(real, TextDataset)
    assert torch.equal(real.normalise(real.test.x), text_set.real_data(FILMS).normalise(real.test.x))
    assert not elsewhere._tables  # nothing was learned anew


def test_other_texts_are_refused(text_set: DistilledSet) -> None:
    with pytest.raises(RequestError, match="not the one this set was made from"):
        text_set.evaluate(dataset=films(copies=13), network=pooled((5, 8), 3))


def test_the_nearest_words_are_those_of_a_plain_search() -> None:
    g = torch.Generator().manual_seed(0)
    vectors = torch.randn(9, 4, generator=g)
    vectors[:2] = 0
    vectors[5] = 0  # a word without a vector
    inputs = torch.randn(2, 3, 4, generator=g)
    found, distances = nearest_words(inputs, vectors, 3)
    allowed = [0, 2, 3, 4, 6, 7, 8]
    for place in ((0, 0), (1, 2)):
        plain = sorted((float((inputs[place] - vectors[word]).norm()), word) for word in allowed)[:3]
        assert found[place].tolist() == [word for _, word in plain]
        assert distances[place].tolist() == pytest.approx([distance for distance, _ in plain], rel=1e-5)
    exact, zero = nearest_words(vectors[[3, 0, 5]], vectors)
    assert exact[:, 0].tolist() == [3, 0, 0] and zero.abs().max() < 1e-6
    assert nearest_words(inputs, vectors, 20)[0].shape == (2, 3, 7)  # there are no more


def test_decoded_sentences_are_made_of_real_words(text_set: DistilledSet) -> None:
    assert text_set.vectors is not None
    decoded = text_set.in_words(text_set.synthetic)
    assert decoded.inputs.shape == text_set.inputs.shape and not torch.equal(decoded.inputs, text_set.inputs)
    rows = {tuple(row) for row in text_set.vectors.tolist()}
    assert {tuple(row) for row in decoded.inputs.flatten(0, 2).tolist()} <= rows
    again = text_set.in_words(decoded)
    assert torch.equal(again.inputs, decoded.inputs)
    score = text_set.evaluate(nets=3, dataset=FILMS, network=pooled((5, 8), 3), protocol="decoded")
    assert score.protocol == "decoded" and score.n == 3


def test_a_preview_lists_words_distances_and_label_weights(text_set: DistilledSet, tmp_path: Path) -> None:
    text = text_set.preview(tmp_path / "set.txt").read_text(encoding="utf-8")
    assert text == listing(text_set)
    lines = text.splitlines()
    assert "films" in lines[0] and "3 samples" in lines[0] and "learned" in lines[0]
    heads = [line for line in lines if line.startswith("step ")]
    assert len(heads) == 3 and all("good:" in head for head in heads)
    positions = [line.split() for line in lines if line.strip() and line.split()[0].isdigit()]
    assert len(positions) == 15 and all(len(fields) == 7 for fields in positions)
    for fields in positions:
        far = [float(distance) for distance in fields[2::2]]
        assert far == sorted(far) and fields[1] in text_set.manifest.text.words  # type: ignore[union-attr]
    with pytest.raises(RequestError, match=r"--out: .*a \.txt file"):
        text_set.preview(tmp_path / "set.png")
    assert [p.name for p in tmp_path.iterdir()] == ["set.txt"]


@pytest.mark.parametrize(
    ("classes", "settings", "shape"),
    [
        (2, {}, (1, 2, 5, 8)),  # two classes, one logit
        (2, {"synthetic__classes": 1}, (1, 1, 5, 8)),  # one sentence in all
        (3, {"synthetic__classes": (0, 2)}, (1, 2, 5, 8)),  # fewer sentences than classes
        (3, {"data__max_length": 1, "synthetic__classes": 1, "network__source": "fixed"}, (1, 1, 1, 8)),
        (3, {"synthetic__init": "real", "synthetic__samples_per_class": 2}, (1, 6, 5, 8)),
        (3, {"synthetic__init": "average", "labels__softmax": True}, (1, 3, 5, 8)),
    ],
)
def test_few_sentences_few_classes(
    classes: int, settings: dict[str, Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    found = load(made(films(classes), **settings).save(tmp_path / "set"))
    assert found.inputs.shape == shape
    assert found.manifest.network.outputs == (1 if classes == 2 else 3)
    assert len(listing(found).splitlines()) == 2 + shape[1] * (shape[2] + 3) - 1
    nets = 2 if found.known is None else None
    for protocol in found.protocols:
        found.evaluate(
            nets=nets,
            dataset=films(classes),
            network=pooled(shape[2:], found.manifest.network.outputs),
            protocol=protocol,
        )


def test_a_class_with_fewer_sentences_than_a_baseline_needs_begins_again() -> None:
    few = corpus(
        "few",
        Sentences(("a b", "a c", "d", "d e", "d f") * 2, ("x", "x", "y", "y", "y") * 2),
        Sentences(("a",), ("x",)),
        Sentences(("d",), ("y",)),
    )
    config = DistillConfig.from_flat(QUICK | {"synthetic.samples_per_class": 9, "outer.batch": 4})
    real = few.presented(config.data.text)
    network, outputs = check_problem(few, ARCH, config)
    found = compare([Judge(real, "test")], real, config, make_engine(network), outputs, None, 2, config.step_order())
    assert set(found) == {"random", "average"}


def test_averages_by_parts_are_averages() -> None:
    real = films(copies=80).presented(TextOptions(max_length=5, embedding_dim=8))
    mine = real.normalise(real.train.x[real.train.y == 1])
    assert len(mine) > 512  # more than is looked up at a time
    torch.testing.assert_close(class_averages(real, torch.tensor([1]), 1)[0, 0], mine.mean(0))


def test_a_judge_looks_words_up_as_it_goes() -> None:
    real = FILMS.presented(TextOptions(max_length=5, embedding_dim=8))
    judge = Judge(real, "test")
    assert judge.x.dtype == torch.int32
    network, _ = check_problem(real, ARCH, DistillConfig.from_flat(QUICK))
    weights = network.flatten()
    expected = (network(weights, real.normalise(real.test.x)).argmax(-1) == real.test.y).float().mean()
    assert judge.accuracy(network, weights) == pytest.approx(float(expected))


def test_a_text_distillation_taken_up_again_gives_the_same_bits(tmp_path: Path) -> None:
    whole, first = (Distiller(FILMS, ARCH, DistillConfig.from_flat(QUICK), seed=3) for _ in range(2))
    whole.advance(8)
    first.advance(5)
    second = Distiller(films(), ARCH, DistillConfig.from_flat(QUICK), seed=3)
    second.load_state_dict(first.state_dict())
    second.advance(3)
    assert torch.equal(artefact(second).inputs, artefact(whole).inputs)


def test_a_distillation_is_not_taken_up_with_other_vectors(tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    file, checkpoint, before = tmp_path / "v.txt", tmp_path / "c", "fine 1 0\ndull 0 1\n"
    settings = QUICK | {"data.vectors": str(file), "data.embedding_dim": None}
    file.write_text(before, encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        distill(films(), ARCH, settings, checkpoint=checkpoint, report=stop)
    file.write_text("fine 1 0\ndull 0 2\n", encoding="utf-8")
    with pytest.raises(RequestError, match=r"checkpoint: .*other word vectors") as refused:
        distill(films(), ARCH, settings, checkpoint=checkpoint)
    assert "\n" not in str(refused.value) and checkpoint.exists()
    file.write_text(before, encoding="utf-8")
    distill(films(), ARCH, settings, checkpoint=checkpoint)


@pytest.mark.parametrize("unsaid", [set(), {"vectors"}])
def test_the_vectors_of_a_checkpoint_from_before_they_were_recorded_are_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsaid: set[str]
) -> None:
    first, again = (Distiller(FILMS, ARCH, DistillConfig.from_flat(QUICK)) for _ in range(2))
    said = json.loads(state.problem(first))
    assert said["vectors"] == first.dataset.table.digest()  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(state, "problem", lambda _: json.dumps({k: v for k, v in said.items() if k not in unsaid}))
        first.advance(1)
        state.save(first, tmp_path / "c")
    state.load(again, tmp_path / "c")
    assert again.step == 1


def test_a_set_of_the_format_before_text_is_read(tmp_path: Path) -> None:
    from ddray.distillation.manifest import checksum
    from ddray.distillation.set_files import MANIFEST, TENSORS

    from .problems import distiller

    place = artefact(distiller()).save(tmp_path / "old")
    fields = json.loads((place / MANIFEST).read_text())
    del fields["text"]
    fields |= {
        "format": 1,
        "config": {k: v for k, v in fields["config"].items() if not k.startswith("data.") or k == "data.augment"},
    }
    fields["sha256"] = checksum(fields, (place / TENSORS).read_bytes())
    (place / MANIFEST).write_text(json.dumps(fields))
    assert load(place).manifest.text is None


def test_a_network_that_takes_words_is_judged_by_them_to_the_same_count() -> None:
    real = FILMS.presented(TextOptions(max_length=5, embedding_dim=8))
    judge, network = Judge(real, "test"), build("TextConvNet", (5, 8), 3)
    weights = network.draw("xavier", 1.0, torch.Generator().manual_seed(1))
    expected = (network(weights, real.normalise(real.test.x)).argmax(-1) == real.test.y).float().mean()
    assert judge.accuracy(network, weights) == pytest.approx(float(expected))


def test_making_words_unknown_is_augmentation_and_not_without_it() -> None:
    config = DistillConfig.from_flat(QUICK | {"data.word_dropout": 0.5, "data.augment": False})
    with pytest.raises(RequestError, match=r"data.word_dropout: 0.5 is refused: 0 where data.augment is false"):
        check_problem(FILMS, ARCH, config)
