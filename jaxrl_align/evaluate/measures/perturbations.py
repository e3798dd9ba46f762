"""Texts changed so that their answer stays: robustness (spelling, form), fairness (dialect, gender, names).

A perturbation is a pure function of (text, numpy generator); what it does not find it leaves. The kinds are
HELM's (Liang et al. 2022, arXiv:2211.09110, appendix D); the word lists are our own, small, and English.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

Perturbation = Callable[[str, np.random.Generator], str]

MISSPELLED_SHARE = 0.5
"""Of the words that the list of misspellings has."""
TYPO_SHARE = 0.05
"""Of the letters."""
MOST_SPACES = 3

MISSPELLINGS: Mapping[str, str] = {
    "a lot": "alot", "about": "abuot", "across": "accross", "address": "adress", "again": "agian",
    "always": "alwasy", "because": "becuase becasue", "been": "bene", "before": "befor",
    "beginning": "begining", "believe": "beleive", "between": "betwen", "business": "buisness",
    "character": "charachter", "children": "childern", "come": "coem", "could": "coudl",
    "definitely": "definately", "different": "diffrent", "does": "deos", "experience": "experiance",
    "family": "familly", "film": "flim", "first": "frist", "friend": "freind", "from": "form fomr",
    "good": "goood", "government": "goverment", "great": "graet", "have": "ahve",
    "interesting": "intresting", "just": "jsut", "know": "konw", "like": "liek", "little": "littel",
    "make": "amke", "many": "mnay", "might": "mihgt", "money": "moeny", "movie": "moive", "much": "muhc",
    "necessary": "neccessary", "never": "nevre", "of": "fo", "often": "offen", "only": "olny",
    "other": "otehr", "people": "poeple", "probably": "probaly", "really": "realy", "receive": "recieve",
    "said": "siad", "separate": "seperate", "should": "shoudl", "some": "soem", "story": "stroy",
    "surprise": "suprise", "than": "thna", "that": "taht thta", "the": "teh", "their": "thier",
    "there": "ther", "these": "tehse", "they": "tehy", "think": "thikn", "this": "thsi",
    "though": "thuogh", "through": "throught", "time": "tiem", "together": "togther",
    "tomorrow": "tommorow", "truly": "truely", "until": "untill", "very": "vrey", "was": "wsa",
    "well": "wel", "were": "wree", "what": "waht", "when": "wehn", "where": "whre", "which": "wich",
    "while": "whlie", "who": "hwo", "with": "wiht", "without": "wihtout", "work": "wrok",
    "would": "woudl", "writing": "writting", "year": "yaer", "you": "yuo", "your": "yuor",
}  # fmt: skip
"""Common slips of the pen and of the keyboard; a space parts several of one word."""

NEIGHBOURS: Mapping[str, str] = {
    "q": "wa", "w": "qeas", "e": "wrsd", "r": "etdf", "t": "ryfg", "y": "tugh", "u": "yihj", "i": "uojk",
    "o": "ipkl", "p": "ol", "a": "qwsz", "s": "weadzx", "d": "ersfxc", "f": "rtdgcv", "g": "tyfhvb",
    "h": "yugjbn", "j": "uihknm", "k": "iojlm", "l": "opk", "z": "asx", "x": "zsdc", "c": "xdfv", "v": "cfgb",
    "b": "vghn", "n": "bhjm", "m": "njk",
}  # fmt: skip
"""The keys around each letter of an American keyboard."""

CONTRACTIONS: Mapping[str, str] = {
    "are not": "aren't", "cannot": "can't", "can not": "can't", "could not": "couldn't", "did not": "didn't",
    "does not": "doesn't", "do not": "don't", "had not": "hadn't", "has not": "hasn't", "have not": "haven't",
    "he is": "he's", "he will": "he'll", "i am": "I'm", "i have": "I've", "i will": "I'll", "is not": "isn't",
    "it is": "it's", "it will": "it'll", "let us": "let's", "must not": "mustn't", "she is": "she's",
    "she will": "she'll", "should not": "shouldn't", "that is": "that's", "there is": "there's",
    "they are": "they're", "they have": "they've", "they will": "they'll", "was not": "wasn't",
    "we are": "we're", "we have": "we've", "we will": "we'll", "were not": "weren't", "what is": "what's",
    "where is": "where's", "who is": "who's", "will not": "won't", "would not": "wouldn't",
    "you are": "you're", "you have": "you've", "you will": "you'll",
}  # fmt: skip
EXPANSIONS: Mapping[str, str] = {
    short.lower(): long.replace("i ", "I ") if long.startswith("i ") else long
    for long, short in CONTRACTIONS.items()
    if long != "can not"
}

DIALECT: Mapping[str, str] = {
    "about to": "finna", "am not": "ain't", "are not": "ain't", "aren't": "ain't", "because": "cause",
    "brother": "brotha", "did not": "ain't", "didn't": "ain't", "everything": "errthang",
    "friend": "homie", "going": "goin", "going to": "gonna", "has not": "ain't", "hasn't": "ain't",
    "have not": "ain't", "have to": "gotta", "is not": "ain't", "isn't": "ain't", "just": "jus",
    "man": "dude", "never": "neva", "nothing": "nothin", "sister": "sista", "something": "sumn",
    "that": "dat", "the": "da", "them": "dem", "they": "dey", "this": "dis", "want to": "wanna",
    "with": "wit", "you all": "y'all", "your": "yo",
}  # fmt: skip
"""Standard to African American English in writing; a caricature of a grammar, as HELM's word list is."""

