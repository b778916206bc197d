"""The embedding bank: its index names each row once, and it survives being written."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from medals_export.text_bank import TextBank, load_bank, save_bank
from medals_rt.common.errors import ExportError, MissingFileError

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)
INDEX = {"CT/anatomy/1": 1, "CT/anatomy/2": 0}


def test_rows_follow_the_index():
    bank = TextBank(ROWS, INDEX, "made up")
    assert bank.dim == 3
    assert bank.bank_keys == ("CT/anatomy/2", "CT/anatomy/1")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"class_rows": {"CT/anatomy/1": 0}}, "each row named once"),
        ({"class_rows": {"CT/anatomy/1": 0, "CT/anatomy/2": 0}}, "each row named once"),
        ({"class_embeddings": ROWS.astype(np.float64)}, "float64"),
        ({"class_embeddings": np.where(ROWS > 4, np.nan, ROWS)}, "not finite"),
        ({"class_embeddings": ROWS[0]}, "each row named once"),
        ({"sentence_embeddings": ROWS}, "0 sentences"),
        ({"sentence_rows": {"CT": {"Liver": 0}}}, "1 sentences"),
        ({"sentence_embeddings": ROWS[:1, :2], "sentence_rows": {"CT": {"Liver": 0}}}, "width 3"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, match):
    whole = {"class_embeddings": ROWS, "class_rows": INDEX, "source": "made up", **arguments}
    with pytest.raises(ExportError, match=match):
        TextBank(**whole)


def test_written_and_read(tmp_path):
    path = tmp_path / "embeddings.safetensors"
    rows = {"CT": {"Liver in CT": 1}, "MRI": {"Liver in MRI": 0}}
    bank = TextBank(ROWS, INDEX, "made up", ROWS + 1, rows)
    save_bank(path, bank)
    found = load_bank(path)
    np.testing.assert_array_equal(found.class_embeddings, ROWS)
    np.testing.assert_array_equal(found.sentence_embeddings, ROWS + 1)
    assert (found.class_rows, found.sentence_rows, found.source) == (INDEX, rows, "made up")
    assert path.stat().st_mode & 0o777 == (tmp_path / "embeddings.json").stat().st_mode & 0o777


def test_files_that_are_missing_or_damaged(tmp_path):
    path = tmp_path / "embeddings.safetensors"
    with pytest.raises(MissingFileError, match=r"embeddings\.safetensors"):
        load_bank(path)
    save_file({"class_embeddings": ROWS}, path)
    with pytest.raises(MissingFileError, match=r"embeddings\.json"):
        load_bank(path)
    path.with_suffix(".json").write_text('{"rows": {}}')
    with pytest.raises(ExportError, match=r"damaged.*classes"):
        load_bank(path)
    path.with_suffix(".json").write_text('{"classes": {"CT/anatomy/1": 0, "CT/anatomy/2": 1}}')
    assert load_bank(path).source == "learned with the network"
    save_file({"other": ROWS}, path)
    with pytest.raises(ExportError, match="no class_embeddings, only other"):
        load_bank(path)
    path.write_bytes(b"damaged")
    with pytest.raises(ExportError, match="damaged"):
        load_bank(path)
