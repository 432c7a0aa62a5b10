"""Medical knowledge as triples (head, relation, tail), and a linker that finds their entities in a text.

Triples come from the reports themselves (the default; needs no file), SLAKE's knowledge graph or a user's file.
"""

from __future__ import annotations

import hashlib
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
from amif_lib.data.readers.files import read_bytes, read_lines

DICTIONARY = Path(__file__).with_name("dictionary.csv")  # findings and anatomy, with the words that name each
LEAST = 3  # least number of reports that name an entity, and of sentences that name two entities together
NAMES = "alias"  # the relation whose tail is not an entity but another word for the head
OF_SLAKE = ("en_disease.csv", "en_organ.csv", "en_organ_rel.csv")
LISTED = ("symptom", "cause", "treatment")  # SLAKE's relations whose value is a list, with commas
PROSE = "description"  # SLAKE's relation whose value is free text
NEGATION = re.compile(r"\b(no|not|without|free of|absence of|negative for|clear of|neither|nor)\b", re.IGNORECASE)
SENTENCE = re.compile(r"[^.;!?]+")
SCOPE_END = re.compile(r"[.;!?]|,\s*(?:but|however|although|though|yet)\b", re.IGNORECASE)  # of a negation

Triple = tuple[str, str, str]


# --- entities in a text ------------------------------------------------------------------------------------------


class Mention(NamedTuple):
    """Where a text names an entity: text[start:end]."""

    start: int
    end: int
    entity: str


class Linker(Protocol):
    """Finds entities. `DictionaryLinker` is built in; scispaCy's linker could replace it."""

    def link(self, text: str) -> list[Mention]:
        """Mentions in a text, in order, without overlap."""


class DictionaryLinker:
    """Finds words and phrases and takes the longest match; case, white space and a plural s make no difference.

    `words` maps each word to its entity. If `words` is empty, an InputError names `where`.
    """

    def __init__(self, words: Mapping[str, str], where: str = "linker"):
        if not words or not all(map(str.strip, words)):
            raise InputError(f"{where}: no word to look for, or an empty one; give words that are not empty")
        self.entity_of = {_key(word): entity for word, entity in words.items()}
        spelt = [r"\s*".join(map(re.escape, re.findall(r"\w+|[^\w\s]", word))) for word in words]
        longest_first = "|".join(sorted(spelt, key=lambda each: (-len(each), each)))
        self.pattern = re.compile(rf"(?<!\w)({longest_first})(?:e?s)?(?!\w)", re.IGNORECASE)

    def link(self, text: str) -> list[Mention]:
        """Mentions in a text, in order, without overlap."""
        return [Mention(m.start(), m.end(), self.entity_of[_key(m[1])]) for m in self.pattern.finditer(text)]


def _key(word: str) -> str:
    return re.sub(r"\s", "", word.lower())


def affirmed(text: str, mentions: Iterable[Mention]) -> list[Mention]:
    """The mentions that are not negated.

    A negation such as "no" denies everything after it, up to the end of the sentence or to a comma followed by "but",
    "however", "although", "though" or "yet": "no mass, nodule present" denies the nodule as well.
    """
    kept = []
    for mention in mentions:
        start = max((stop.end() for stop in SCOPE_END.finditer(text, 0, mention.start)), default=0)
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
    """The findings of the built-in dictionary that a text affirms, sorted: labels in the style of CheXpert."""
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
    left_out: int = 0  # triples whose head or tail too few reports name

    @cached_property
    def linker(self) -> DictionaryLinker:
        return DictionaryLinker(self.words)


def read(source: str, texts: Sequence[str]) -> KnowledgeGraph:
    """The knowledge that a run uses with its reports `texts`: as in ARL, triples whose head and tail the reports name.

    Args:
        source: `reports` (triples of the built-in dictionary and of entities that the reports name together), `slake`
            (the folder KG of the SLAKE set) or a file under $DATA_ROOT whose lines are head, relation and tail,
            separated by tabs. In that file the relation `alias` gives another word for its head; every entity needs
            an alias, unless it is in the dictionary.
        texts: the reports. An entity is used if at least `LEAST` reports name it.

    Raises:
        InputError: a file is absent, has another form or an unknown entity (names file and line), or no triple is left.
    """
    if source == "reports":
        words, triples, where = _words_of_dictionary(), of_reports(texts), "the reports"
    else:
        path = _path(source)
        words, triples = of_slake(path) if source == "slake" else of_file(path)
        where = paths.shown(path)
    linker = DictionaryLinker(words, where)
    named = Counter(entity for text in texts for entity in {mention.entity for mention in linker.link(text)})
    kept = sorted({triple for triple in triples if min(named[triple[0]], named[triple[2]]) >= LEAST})
    if not kept:
        what = f"head and tail must each be named in at least {LEAST} of the {len(texts)} reports"
        raise InputError(f"{where}: no usable triple: {what}; choose another knowledge source")
    entities, relations = ({name for triple in kept for name in triple[part]} for part in (slice(0, 3, 2), slice(1, 2)))
    entities, relations = tuple(sorted(entities)), tuple(sorted(relations))
    numbers = [(entities.index(head), relations.index(kind), entities.index(tail)) for head, kind, tail in kept]
    words = {word: entity for word, entity in words.items() if entity in entities}
    return KnowledgeGraph(entities, relations, np.array(numbers), words, len(set(triples)) - len(kept))