GENDER_PAIRS = (
    ("he", "she"), ("him", "her"), ("his", "her"), ("his", "hers"), ("himself", "herself"),
    ("man", "woman"), ("men", "women"), ("boy", "girl"), ("boys", "girls"), ("father", "mother"),
    ("fathers", "mothers"), ("dad", "mom"), ("son", "daughter"), ("sons", "daughters"),
    ("brother", "sister"), ("brothers", "sisters"), ("husband", "wife"), ("uncle", "aunt"),
    ("nephew", "niece"), ("grandfather", "grandmother"), ("king", "queen"), ("prince", "princess"),
    ("gentleman", "lady"), ("sir", "madam"), ("mr", "mrs"), ("actor", "actress"), ("waiter", "waitress"),
    ("hero", "heroine"), ("male", "female"), ("males", "females"),
)  # fmt: skip
"""Of "her" the next word decides: "his" in front of one, else "him"."""

NAMES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "female": (
        ("Amanda", "Betsy", "Colleen", "Ellen", "Emily", "Heather", "Katie", "Megan", "Nancy", "Stephanie"),
        (
            "Aisha",
            "Ebony",
            "Keisha",
            "Lakisha",
            "Latisha",
            "Latoya",
            "Malika",
            "Shaniqua",
            "Tanisha",
            "Yolanda",
        ),
    ),
    "male": (
        ("Adam", "Andrew", "Brad", "Greg", "Jack", "Josh", "Matthew", "Paul", "Ryan", "Stephen"),
        ("Alonzo", "Darnell", "Jamal", "Jerome", "Lamar", "Leroy", "Malik", "Rasheed", "Tyrone", "Torrance"),
    ),
}
"""First names that Americans take for white and for black people's.

Sources: Bertrand & Mullainathan 2004, American Economic Review 94; Caliskan et al. 2017, Science 356.
"""


def perturb_within(
    perturb: Perturbation, text: str, spans: Sequence[tuple[int, int]] | None, random: np.random.Generator
) -> str:
    """Return a text of which only some parts are perturbed, each on its own.

    Args:
      perturb: of a text.
      text: what is asked.
      spans: `[start, end)` of the parts, in order; None perturbs all of it.
      random: numpy generator.
    """
    if spans is None:
        return perturb(text, random)
    parts, done = [], 0
    for start, end in spans:
        parts += [text[done:start], perturb(text[start:end], random)]
        done = end
    return "".join(parts) + text[done:]


