"""Medical knowledge as triples (head, relation, tail), and a linker that finds their entities in a text.

Of the reports at hand (the default; needs no file), of SLAKE's knowledge graph, or of a user's own file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from amif_lib.core import paths
from amif_lib.core.errors import InputError

DICTIONARY = Path(__file__).with_name("dictionary.csv")  # findings and anatomy, with the words that name each
LEAST = 3  # times that an entity must be named in the reports, or named together with another
NAMES = "alias"  # the relation whose tail is another word for its head, and no entity
OF_SLAKE = ("en_disease.csv", "en_organ.csv", "en_organ_rel.csv")
LISTED = ("symptom", "cause", "treatment")  # SLAKE's relations whose value is a list, with commas
PROSE = "description"  # SLAKE's relation whose value is free text
NEGATION = re.compile(r"\b(no|not|without|free of|absence of|negative for|clear of|neither|nor)\b", re.IGNORECASE)
SENTENCE = re.compile(r"[^.;!?]+")

Triple = tuple[str, str, str]


# --- entities in a text ------------------------------------------------------------------------------------------


class Mention(NamedTuple):
    """Where a text names an entity: text[start:end]."""

    start: int
    end: int
    entity: str


class Linker(Protocol):
    """What finds entities; `DictionaryLinker` is built in, scispaCy's could stand in its place."""

    def link(self, text: str) -> list[Mention]:
        """Mentions in a text, in order, none inside another."""


class DictionaryLinker:
    """Finds words and phrases, the longest that match; case, white space and a plural s make no difference.

    `words` maps each to its entity; `where` is what an InputError names if there are none.
    """

    def __init__(self, words: Mapping[str, str], where: str = "linker"):
        if not words:
            raise InputError(f"{where}: no word to look for; give at least one")
        self.entity_of = {_key(word): entity for word, entity in words.items()}
        spelt = [r"\s*".join(map(re.escape, re.findall(r"\w+|[^\w\s]", word))) for word in words]
        longest_first = "|".join(sorted(spelt, key=lambda each: (-len(each), each)))
        self.pattern = re.compile(rf"(?<!\w)({longest_first})(?:e?s)?(?!\w)", re.IGNORECASE)

    def link(self, text: str) -> list[Mention]:
        """Mentions in a text, in order, none inside another."""
        return [Mention(m.start(), m.end(), self.entity_of[_key(m[1])]) for m in self.pattern.finditer(text)]


def _key(word: str) -> str:
    return re.sub(r"\s", "", word.lower())


def affirmed(text: str, mentions: Iterable[Mention]) -> list[Mention]:
    """The mentions that no negation stands before in their sentence: not the nodule of "no mass or nodule"."""
    kept = []
    for mention in mentions:
        start = max(text.rfind(stop, 0, mention.start) for stop in ".;!?") + 1  # of its sentence
        if not NEGATION.search(text, start, mention.start):
            kept.append(mention)
    return kept


@cache
def dictionary() -> pd.DataFrame:
    """The built-in dictionary by entity: `kind` (finding or anatomy), `part_of` and `words`."""
    table = pd.read_csv(DICTIONARY, keep_default_na=False).set_index("entity")
    words = [[entity, *filter(None, text.split(";"))] for entity, text in table["words"].items()]
    return table.assign(words=words)


@cache
def dictionary_linker() -> DictionaryLinker:
    """The linker of the built-in dictionary."""
    return DictionaryLinker(_words_of_dictionary())


def findings(text: str) -> tuple[str, ...]:
    """The findings of the built-in dictionary that a text affirms, sorted: labels of a study, CheXpert's fashion."""
    named = {mention.entity for mention in affirmed(text, dictionary_linker().link(text))}
    return tuple(sorted(entity for entity in named if dictionary()["kind"][entity] == "finding"))


def _words_of_dictionary() -> dict[str, str]:
    return {word: entity for entity, words in dictionary()["words"].items() for word in words}


# --- triples -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KnowledgeGraph:
    """E entities in R relations, and the words by which a text names them."""

    entities: tuple[str, ...]
    relations: tuple[str, ...]
    triples: np.ndarray  # (n, 3): numbers of head, relation and tail
    words: dict[str, str]  # word -> entity
    left_out: int = 0  # triples with an end that the reports do not name

    @cached_property
    def linker(self) -> DictionaryLinker:
        return DictionaryLinker(self.words)


