import re

import numpy as np
import pytest

from jaxrl_align.evaluate.measures import perturbations
from jaxrl_align.evaluate.measures.perturbations import (
    DIALECT,
    FAIRNESS,
    GENDER_PAIRS,
    MISSPELLINGS,
    NAMES,
    NEIGHBOURS,
    ROBUSTNESS,
    contract,
    expand,
    extra_spaces,
    lower_case,
    misspell,
    neighbouring_keys,
    speak_dialect,
    swap_gender,
    swap_names,
)

TEXT = "The King did not receive her letter; Emily and Jamal were with THE children, I am told.\n3.14"


def draw(perturb, text, seed=0):
    return perturb(text, np.random.default_rng(seed))


@pytest.mark.parametrize("name, perturb", [*ROBUSTNESS.items(), *FAIRNESS.items()])
def test_a_perturbation_is_a_function_of_the_text_and_the_seed(name, perturb):
    assert draw(perturb, TEXT) == draw(perturb, TEXT)
    assert draw(perturb, "") == ""
    assert draw(perturb, "12 + 30\n=").replace(" ", "") == "12+30\n="
    if name != "expansions":
        assert draw(perturb, TEXT) != TEXT


def test_words_are_misspelt_by_half_and_keep_their_capitals():
    found = [draw(misspell, "The theory: THE government", seed).split() for seed in range(200)]
    assert {row[0] for row in found} == {"The", "Teh"} and {row[1] for row in found} == {"theory:"}
    assert {row[2] for row in found} == {"THE", "TEH"} and {row[3] for row in found} == {
        "government",
        "goverment",
    }
    assert 70 < sum(row[0] == "Teh" for row in found) < 130
    assert {draw(misspell, "because", seed) for seed in range(50)} == {"because", "becuase", "becasue"}
    assert not {
        w for word, wrong in MISSPELLINGS.items() for w in wrong.split() if w == word or w in MISSPELLINGS
    }


def test_one_letter_in_twenty_slips_to_a_key_beside_it():
    text = "Qwerty zebra " * 400
    found = draw(neighbouring_keys, text)
    slips = [(a, b) for a, b in zip(text, found, strict=True) if a != b]
    assert 0.04 < len(slips) / (11 * 400) < 0.06
    assert all(b.lower() in NEIGHBOURS[a.lower()] and a.isupper() == b.isupper() for a, b in slips)
    assert all(a in NEIGHBOURS[b] for a, near in NEIGHBOURS.items() for b in near), "beside is mutual"


def test_spaces_and_case():
    found = draw(extra_spaces, "a b\nc d " * 50)
    assert set(map(len, re.findall(" +", found))) == {1, 2, 3}
    assert found.split() == ("a b\nc d " * 50).split() and found.count("\n") == 50
    assert draw(lower_case, "It IS\nÄ") == "it is\nä"


def test_contractions_and_expansions_by_hand():
    assert (
        draw(contract, "It is so. They Will not; I am, CANNOT. Edit is.")
        == "It's so. They'll not; I'm, CAN'T. Edit is."
    )
    assert draw(expand, "It's so. We won't; I\u2019m. Can't!") == "It is so. We will not; I am. Cannot!"
    text = "He does not know what is there, and you are late."
    assert draw(expand, draw(contract, text)) == text


def test_dialect_takes_the_longest_words_first():
    assert (
        draw(speak_dialect, "I am going to that; this is not bathed.") == "I am gonna dat; dis ain't bathed."
    )
    assert not set(DIALECT.values()) & set(DIALECT)


def test_gender_terms_change_sides():
    assert draw(swap_gender, "He saw her dog. SHE saw him, her.") == "She saw his dog. HE saw her, him."
    assert draw(swap_gender, "The mother and his son; the shepherd himself. It is hers") == (
        "The father and her daughter; the shepherd herself. It is his"
    )
    plain = [pair for pair in GENDER_PAIRS if "her" not in pair and "his" not in pair]
    for male, female in plain:
        assert draw(swap_gender, f"{male}, {female}.") == f"{female}, {male}."


def test_names_change_groups_not_gender_and_two_stay_two():
    text = "Emily met Adam. Megan and Emily left Adams; Jamal stayed. emily"
    found = draw(swap_names, text)
    words = found.replace(".", " ").replace(";", " ").split()
    assert words[0] == words[5] and words[0] in NAMES["female"][1] and words[3] in NAMES["female"][1]
    assert words[0] != words[3] and words[2] in NAMES["male"][1] and words[8] in NAMES["male"][0]
    assert words[7] == "Adams" and words[-1] == "emily"
    assert len(set(draw(swap_names, " ".join(NAMES["female"][0])).split())) == 10
    assert len({draw(swap_names, text, seed) for seed in range(20)}) > 5


def test_the_lists_are_whole():
    assert all(len(a) == len(set(a)) == len(set(b)) == len(b) for a, b in NAMES.values())
    assert (
        set(perturbations.EXPANSIONS) >= {"it's", "i'm", "can't"}
        and perturbations.EXPANSIONS["i'm"] == "I am"
    )


def test_parts_are_perturbed_each_on_its_own():
    shout = lambda text, random: text.upper() + random.choice(["!"])
    random = np.random.default_rng(0)
    within = lambda spans: perturbations.perturb_within(shout, "say ab or c.", spans, random)
    assert within(((4, 6), (10, 11))) == "say AB! or C!."
    assert within(()) == "say ab or c." and within(None) == "SAY AB OR C.!"


@pytest.mark.parametrize("perturb, text", [(swap_gender, "Bu bir sır."), (contract, "İt is, ıt is, IT İS.")])
def test_letters_that_python_takes_for_an_i_make_another_word(perturb, text):
    assert draw(perturb, text) == text
    assert draw(contract, "ıt is; it is") == "ıt is; it's"