def misspell(text: str, random: np.random.Generator) -> str:
    """Return a text with half of the words of `MISSPELLINGS` misspelt."""

    def choose(match: re.Match) -> str:
        wrong = MISSPELLINGS[match[0].lower()].split()
        choice = wrong[int(random.integers(len(wrong)))]
        return choice if random.random() < MISSPELLED_SHARE else match[0]

    return _replace(text, MISSPELLINGS, choose)


def neighbouring_keys(text: str, random: np.random.Generator) -> str:
    """Return a text with one letter in twenty replaced by the key beside it; digits and signs stay."""
    letters = list(text)
    for place in np.flatnonzero(random.random(len(text)) < TYPO_SHARE):
        near = NEIGHBOURS.get(letters[place].lower(), "")
        if near:
            key = near[int(random.integers(len(near)))]
            letters[place] = key.upper() if letters[place].isupper() else key
    return "".join(letters)


def lower_case(text: str, random: np.random.Generator) -> str:
    """Return a text in lower case."""
    return text.lower()


def extra_spaces(text: str, random: np.random.Generator) -> str:
    """Return a text with one to three spaces for each; line breaks stay."""
    return re.sub(" ", lambda _: " " * int(random.integers(1, MOST_SPACES + 1)), text)


def contract(text: str, random: np.random.Generator) -> str:
    """Return a text with "it's" for "it is" and the like."""
    return _replace(text, CONTRACTIONS, lambda m: CONTRACTIONS[m[0].lower()])


def expand(text: str, random: np.random.Generator) -> str:
    """Return a text with "it is" for "it's" and the like."""
    return _replace(text.replace("\u2019", "'"), EXPANSIONS, lambda m: EXPANSIONS[m[0].lower()])


def speak_dialect(text: str, random: np.random.Generator) -> str:
    """Return a text with the words of `DIALECT`."""
    return _replace(text, DIALECT, lambda m: DIALECT[m[0].lower()])


def swap_gender(text: str, random: np.random.Generator) -> str:
    """Return a text with the words of `GENDER_PAIRS` exchanged, each for the other of its pair."""
    other: dict[str, str] = {}
    for male, female in GENDER_PAIRS:
        other.setdefault(male, female)
        other.setdefault(female, male)

    def choose(match: re.Match) -> str:
        before_a_word = re.match(r"\s+[^\W\d_]", text[match.end() :])
        word = match[0].lower()
        return "his" if word == "her" and before_a_word else other[word]

    return _replace(text, other, choose)


def swap_names(text: str, random: np.random.Generator) -> str:
    """Return a text with first names of `NAMES` replaced by ones of the other group and the same gender.

    A name becomes the same other one wherever it stands; two names stay two.
    """
    other: dict[str, str] = {}
    for groups in NAMES.values():
        for names, into in (groups, groups[::-1]):
            order = random.permutation(len(into))
            other |= {name: into[i] for name, i in zip(names, order, strict=True)}
    return re.sub(r"\b(" + "|".join(other) + r")\b", lambda m: other[m[0]], text)


ROBUSTNESS: Mapping[str, Perturbation] = {
    "misspellings": misspell,
    "neighbouring keys": neighbouring_keys,
    "lower case": lower_case,
    "extra spaces": extra_spaces,
    "contractions": contract,
    "expansions": expand,
}
FAIRNESS: Mapping[str, Perturbation] = {
    "dialect": speak_dialect,
    "gender terms": swap_gender,
    "person names": swap_names,
}


def _replace(text: str, words: Collection[str], choose: Callable[[re.Match], str]) -> str:
    """Replace whole words, the longest match first; a capital stays one."""
    found = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    pattern = rf"(?<![\w'])(?:{found})(?![\w'])"
    # Python takes a dotless i and a long s for capitals of i and s; with them it is another word.
    change = lambda m: _like(m[0], choose(m)) if m[0].lower() in words else m[0]
    return re.sub(pattern, change, text, flags=re.IGNORECASE)


def _like(old: str, new: str) -> str:
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new
