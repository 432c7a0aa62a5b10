"""Knowledge of reports, of SLAKE's form and of a user's file; the linker; TransE, graph attention, linked tokens."""

from __future__ import annotations

import pytest
import torch

from amif_lib.core.errors import InputError
from amif_lib.data import knowledge_graph
from amif_lib.data.knowledge_graph import DictionaryLinker
from amif_lib.data.load import load_studies
from amif_lib.methods import entities
from amif_lib.networks import tokenizers

REPORTS = [
    "Large consolidation in the left lower zone. No pleural effusion or pneumothorax. The heart is normal in size.",
    "Moderate consolidation in the right lower zone. Small nodule in the left upper zone.",
    "Two nodules in the lung. Consolidation in the lower zone.",
    "Nodule in the upper zone. No consolidation.",
    "A nodule in the upper zone with pneumothorax. The lungs are clear.",
] * 2


def linked(text):
    return [(text[m.start : m.end], m.entity) for m in knowledge_graph.dictionary_linker().link(text)]


# --- the linker ------------------------------------------------------------------------------------------------------


def test_the_longest_word_that_matches_is_linked_whatever_its_case_number_and_spacing():
    found = linked("Enlarged  heart, small Pleural Effusions; two masses of the lungs, no massive airspace opacity")
    assert found == [("Enlarged  heart", "cardiomegaly"), ("Pleural Effusions", "pleural effusion"), ("masses", "mass"),
                     ("lungs", "lung"), ("airspace opacity", "consolidation")]  # fmt: skip
    assert DictionaryLinker({"x-ray tube": "tube"}).link("an X - ray tube.")[0][:2] == (3, 15)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("No nodule or mass is seen. Large pneumothorax.", ("pneumothorax",)),
        ("There is no evidence of pneumothorax; consolidation .", ("consolidation",)),
        ("Possible mass without surrounding edema", ("mass",)),
        ("the left lung is clear", ()),
        ("No mass, nodule present", ()),  # a comma alone does not end what "no" denies
        ("No mass, but a nodule is present", ("nodule",)),
        ("Edema, however no mass", ("edema",)),
    ],
)
def test_findings_are_those_that_a_text_affirms(text, found):
    assert knowledge_graph.findings(text) == found


def test_findings_of_drawn_reports_are_what_the_texts_state():
    """On texts whose content is known: the sentence that states a finding, or one that denies it."""
    from amif_lib.phantom import texts

    for kind, phrases in texts.POSITIVE.items():
        for phrase in phrases:
            stated = phrase.format(size="large", side="left", site="upper zone", number="two")
            assert kind.replace("nodules", "nodule") in knowledge_graph.findings(texts.sentence(stated)), stated
    assert all(knowledge_graph.findings(text) == () for denials in texts.NEGATIVE.values() for text in denials)


# --- triples ---------------------------------------------------------------------------------------------------------


def names(graph):
    return {(graph.entities[h], graph.relations[r], graph.entities[t]) for h, r, t in graph.triples.tolist()}


def test_triples_of_reports_are_counted_by_hand():
    graph = knowledge_graph.read("reports", REPORTS)
    assert names(graph) == {
        ("consolidation", "located in", "lower zone"),  # 6 of 22 sentences name both, 6 and 6 each
        ("nodule", "located in", "upper zone"),  # 6, of 8 and 6
        ("lower zone", "part of", "lung"),
        ("upper zone", "part of", "lung"),
    }
    again = knowledge_graph.read("reports", REPORTS)
    assert (again.entities, again.relations, again.words) == (graph.entities, graph.relations, graph.words)
    assert (again.triples == graph.triples).all()


def test_drawn_reports_give_a_graph_that_is_connected_to_what_the_pictures_hold():
    graph = knowledge_graph.read("reports", [study.text for study in load_studies("phantom_mimic_cxr")])
    assert ("infarct", "located in", "frontal lobe") in names(graph) and len(graph.entities) > 15
    assert {entity for word, entity in graph.words.items()} == set(graph.entities)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    return tmp_path


