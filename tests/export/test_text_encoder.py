"""The knowledge encoder: read strictly and without unpickling, and it computes what was trained."""

import json
import pickle
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from medals_export.text_encoder import load_text_encoder
from medals_rt.common.errors import ExportError, InputError, MissingFileError
from tests.errors import raises
from tests.texts import SENTENCES, TINY_DIM, text_encoder_state, write_biolord


@pytest.fixture(scope="module")
def biolord(text_sources):
    return text_sources[1]


@pytest.fixture(scope="module")
def checkpoint(text_sources):
    return text_sources[0]


@pytest.fixture(scope="module")
def encoder(checkpoint, biolord):
    return load_text_encoder(checkpoint, biolord)


@pytest.fixture(scope="module")
def by_hand(biolord, checkpoint):
    """One sentence, written out with transformers' own classes."""
    state = {
        key.removeprefix("module."): value
        for key, value in torch.load(checkpoint, weights_only=True)["model_state_dict"].items()
    }
    prefix = "text_tower.biolord."
    mpnet = transformers.AutoModel.from_pretrained(biolord)
    mpnet.load_state_dict(
        {
            key.removeprefix(prefix): value
            for key, value in state.items()
            if key.startswith(prefix) and "position_ids" not in key
        }
    )
    mpnet.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(biolord)

    def embed(sentence, modality_row):
        tokens = ["[CLS]", *tokenizer.tokenize(sentence)[:254], "[SEP]"]
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens)])
        with torch.no_grad():
            mean = mpnet(input_ids=ids).last_hidden_state.mean(1)
            first = mean @ state["projection_layer.0.weight"].T + state["projection_layer.0.bias"]
            exact_gelu = first * (1 + torch.erf(first / 2**0.5)) / 2
            last = exact_gelu @ state["projection_layer.2.weight"].T
            last += state["projection_layer.2.bias"] + state["modality_embed.weight"][modality_row]
        return last[0].numpy()

    return embed


