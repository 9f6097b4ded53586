import pytest

from dalle_mini_impl.train.whole.new_captions import new_combinations


def test_words_of_captions_that_share_some_are_exchanged():
    seen = ["a red disc", "a blue bar", "a red bar", "a green disc"]
    made = new_combinations(seen, ["a blue disc"], 6)
    assert "a green bar" in made
    assert not {*seen, "a blue disc"} & set(made)
    assert len(made) == len(set(made))


def test_captions_of_one_word_are_joined():
    assert set(new_combinations(["duck", "Haus"], [], 3)) <= {"duck, Haus", "Haus, duck"}


@pytest.mark.parametrize("seen", [[], ["one"], ["  "], ["鴨", "家"], ["a b c"] * 5])
def test_few_captions_give_few(seen):
    made = new_combinations(seen, [], 4)
    assert len(made) <= 1
    assert not set(made) & set(seen)


def test_it_is_the_same_each_time_and_no_more_than_asked_for():
    seen = [f"a {colour} {shape}" for colour in "rgbyk" for shape in "dstx"][:-5]
    assert new_combinations(seen, [], 3) == new_combinations(seen[::-1], [], 3)
    assert len(new_combinations(seen, [], 3)) == 3
