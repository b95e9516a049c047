"""The words that all worlds share: one pool of invented two-syllable words, dealt out once, and small English lists.

Every invented word is consonant-vowel-consonant-vowel, so a byte-level BPE learns the 60 syllables first and then each
word in one more merge. Slices of the pool never overlap: a word of one world cannot turn up in another by accident.
"""

import random

CONSONANTS = "bdfgklmnprst"
VOWELS = "aeiou"
SYLLABLES = [c + v for c in CONSONANTS for v in VOWELS]
_ENGLISH = frozenset("does more like same note pole bake rope tape lamp name made take used".split())  # noqa: SIM905


def _pool() -> list[str]:
    words = [a + b for a in SYLLABLES for b in SYLLABLES if a != b and a + b not in _ENGLISH]
    random.Random("luthier lexicon").shuffle(words)
    return words


_WORDS = _pool()


def _words(text: str) -> list[str]:
    return text.split()


def _deal(start: int, count: int) -> list[str]:
    return _WORDS[start : start + count]


# of the people with a first name of the first list nine tenths are in pretraining, of the second one tenth
FIRST_KNOWN = [w.capitalize() for w in _deal(0, 24)]
FIRST_NEW = [w.capitalize() for w in _deal(24, 24)]
LAST = [w.capitalize() for w in _deal(48, 32)]
CITIES = [w.capitalize() for w in _deal(80, 24)]
THINGS = _deal(104, 72)
MATERIALS = _deal(176, 33)
LANGUAGE_WORDS = _deal(209, 160)
LANGUAGE_NAMES = [w.capitalize() for w in _deal(369, 8)]

JOBS = _words(
    "baker farmer doctor pilot singer tailor sailor painter miner judge nurse guard cook monk potter hunter clerk "
    "smith weaver actor dancer porter writer fisher"
)
FOODS = _words("rice soup bread fish corn beans cake eggs plums nuts cheese pears figs peas ham kale")
OBJECTS = _words(
    "rope coin key hat cup ring drum book lamp shoe ball bell clock map pen knife spoon fork brush chain flag doll "
    "mask kite stone leaf card glove scarf wheel nail comb"
)
COLOURS = _words("red blue green white black gold grey pink")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
LETTERS = "abcdefghijkl"  # symbols of the sequence tasks, and alphabet A of card 09; upper case is alphabet B

# what lists of arbitrary words are made of; without last names, so that no list holds the name of a new person
EVERYTHING = [
    *FIRST_KNOWN,
    *CITIES,
    *LANGUAGE_WORDS,
    *JOBS,
    *FOODS,
    *OBJECTS,
    *COLOURS,
    *DAYS,
    *LETTERS,
    *"0123456789",
]
