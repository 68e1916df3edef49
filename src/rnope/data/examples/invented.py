"""Words of no language, for names, keys and glossaries, so that nothing but the prompt tells of them."""

from random import Random

from rnope.data.words import KEYS, UNSEEN_KEYS, VALUES

_ONSETS = "b br d dr f g gr h k l m n p pr r s t tr v z".split()
_JOINTS = "bd dv gd kv mz tv vl vr vz zd zg zl".split()
"""Consonants that English hardly has inside a word: of its 370,000 words, seven rare ones can come out."""
_CODAS = ["", "", "", "l", "m", "n", "r", "s"]
_TAKEN = frozenset((*KEYS, *UNSEEN_KEYS, *VALUES))


class Inventor:
    """Draws words of three syllables, of some three million, and none twice."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._used = set(_TAKEN)

    def word(self) -> str:
        """A fresh word of seven letters or so, lower case, a to z."""
        while True:
            onsets = map(self._rng.choice, (_ONSETS, _JOINTS, _ONSETS))
            word = "".join(onset + self._rng.choice("aeiou") for onset in onsets) + self._rng.choice(_CODAS)
            if word not in self._used:
                self._used.add(word)
                return word

    def name(self) -> str:
        """A fresh word with a capital."""
        return self.word().capitalize()
