"""Names of classes: one spelling of each, and how those of data and of a model are matched."""

import unicodedata

import pytest

from natten_zoo.data.image_folder import ImageFolder
from natten_zoo.data.labels import imagenet_classes
from natten_zoo.data.names import find, in_order, plain
from natten_zoo.data.outputs import outputs
from natten_zoo.data.warning import DataWarning

FRENCH = ("crème brûlée", "épine", "fée")


def nfd(name):
    return unicodedata.normalize("NFD", name)


@pytest.mark.parametrize(
    "spelling",
    [
        "café",
        nfd("café"),
        " café",
        "café\u00a0",
        "\ufeffcafé",
        "ca\u200bfé",
        "café\u200d",
        "\tcafé\n",
    ],
)
def test_one_spelling(spelling):
    assert plain(spelling) == "café"


def test_what_means_something_inside_a_name_stays():
    assert plain("می\u200cخواهم") == "می\u200cخواهم"
    assert plain("hot  dog") == "hot dog" and plain("  ") == "  "


def test_numbers_are_sorted_as_numbers():
    assert in_order({"10", "9", "007"}) == ["007", "9", "10"]
    assert in_order({"10", "9", "a"}) == ["10", "9", "a"]


def test_find_prefers_the_exact_name():
    assert find(["Cat", "cat"], ["cat", "Cat"]) == [1, 0]
    assert find(["c_d"], ["c/d", "c_d"]) == [1] and find(["c_d"], ["c/d", "b"]) == [0]


def test_find_does_not_choose_between_two():
    assert find(["c d"], ["c/d", "c_d"]) == [None]
    assert find(["A", "a"], ["a"]) == [None, 0]
    assert find(["c++", "c#"], ["C#", "C++"]) == [1, 0]


@pytest.mark.parametrize(
    "change", [nfd, str.upper, lambda n: f" {n} ", lambda n: n.replace(" ", "_")]
)
def test_outputs_by_name_however_it_is_written(change):
    names = tuple(reversed(FRENCH))
    assert outputs([change(n) for n in FRENCH], names, 3) == [2, 1, 0]
    assert outputs([change(FRENCH[2])], names, 3) == [0]  # a part of the classes


def test_numbers_of_birds_are_no_outputs():
    names = ("Laysan Albatross", "Sooty Albatross")
    assert outputs(["001.Laysan_Albatross", "002.Sooty_Albatross"], names, 2) == [0, 1]


@pytest.mark.parametrize("form", ["{}", "{:03}", " {} "])
def test_folders_that_are_numbers_are_outputs(form):
    names = [f"thing {i}" for i in range(1000)]
    found = [form.format(i) for i in (0, 2, 10, 999)]
    with pytest.warns(DataWarning, match="are numbers and were taken for the outputs' numbers"):
        assert outputs(found, names, 1000) == [0, 2, 10, 999]
    with pytest.warns(DataWarning):
        assert outputs(found, None, 1000) == [0, 2, 10, 999]


def test_numbers_beyond_the_outputs_are_an_error():
    with pytest.raises(ValueError, match=r"of 3 folders '3'; the model has 3 classes"):
        outputs(["1", "2", "3"], ["a", "b", "c"], 3)
    with pytest.raises(ValueError, match=r"several folders of one class: '1' and '01'"):
        outputs(["1", "01"], None, 5)


def test_digits_that_are_names():
    """A model of digits in another order than theirs."""
    assert outputs(["00", "01", "10"], ["10", "1", "0"], 3) == [2, 1, 0]


def test_synsets():
    synsets, names = imagenet_classes()
    assert outputs([synsets[7], f"{synsets[3]}-tiger_shark"], names, 1000) == [7, 3]
    assert outputs([names[5].replace(" ", "_")], names, 1000) == [5]
    assert outputs(list(synsets), None, 1000) == list(range(1000))
    with pytest.raises(ValueError, match="'n99999999'"):
        outputs([synsets[7], "n99999999"], names, 1000)


def test_what_does_not_match_shows_both_lists():
    with pytest.raises(ValueError) as error:
        outputs(["x", "y", "z"], ["a", "b", "c"], 3, place="photos")
    for part in ("photos", "'x', 'y', 'z'", "'a', 'b', 'c'", "by_order"):
        assert part in str(error.value)
    assert outputs(["x", "y", "z"], ["a", "b", "c"], 3, by_order=True) == [0, 1, 2]


def test_parts_of_a_data_set_are_no_classes(flat):
    for part in ("train", "val"):
        for name in ("a", "b"):
            flat(f"{part}/{name}", 1)
    folder = ImageFolder.open(flat.root)
    with pytest.raises(
        ValueError, match=r"the parts of a data set; name one of them: .*train.*val"
    ):
        folder.labels_for(["p", "q"], 2)


def test_folders_of_one_name_are_one_class(flat):
    flat("café", 2)
    flat(nfd("café"), 1)
    flat("thé", 1)
    with pytest.warns(DataWarning, match="are one class: café"):
        folder = ImageFolder.open(flat.root)
    assert folder.classes == ("café", "thé") and folder.labels == (0, 0, 0, 1)