def test_slakes_knowledge_is_split_at_lists_and_left_out_as_prose(folder):
    kg = folder / "slake" / "KG"
    kg.mkdir(parents=True)
    lines = ["disease#attribute#value", "Nodule#location#Lung", "Nodule#symptom#Consolidation, , Fever"]
    lines += [
        "Nodule#alias#Spot",
        "Nodule#alias#Lung",
        "Nodule#description#one of two categories#and so on",
        "nodule#location#lung",
    ]
    (kg / "en_disease.csv").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    (kg / "en_organ.csv").write_text("organ#attribute#value\nLung#function#breathe\n")
    (kg / "en_organ_rel.csv").write_text("organ#attribute#value\nlower zone#belong to#Lung\n")
    graph = knowledge_graph.read("slake", ["A spot in the lung. Consolidation in the lower zone."] * 3)
    assert names(graph) == {
        ("nodule", "location", "lung"),
        ("nodule", "symptom", "consolidation"),
        ("lower zone", "belong to", "lung"),
    }
    assert graph.words["spot"] == "nodule" and graph.left_out == 2  # fever and breathing, which no report names
    assert "" not in graph.entities and graph.words["lung"] == "lung"  # an alias takes no name from another entity
    with pytest.raises(InputError, match=r"en_disease.csv, line 3: 2 columns"):
        (kg / "en_disease.csv").write_text("disease#attribute#value\n\nNodule#location\n")
        knowledge_graph.read("slake", REPORTS)


