"""A corpus, and the datasets that its options make of it."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddray.data import Corpus, Dataset, TextDataset, TextOptions, load
from ddray.data.sentences import Sentences
from ddray.data.text import corpus, in_order
from ddray.errors import RequestError

GOOD, BAD = ("a fine film", "fine , a joy"), ("a dull film", "dull , no joy")
OPTIONS = TextOptions(max_length=4, embedding_dim=3)


def films(copies: int = 6, **options: object) -> Corpus:
    texts = (GOOD + BAD) * copies
    labels = ("good", "good", "bad", "bad") * copies
    return corpus("films", Sentences(texts, labels), None, Sentences(GOOD, ("good", "good")), **options)  # type: ignore[arg-type]


def csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("said,kind\n" + "".join(f'"{text}",{label}\n' for text, label in rows), encoding="utf-8")
    return path


def test_a_corpus_has_the_three_splits_and_the_vocabulary_of_training() -> None:
    made = films()
    assert made.class_names == ("bad", "good") and made.classes == 2
    assert [len(lines.y) for lines in made.lines] == [18, 6, 2]
    assert set(made.words) == {"<pad>", "<unk>", "a", "fine", "film", ",", "joy", "dull", "no"}
    assert np.bincount(made.lines[1].y).tolist() == [3, 3]


def test_an_official_validation_split_is_used_as_it_is() -> None:
    made = corpus(
        "f", Sentences(GOOD + BAD, ("1", "1", "0", "0")), Sentences(("odd film",), ("0",)), Sentences(GOOD, ("1", "1"))
    )
    assert [len(lines.y) for lines in made.lines] == [4, 1, 2]
    assert "odd" not in made.words


def test_sentences_are_shown_as_the_vectors_of_their_words() -> None:
    shown = films().presented(OPTIONS)
    assert isinstance(shown, Dataset) and shown.input_shape == (4, 3) and shown.expands
    x = shown.normalise(shown.train.x[:5])
    assert x.shape == (5, 4, 3) and x.dtype == torch.float32
    assert torch.equal(x[0, 1], torch.from_numpy(shown.table.vectors)[shown.train.x[0, 1]])
    assert not shown.table.vectors[:2].any()
    assert shown.to("cpu") is shown and shown.presented(OPTIONS) is shown


def test_what_is_left_open_is_decided_by_the_texts() -> None:
    made = films()
    assert made.presented(TextOptions()).input_shape == (4, 100) == made.input_shape
    assert len(made.presented(TextOptions(vocab_size=5, embedding_dim=2)).table.words) == 5


def test_rarer_words_than_the_vocabulary_has_are_unknown() -> None:
    shown = films().presented(TextOptions(vocab_size=3, max_length=4, embedding_dim=2))
    assert int(shown.train.x.max()) == 2 and bool((shown.train.x == 1).any())


def test_digests_are_of_the_texts_and_not_of_the_options() -> None:
    made = films()
    assert made.presented(OPTIONS).digests() == made.presented(TextOptions(max_length=2)).digests() == made.digests()
    assert films(copies=7).digests() != made.digests()


def test_tables_travel_with_a_corpus_and_datasets_do_not() -> None:
    made = films()
    table = made.presented(OPTIONS).table
    again = pickle.loads(pickle.dumps(made))
    assert not again._presented and np.array_equal(again.table(OPTIONS).vectors, table.vectors)
    assert again.digests() == made.digests()


def test_a_corpus_that_travels_remembers_where_its_vectors_came_from(tmp_path: Path) -> None:
    """A worker need not have the files, neither those that were found by themselves nor one with a + in its path."""
    (tmp_path / "glove").mkdir()
    files = [tmp_path / name for name in ("glove/glove.6B.50d.txt", "a+b.txt")]
    for file in files:
        file.write_text("fine " + " ".join(["0.5"] * 50) + "\n", encoding="utf-8")
    made = films(root=tmp_path)
    asked = [TextOptions(embedding_dim=50), TextOptions(vectors=str(files[1]))]
    digests = [made.table(options).digest() for options in asked]
    for file in files:
        file.unlink()
    again = pickle.loads(pickle.dumps(made))
    assert [again.table(options).digest() for options in asked] == digests
    assert again.table(asked[0]).source == "glove.6B.50d.txt"


def test_a_finished_set_s_own_words_present_a_corpus_that_numbers_them_otherwise() -> None:
    first = films().presented(TextOptions(vocab_size=6, max_length=4, embedding_dim=3))
    other = films().presented_with(first.table, first.length, first.options)
    assert isinstance(other, TextDataset)
    for split in ("train", "validation", "test"):
        assert torch.equal(other.split(split).x, first.split(split).x)
    assert other.presented(first.options) is other


@pytest.mark.parametrize(
    ("key", "value"),
    [("vocab_size", 50), ("word_dropout", 0.5), ("max_length", 9), ("embedding_dim", 3), ("vectors", "learned")],
)
def test_images_have_no_words(key: str, value: object) -> None:
    x, y = np.zeros((8, 4, 4), np.uint8), np.arange(8) % 2
    images = Dataset(x, y, x, y, std=(1,))
    assert images.presented(TextOptions()) is images
    with pytest.raises(RequestError, match=f"data.{key}: .*for text alone"):
        images.presented(TextOptions(**{key: value}))  # type: ignore[arg-type]


def test_vectors_from_a_file_and_of_a_dimension(tmp_path: Path) -> None:
    file = tmp_path / "small.txt"
    file.write_text("fine 1 0\ndull 0 1\nelse 3 3\n", encoding="utf-8")
    shown = films().presented(TextOptions(vectors=str(file)))
    place = shown.table.words.index("fine")
    assert shown.table.vectors[place].tolist() == [1, 0] and shown.table.source == "small.txt"
    assert np.count_nonzero(shown.table.vectors.any(1)) == 2
    with pytest.raises(RequestError, match=r"data.embedding_dim: 100 .*2, as the vectors in"):
        films().presented(TextOptions(vectors=str(file), embedding_dim=100))


def test_padding_and_unknown_words_are_zeros_whatever_a_file_has_for_them(tmp_path: Path) -> None:
    file = tmp_path / "small.txt"
    file.write_text("<pad> 1 1\n<unk> 2 2\nfine 1 0\n", encoding="utf-8")
    vectors = films().table(TextOptions(vectors=str(file))).vectors
    assert not vectors[:2].any() and np.count_nonzero(vectors.any(1)) == 1
    file.write_text("<unk> 2 2\n", encoding="utf-8")
    with pytest.raises(RequestError, match=r"at least one of the 7 words"):
        films().table(TextOptions(vectors=str(file)))


def test_glove_is_taken_where_it_is_on_disk(tmp_path: Path) -> None:
    (tmp_path / "glove").mkdir()
    (tmp_path / "glove/glove.6B.50d.txt").write_text("fine " + " ".join(["0.5"] * 50) + "\n", encoding="utf-8")
    made = films(root=tmp_path)
    assert made.table(TextOptions(embedding_dim=50)).source == "glove.6B.50d.txt"
    assert made.table(TextOptions(embedding_dim=20)).source == "learned"
    assert made.table(TextOptions(embedding_dim=50, vectors="learned")).source == "learned"


def test_labels_are_ordered_as_numbers_or_by_the_alphabet() -> None:
    assert in_order(("10", "9", "-1")) == ("-1", "9", "10")
    assert in_order(("b", "a", "10")) == ("10", "a", "b")
    assert in_order(("5", "--5", "-4")) == ("--5", "-4", "5")
    assert in_order(("2", "9" * 5000)) == ("2", "9" * 5000)


@given(st.permutations(["1", "01", "001", "-0", "0"]))
def test_labels_of_one_number_have_an_order_too(labels: list[str]) -> None:
    assert in_order(labels) == ("-0", "0", "001", "01", "1")


def test_by_itself_a_length_fits_95_percent_of_the_sentences() -> None:
    texts = Sentences(tuple("w " * words for words in (1, 1, 1, 8)) * 2, ("x", "y") * 4)
    assert corpus("lengths", texts, texts, texts).length(TextOptions()) == 8
    texts = Sentences(tuple("w " * (1 + words) for words in range(18)), ("x", "y") * 9)
    assert corpus("lengths", texts, texts, texts).length(TextOptions()) == 18


def test_a_table_of_texts_is_a_dataset(tmp_path: Path) -> None:
    path = csv(
        tmp_path / "films.csv", [(text, kind) for kind, texts in (("good", GOOD), ("bad", BAD)) for text in texts] * 10
    )
    made = load(f"csv:{path}?text=said&label=kind")
    assert isinstance(made, Corpus)
    assert [len(lines.y) for lines in made.lines] == [24, 8, 8]
    assert made.digests() == load(f"csv:{path}?text=said&label=kind").digests()  # the share is always the same
    test = csv(tmp_path / "test.csv", [("a joy", "good")])
    with pytest.raises(RequestError, match="two classes"):
        load(f"csv:{path}?text=said&label=kind&test={test}")
    test = csv(tmp_path / "test.csv", [("a joy", "good"), ("no", "bad")])
    apart = load(f"csv:{path}?text=said&label=kind&test={test}")
    assert isinstance(apart, Corpus) and [len(lines.y) for lines in apart.lines] == [30, 10, 2]


def test_a_label_that_training_lacks_is_refused(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", [("x y", "1"), ("z", "2")] * 4)
    test = csv(tmp_path / "b.csv", [("x", "1"), ("z", "3")])
    with pytest.raises(RequestError, match="'3' is not among them"):
        load(f"csv:{path}?text=said&label=kind&test={test}")


@pytest.mark.parametrize(("copies", "test"), [(1, "&test={test}"), (2, "")])
def test_texts_too_few_for_a_validation_split_are_refused(tmp_path: Path, copies: int, test: str) -> None:
    path = csv(tmp_path / "a.csv", [("x y", "1"), ("z", "2")] * copies)
    name = f"csv:{path}?text=said&label=kind{test.format(test=path)}"
    with pytest.raises(RequestError, match=r"two training examples or more of some class.* 2 in all") as refused:
        load(name)
    assert (refused.value.key, refused.value.value) == ("dataset", name)


def test_a_label_that_one_text_has_stays_in_training(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", [("x y", "1"), ("w", "2"), *[("z", "1")] * 9])
    made = load(f"csv:{path}?text=said&label=kind")
    assert isinstance(made, Corpus) and made.class_names == ("1", "2")
    assert [np.bincount(lines.y, minlength=2).tolist() for lines in made.lines] == [[6, 1], [2, 0], [2, 0]]


def test_vectors_of_several_sources_lie_side_by_side_and_weigh_the_same(tmp_path: Path) -> None:
    file = tmp_path / "small.txt"
    file.write_text("fine 10 0\ndull 0 20\n", encoding="utf-8")
    made = films()
    table = made.table(TextOptions(vectors=f"learned+{file}", embedding_dim=3))
    assert table.dimension == 5 and table.source == "learned+small.txt"
    counts = np.bincount(made.lines[0].ids, minlength=len(table.words))
    for part in (table.vectors[:, :3], table.vectors[:, 3:]):
        counted = counts * part.any(axis=1)
        assert counted @ (part**2).mean(axis=1) / counted.sum() == pytest.approx(1, rel=1e-5)
    learned = made.table(TextOptions(vectors="learned", embedding_dim=3)).vectors
    np.testing.assert_allclose(table.vectors[:, :3], learned, rtol=1e-5)


def test_word_dropout_makes_words_unknown_and_leaves_padding_alone() -> None:
    shown = films(copies=50).presented(TextOptions(max_length=6, embedding_dim=2, word_dropout=0.3))
    x = shown.train.x
    found = shown.augment(x, torch.Generator().manual_seed(0))
    words, changed = x != 0, found != x
    assert found.dtype == x.dtype and not changed[~words].any()
    assert bool((found[changed] == 1).all()) and 0.25 < float(changed.sum() / words.sum()) < 0.35
    assert torch.equal(found, shown.augment(x, torch.Generator().manual_seed(0)))
    plain = films().presented(OPTIONS)
    assert plain.augment(plain.train.x, torch.Generator()) is plain.train.x


def test_the_vectors_of_fewer_words_travel_with_those_of_more(tmp_path: Path) -> None:
    file = tmp_path / "small.txt"
    file.write_text("film 1 0\nfine 2 0\ndull 0 1\n", encoding="utf-8")
    made, sizes = films(), range(5, 10)
    apart = [films().table(TextOptions(vectors=str(file), vocab_size=size)).digest() for size in sizes]
    made.table(TextOptions(vectors=str(file)))
    file.unlink()
    again = pickle.loads(pickle.dumps(made))
    assert [again.table(TextOptions(vectors=str(file), vocab_size=size)).digest() for size in sizes] == apart


def test_a_shape_is_known_without_learning(tmp_path: Path) -> None:
    file = tmp_path / "small.txt"
    file.write_text("film 1 0\n", encoding="utf-8")
    made = films()
    for vectors, dimension in ((str(file), None), (f"learned+{file}+{file}", 3), ("auto", 7), ("learned", None)):
        options = TextOptions(vectors=vectors, embedding_dim=dimension, max_length=3)
        found = made.shape(options)
        assert all(source != "learned" for source, *_ in made._tables)
        assert found == films().presented(options).input_shape


def test_a_path_with_a_plus_in_it_is_one_file(tmp_path: Path) -> None:
    file = tmp_path / "c++.txt"
    file.write_text("fine 1 0\n", encoding="utf-8")
    assert films().table(TextOptions(vectors=str(file))).source == "c++.txt"


def test_a_file_whose_path_says_learned_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "learned.txt"
    file.write_text("fine 1 0\n", encoding="utf-8")
    with pytest.raises(RequestError, match=r"data.embedding_dim: 100 .*2, as the vectors in"):
        films().table(TextOptions(vectors=str(file), embedding_dim=100))


@pytest.mark.parametrize("name", ["long" * 100, "nul\0", ""])
def test_vectors_that_no_file_can_be_called_are_refused(name: str) -> None:
    with pytest.raises(RequestError, match=r"data\.vectors: .* a file that exists"):
        films().table(TextOptions(vectors=name))


def test_texts_too_short_to_learn_from_have_vectors_of_zeros_beside_those_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "small.txt"
    file.write_text("a 1 0\n", encoding="utf-8")
    single = Sentences(("a", "b") * 8, ("x", "y") * 8)
    table = corpus("single", single, None, single).table(TextOptions(vectors=f"learned+{file}", embedding_dim=2))
    assert np.isfinite(table.vectors).all() and not table.vectors[:, :2].any() and table.vectors[:, 2:].any()