@pytest.mark.parametrize("sentence", SENTENCES)
def test_embeds_as_written_out_by_hand(encoder, by_hand, sentence):
    expected = by_hand(sentence, 1)
    found = encoder.embed([sentence], "MRI")[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_neither_batch_nor_order_matter(encoder):
    together = encoder.embed(SENTENCES, "CT")
    alone = np.concatenate([encoder.embed([sentence], "CT") for sentence in SENTENCES])
    assert together.shape == (len(SENTENCES), TINY_DIM)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def test_modality_adds_its_vector(encoder):
    vectors = encoder.model.modality_embed.weight.numpy()
    ct, microscopy = (encoder.embed(["the organ"], name)[0] for name in ("CT", "Microscopy"))
    np.testing.assert_allclose(microscopy - ct, vectors[4] - vectors[0], atol=1e-5)
    with raises(InputError, "modality-unknown", "CT, MRI"):
        encoder.embed(["x"], "MR")


def test_marks_are_those_of_bert(encoder):
    vocabulary = encoder.tokenizer.get_vocab()
    settings = encoder.settings
    assert (settings.start_id, settings.end_id) == (vocabulary["[CLS]"], vocabulary["[SEP]"])
    assert (settings.pad_id, settings.max_tokens, settings.dim) == (0, 256, TINY_DIM)


def test_every_key_that_does_not_fit_is_listed(biolord, tmp_path):
    state = text_encoder_state(biolord)
    del state["module.modality_embed.weight"]
    del state["module.text_tower.biolord.encoder.layer.1.attention.attn.q.weight"]
    state["module.projection_layer.2.bias"] = torch.zeros(3)
    state["module.extra"] = torch.zeros(1)
    torch.save({"model_state_dict": state}, tmp_path / "bad.pth")
    with pytest.raises(ExportError) as caught:
        load_text_encoder(tmp_path / "bad.pth", biolord)
    message = str(caught.value)
    assert "4 keys" in message
    assert "missing: modality_embed.weight (5, 24)" in message
    assert "missing: text_tower.biolord.encoder.layer.1.attention.attn.q.weight" in message
    assert "unexpected: extra (1,)" in message
    assert "wrong shape: projection_layer.2.bias is (3,), expected (24,)" in message


@pytest.mark.parametrize(
    ("value", "code"),
    [(torch.zeros(3, dtype=torch.int64), "no-weights"), (torch.inf, "weights-not-finite")],
)
def test_weights_that_are_none_are_refused(biolord, tmp_path, value, code):
    state = text_encoder_state(biolord)
    state["module.projection_layer.2.bias"] = torch.as_tensor(value)
    torch.save({"model_state_dict": state}, tmp_path / "bad.pth")
    with raises(ExportError, code, "bad.pth", "projection_layer.2.bias"):
        load_text_encoder(tmp_path / "bad.pth", biolord)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_that_runs_code_is_refused(biolord, tmp_path):
    torch.save({"model_state_dict": {"x": Trap(tmp_path / "trapped")}}, tmp_path / "evil.pth")
    with raises(ExportError, "checkpoint-unreadable"):
        load_text_encoder(tmp_path / "evil.pth", biolord)
    assert not (tmp_path / "trapped").exists()


def test_weights_of_the_folder_are_never_opened(checkpoint, encoder, tmp_path):
    folder = write_biolord(tmp_path / "biolord", weights=False)
    trap = pickle.dumps(Trap(tmp_path / "trapped"))
    (folder / "pytorch_model.bin").write_bytes(trap)
    (folder / "model.safetensors").write_bytes(b"damaged")
    found = load_text_encoder(checkpoint, folder).embed(["liver"], "CT")
    np.testing.assert_array_equal(found, encoder.embed(["liver"], "CT"))
    assert not (tmp_path / "trapped").exists()


def test_a_folder_of_pickled_weights_alone_is_refused(checkpoint, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    with raises(MissingFileError, "biolord-missing"):
        load_text_encoder(checkpoint, tmp_path)
    assert not (tmp_path / "trapped").exists()


def test_files_that_are_not_there(checkpoint, biolord, tmp_path):
    with raises(MissingFileError, "text-encoder-file-missing"):
        load_text_encoder(tmp_path / "none.pth", biolord)
    with raises(MissingFileError, "biolord-missing"):
        load_text_encoder(checkpoint, tmp_path / "none")
    shutil.copy(biolord / "config.json", tmp_path)
    with raises(MissingFileError, "biolord-missing"):
        load_text_encoder(checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model_type": "bert"}, ("biolord-type", "bert")),
        ({"model_type": "unheard-of"}, ("biolord-config-damaged",)),
        (
            {"model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}},
            ("biolord-config-damaged",),
        ),
        ({"max_position_embeddings": 100}, ("biolord-positions", "100", "256")),
    ],
)
def test_a_configuration_of_another_model(checkpoint, biolord, tmp_path, change, error):
    folder = shutil.copytree(biolord, tmp_path / "biolord")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'trapped')!r}, 'w')", encoding="utf-8")
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**content, **change}), encoding="utf-8")
    with raises(ExportError, *error):
        load_text_encoder(checkpoint, folder)
    assert not (tmp_path / "trapped").exists()


def test_a_tokenizer_of_another_model(checkpoint, biolord, tmp_path):
    folder = shutil.copytree(biolord, tmp_path / "biolord")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    words["extra"] = len(words) + 5
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with raises(ExportError, "tokenizer-mismatch"):
        load_text_encoder(checkpoint, folder)
    del words["extra"]
    words["[CLS"] = words.pop("[CLS]")
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with raises(ExportError, "tokenizer-tokens", "[CLS]"):
        load_text_encoder(checkpoint, folder)
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    with raises(ExportError, "tokenizer-damaged"):
        load_text_encoder(checkpoint, folder)