def content(source: str) -> dict[str, str]:
    """SHA-256 by file name: of the built-in dictionary and of the files that a source is read from.

    Raises InputError where one cannot be read.
    """
    of_source = {"reports": [], "slake": [_path("slake") / name for name in OF_SLAKE]}
    files = {f"data/{DICTIONARY.name}": DICTIONARY}  # its findings are ARL's labels, whatever the source of triples
    files |= {path.name: path for path in of_source.get(source, [_path(source)])}
    remedy = "name another file, or `reports`"
    return {name: hashlib.sha256(read_bytes(path, remedy)).hexdigest() for name, path in files.items()}


def _path(source: str) -> Path:
    return paths.of_setting("slake/KG" if source == "slake" else source)


def of_reports(texts: Sequence[str]) -> list[Triple]:
    """Triples of the dictionary (anatomy, part of, anatomy) and of sentences that name two entities together.

    A sentence that affirms its findings gives (finding, located in, anatomy) and (finding, occurs with, finding). A
    triple is kept if at least `LEAST` sentences give it, more than by chance (positive pointwise mutual information).
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
    """Words and triples of SLAKE's `KG` folder: lines `head#relation#tail` after a header; a tail may contain #.

    Lists are split and free text is left out. An entity's words are its name and its aliases.
    """
    triples = []
    for name in OF_SLAKE:
        for _, (head, relation, value) in _lines(folder / name, "#", 2)[1:]:
            values = [each for each in value.split(", ") if each.strip(" ,")] if relation in LISTED else [value]
            triples += [(head, relation, each) for each in values if relation != PROSE]
    words = {name: name for head, relation, tail in triples if relation != NAMES for name in (head, tail)}
    aliases = {tail: head for head, relation, tail in triples if relation == NAMES}
    return aliases | words, [triple for triple in triples if triple[1] != NAMES]  # own names override aliases


def of_file(path: Path) -> tuple[dict[str, str], list[Triple]]:
    """Words and triples of a user's file: head, relation and tail on each line, separated by tabs."""
    lines, words = _lines(path, "\t"), _words_of_dictionary()
    words = {head: head for _, (head, relation, _) in lines if relation == NAMES} | words
    for where, (head, relation, tail) in lines:
        if relation == NAMES and words.setdefault(tail, words[head]) != words[head]:
            raise InputError(f"{where}: {tail!r} is a word for {words[tail]!r} already; leave the line out")
    triples = []
    for where, (head, relation, tail) in lines:
        for entity in (head, tail):
            if entity not in words:
                what = f"{where}: entity {entity!r} is unknown"
                raise InputError(f"{what}; name it as the dictionary does, or add a line {entity}<tab>{NAMES}<tab>word")
        if head == tail or (relation != NAMES and words[head] == words[tail]):
            raise InputError(f"{where}: head and tail are both {words[head]!r}; give two entities, or another word")
        triples.append((words[head], relation, words[tail]))
    return words, [triple for triple in triples if triple[1] != NAMES]


def _lines(path: Path, separator: str, splits: int = -1) -> list[tuple[str, Triple]]:
    """Columns, in lower case, of every line that is not empty, after `<file>, line <n>` for messages."""
    out = []
    for where, line in read_lines(path):
        columns = tuple(" ".join(part.lower().split()) for part in line.split(separator, splits))
        if len(columns) != 3 or not all(columns):
            what = f"{where}: {len(columns)} columns, some empty: {line[:40]!r}"
            raise InputError(f"{what}; give head, relation and tail, with {separator!r} between them")
        out.append((where, columns))
    return out