def read(source: str, texts: Sequence[str]) -> KnowledgeGraph:
    """The knowledge that a run uses with its reports `texts`, as ARL has it: triples whose ends the reports both name.

    Args:
        source: `reports` (triples of the built-in dictionary and of what the reports say together), `slake` (the folder
            KG of the SLAKE set) or a file under $DATA_ROOT: lines of head, relation and tail with tabs between. There
            the relation `alias` gives its head another word; an entity must have one, or be in the dictionary.
        texts: the reports; an entity counts where they name it `LEAST` times.

    Raises:
        InputError: a file that is absent, of another form or with an unknown entity (names file and line), or no
            triple left.
    """
    if source == "reports":
        words, triples, where = _words_of_dictionary(), of_reports(texts), "the reports"
    else:
        path = paths.data_root() / ("slake/KG" if source == "slake" else Path(source).expanduser())
        words, triples = of_slake(path) if source == "slake" else of_file(path)
        where = paths.shown(path)
    linker = DictionaryLinker(words, where)
    named = Counter(entity for text in texts for entity in {mention.entity for mention in linker.link(text)})
    kept = sorted({triple for triple in triples if min(named[triple[0]], named[triple[2]]) >= LEAST})
    if not kept:
        raise InputError(
            f"{where}: no triple has two ends that {LEAST} of the {len(texts)} reports name; use other knowledge"
        )
    entities, relations = ({name for triple in kept for name in triple[part]} for part in (slice(0, 3, 2), slice(1, 2)))
    entities, relations = tuple(sorted(entities)), tuple(sorted(relations))
    numbers = [(entities.index(head), relations.index(kind), entities.index(tail)) for head, kind, tail in kept]
    words = {word: entity for word, entity in words.items() if entity in entities}
    return KnowledgeGraph(entities, relations, np.array(numbers), words, len(set(triples)) - len(kept))


def of_reports(texts: Sequence[str]) -> list[Triple]:
    """Triples of the dictionary (anatomy, part of, anatomy) and of sentences that name two entities together.

    Those are (finding, located in, anatomy) and (finding, occurs with, finding), where a sentence affirms the findings,
    in at least `LEAST` sentences and more often than by chance (positive pointwise mutual information).
    """
    table, linker = dictionary(), dictionary_linker()
    single, pairs, sentences = Counter(), Counter(), 0
    for text in texts:
        for sentence in SENTENCE.findall(text):
            named = {mention.entity for mention in affirmed(sentence, linker.link(sentence))}
            found = sorted(entity for entity in named if table["kind"][entity] == "finding")
            single.update(named)
            pairs.update(product(found, sorted(named.difference(found))))
            pairs.update(combinations(found, 2))
            sentences += 1
    triples = [(entity, "part of", whole) for entity, whole in table["part_of"].items() if whole]
    for (a, b), together in pairs.items():
        if together >= LEAST and together * sentences > single[a] * single[b]:
            triples.append((a, "occurs with" if table["kind"][b] == "finding" else "located in", b))
    return triples


def of_slake(folder: Path) -> tuple[dict[str, str], list[Triple]]:
    """Words and triples of SLAKE's `KG` folder: lines `head#relation#tail` after a header, values of which may hold #.

    Lists are split, free text is left out. An entity's words are its name and its aliases.
    """
    triples = []
    for name in OF_SLAKE:
        for _, (head, relation, value) in _lines(folder / name, "#", 2)[1:]:
            values = value.split(", ") if relation in LISTED else [value]
            triples += [(head, relation, each) for each in values if relation != PROSE]
    words = {name: name for head, relation, tail in triples if relation != NAMES for name in (head, tail)}
    return _without_aliases(words, triples)


def of_file(path: Path) -> tuple[dict[str, str], list[Triple]]:
    """Words and triples of a user's file: lines of head, relation and tail with tabs between."""
    lines, words = _lines(path, "\t"), _words_of_dictionary()
    words |= {head: head for _, (head, relation, _) in lines if relation == NAMES}
    for number, (head, relation, tail) in lines:
        for entity in (head, tail):
            if relation != NAMES and entity not in words:
                what = f"{paths.shown(path)}, line {number}: entity {entity!r} is unknown"
                raise InputError(f"{what}; name it as the dictionary does, or add a line {entity}<tab>{NAMES}<tab>word")
    triples = [(words[head], relation, words.get(tail, tail)) for _, (head, relation, tail) in lines]
    return _without_aliases(words, triples)


def _without_aliases(words: dict[str, str], triples: list[Triple]) -> tuple[dict[str, str], list[Triple]]:
    """Words with the aliases that stand among the triples, and the other triples."""
    aliases = {tail: head for head, relation, tail in triples if relation == NAMES}
    return words | aliases, [triple for triple in triples if triple[1] != NAMES]


def _lines(path: Path, separator: str, splits: int = -1) -> list[tuple[int, Triple]]:
    """Number and columns of every line that is not empty, in lower case."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"{paths.shown(path)}: cannot be read ({reason}); name another file, or `reports`") from None
    out = []
    for number, line in enumerate(lines, start=1):
        columns = tuple(" ".join(part.lower().split()) for part in line.split(separator, splits))
        if line.strip() and (len(columns) != 3 or not all(columns)):
            what = f"{paths.shown(path)}, line {number}: {len(columns)} columns, some empty: {line[:40]!r}"
            raise InputError(f"{what}; give head, relation and tail, with {separator!r} between them")
        if line.strip():
            out.append((number, columns))
    return out
