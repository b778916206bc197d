"""Plain tokens: spelling, plurals, abbreviations and Latin."""

import pytest

from medals_rt.prompts.tokenization import prompt_words, tokenize


def plain(text: str) -> list[str]:
    return [token.word for token in tokenize(text)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Tumours, oesophagus", ["tumor", "esophagus"]),
        ("kidneys/vertebrae", ["kidney", "vertebra"]),
        ("LUL", ["left", "upper", "lobe"]),
        ("rml", ["right", "middle", "lobe"]),
        ("LA", ["left", "atrium"]),
        ("la", ["la"]),
        ("Ren sinister", ["kidney", "sinister"]),
        ("vesica fellea", ["gallbladder"]),
        ("vesica", ["vesica"]),
        ("head & neck", ["head_neck"]),
        ("Th12", ["t12"]),
        ("FIB-SEM", ["fib", "sem"]),
    ],
)
def test_plain_words(text: str, words: list[str]) -> None:
    assert plain(text) == words


def test_a_stop_before_an_abbreviation_stays() -> None:
    assert [token.stop for token in tokenize("lung, LUL")] == [False, True, False, False]


def test_one_word_in_place_of_several_keeps_the_text() -> None:
    (token,) = tokenize("Vesica Fellea")
    assert token.text == "Vesica Fellea"


def test_what_an_expansion_means_is_not_expanded_again() -> None:
    for phrase, meaning in prompt_words().expansions.items():
        assert plain(phrase) == plain(meaning), phrase