def test_a_users_file_may_bring_its_own_entities(folder):
    (folder / "own.tsv").write_text("Hole\talias\tcavity\nhole\tfollows\tconsolidation\nhole\tlocated in\tlower lobe\n")
    graph = knowledge_graph.read("own.tsv", ["A hole after consolidation, lower zone.", "Two cavities: cavity."] * 3)
    assert names(graph) == {("hole", "follows", "consolidation"), ("hole", "located in", "lower zone")}
    assert {"hole", "cavity", "infiltrate", "lower lobe"} <= set(graph.words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nodule\tin\tlung\nplural effusion\tin\tpleura\n", "own.tsv, line 2: entity 'plural effusion' is unknown"),
        (b"nodule\tin\tlung\n\nnodule in lung\n", "own.tsv, line 3: 1 columns"),
        (b"nodule\tin\t\n", "own.tsv, line 1: 3 columns, some empty"),
        (b"", "own.tsv: no records"),
        (b"heart\talias\tpleura\n", "own.tsv, line 1: 'pleura' is a word for 'pleura' already; leave"),
        (b"heart\talias\tpump\nlung\talias\tpump\n", "line 2: 'pump' is a word for 'heart' already; leave"),
        (b"tube\talias\ttube\n", "own.tsv, line 1: head and tail are both 'tube'"),
        (b"effusion\tin\tpleural effusion\n", "own.tsv, line 1: head and tail are both 'pleural effusion'"),
        (b"mass\tin\tbrain\n", "own.tsv: no usable triple: head and tail must each be named in at least 3 of the 10"),
        (b"\xff\xfe", "own.tsv, line 1: not UTF-8"),
        (None, "own.tsv: no such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_that_names_it(content, message, folder):
    if content is not None:
        (folder / "own.tsv").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        knowledge_graph.read("own.tsv", REPORTS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", [{}, {"nodule": "nodule", " ": "blank"}])
def test_a_linker_needs_words_and_none_that_is_empty(words):
    with pytest.raises(InputError, match="no word to look for, or an empty one"):
        DictionaryLinker(words)


def test_an_alias_of_a_dictionarys_word_leaves_that_word_to_its_entity(folder):
    (folder / "own.tsv").write_text("effusion\talias\tfluid layer\neffusion\tin\tpleura\n")
    graph = knowledge_graph.read("own.tsv", ["Effusion at the pleura, a fluid layer."] * 3)
    assert names(graph) == {("pleural effusion", "in", "pleura")}
    assert [mention.entity for mention in graph.linker.link("Effusion: a fluid layer.")] == ["pleural effusion"] * 2


# --- vectors of entities ---------------------------------------------------------------------------------------------


def test_transe_ranks_the_triples_of_a_toy_graph_above_chance():
    """A grid, right of and above: 16 places, 24 triples. By chance a reciprocal rank is about .2."""
    place = torch.arange(16).reshape(4, 4)
    right = torch.stack([place[:, :-1].flatten(), torch.zeros(12, dtype=torch.long), place[:, 1:].flatten()], 1)
    above = torch.stack([place[:-1].flatten(), torch.ones(12, dtype=torch.long), place[1:].flatten()], 1)
    triples, draws = torch.cat([right, above]), lambda: torch.Generator().manual_seed(0)
    table, relations = entities.transe(triples, 16, 2, 32, draws())
    random = entities.filtered_mrr(triples, torch.randn(16, 32, generator=draws()), torch.zeros(2, 32))
    assert entities.filtered_mrr(triples, table, relations) > 0.8 > 2 * random
    assert torch.equal(table, entities.transe(triples, 16, 2, 32, draws())[0])


def test_a_rank_leaves_out_other_right_answers_and_does_not_profit_from_ties():
    triples, line = torch.tensor([[0, 0, 1], [0, 0, 2]]), torch.tensor([[0.0], [1.0], [1.0], [5.0]])
    one = torch.ones(1, 1)
    assert entities.filtered_mrr(triples, line, one) == pytest.approx(1.0)  # the other 1 is right as well
    assert entities.filtered_mrr(triples, torch.zeros(4, 1), one) < 0.5  # all equal: nothing is known


def loop_attention(layer, x, edges):
    """Graph attention entity by entity, head by head."""
    heads, out = layer.source.shape
    result = torch.zeros(len(x), heads, out)
    for i in range(len(x)):
        sources = [int(s) for s, t in edges.T if t == i]
        for h in range(heads):
            w = layer.linear.weight[h * out : (h + 1) * out]
            scores = [w @ x[j] @ layer.source[h] + w @ x[i] @ layer.target[h] for j in sources]
            weights = torch.nn.functional.leaky_relu(torch.stack(scores), 0.2).softmax(0)
            result[i, h] = sum(a * (w @ x[j]) for a, j in zip(weights, sources, strict=True))
    return result.flatten(1) + layer.bias


@pytest.fixture
def attention():
    torch.manual_seed(0)
    layer, x = entities.GraphAttention(6, 3, 2), 3 * torch.randn(5, 6)
    layer.bias.data.normal_()
    return layer, x, entities.EntityEncoder(5, torch.tensor([[0, 0, 1], [2, 1, 1], [3, 0, 0]]), 8).edges


def test_graph_attention_is_that_of_a_loop(attention):
    layer, x, edges = attention
    assert edges.shape[1] == 5 + 2 * 3
    torch.testing.assert_close(layer(x, edges), loop_attention(layer, x, edges), atol=1e-6, rtol=1e-5)


def test_graph_attention_is_that_of_torch_geometric(attention):
    layer, x, edges = attention
    geometric = pytest.importorskip("torch_geometric.nn")
    theirs = geometric.GATConv(6, 3, heads=2)
    ours = {"att_src": layer.source[None], "att_dst": layer.target[None]}
    theirs.load_state_dict(ours | {"bias": layer.bias, "lin.weight": layer.linear.weight})
    torch.testing.assert_close(layer(x, edges), theirs(x, edges[:, edges[0] != edges[1]]), atol=1e-6, rtol=1e-5)


def test_entities_of_tokens_are_those_of_the_text_with_all_their_mentions(tmp_path):
    text = "No pneumothorax. Large consolidation of the lower lobe; no other consolidations."
    tokenizer = tokenizers.train([text.replace("pneumothorax", ""), text], 60, tmp_path)  # that word is spelt out
    graph = knowledge_graph.read("reports", [text] * 3 + ["lung"] * 3)
    ids, mask = tokenizers.encode(tokenizer, [text, "lung, and more", "nothing here"], 64)
    number = {name: i for i, name in enumerate(graph.entities)}
    found, spans = entities.linked(graph.linker, number, tokenizer, ids, mask)
    shown = []
    for i in range(3):
        linked_to = zip(found[i].tolist(), spans[i], strict=True)
        shown.append({graph.entities[n]: tokenizer.decode(ids[i][own]) for n, own in linked_to if n >= 0})
    first = {"consolidation": "consolidation consolidations", "lower zone": "lower lobe"}
    assert shown == [first, {"lung": "lung"}, {}]
    assert (spans.sum(1) <= 1).all() and not spans[found < 0].any()
    cut = tokenizers.encode(tokenizer, [text], 6)
    assert (entities.linked(graph.linker, number, tokenizer, *cut)[0] == -1).all()  # what is cut off names nothing
