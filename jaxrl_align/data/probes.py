"""Prompts that lectures put to a model: seven gaps to fill (002, C14), and two requests (001 to 003, C16)."""

from typing import NamedTuple

GAP = "___"


class Cloze(NamedTuple):
    """A text with a gap, and words for it."""

    skill: str
    """The ability that the right choice requires."""
    text: str
    """Has one `GAP`."""
    candidates: tuple[str, ...]
    """The expected one, then wrong ones of about its length and kind."""

    def filled(self) -> list[str]:
        """Return the text with each candidate in its gap."""
        return [self.text.replace(GAP, word) for word in self.candidates]

    def prompt(self) -> str:
        """Return the text before the gap, without its last space, for a model to continue."""
        return self.text[: self.text.index(GAP)].rstrip()


CLOZE_PROBES = (
    Cloze(
        "trivia",
        "Stanford University is located in ___, California.",
        ("Palo Alto", "San Diego", "New York", "El Paso", "Des Moines"),
    ),
    Cloze("syntax", "I put ___ fork down on the table.", ("the", "and", "was", "who", "out")),
    Cloze(
        "coreference",
        "The woman walked across the street, checking for traffic over ___ shoulder.",
        ("her", "his", "its", "our", "my"),
    ),
    Cloze(
        "lexical semantics",
        "I went to the ocean to see the fish, turtles, seals, and ___.",
        ("whales", "horses", "chairs", "houses", "clocks"),
    ),
    Cloze(
        "sentiment",
        "Overall, the value I got from the two hours watching it was the sum total of the popcorn and the "
        "drink. The movie was ___.",
        ("bad", "good", "great", "fine", "lovely"),
    ),
    Cloze(
        "reasoning",
        "Iroh went into the kitchen to make some tea. Standing next to Iroh, Zuko pondered his destiny. "
        "Zuko left the ___.",
        ("kitchen", "garden", "forest", "school", "street"),
    ),
    Cloze(
        "arithmetic",
        "I was thinking about the sequence that goes 1, 1, 2, 3, 5, 8, 13, 21, ___",
        ("34", "22", "29", "35", "42"),
    ),
)
"""Texts as lecture 002 shows them (it took them from Stanford's CS224N); the wrong words are ours."""

ASSISTANCE_PROMPTS = (
    "Explain the moon landing to a 6 year old in a few sentences.",
    "Write a poem about a wise frog.",
)
"""Requests that a model of language continues and an assistant answers, as lectures 001 to 003 show them."""
