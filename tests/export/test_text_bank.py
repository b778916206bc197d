"""The embedding bank: its index names each row once, and it survives being written."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from medals_export.text_bank import TextBank, load_bank, save_bank
from medals_rt.common.errors import ExportError, MissingFileError
from tests.errors import raises

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)
INDEX = {"CT/anatomy/1": 1, "CT/anatomy/2": 0}


def test_rows_follow_the_index():
    bank = TextBank(ROWS, INDEX, "made up")
    assert bank.dim == 3
    assert bank.bank_keys == ("CT/anatomy/2", "CT/anatomy/1")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"class_rows": {"CT/anatomy/1": 0}}, ("bank-index",)),
        ({"class_rows": {"CT/anatomy/1": 0, "CT/anatomy/2": 0}}, ("bank-index",)),
        ({"class_embeddings": ROWS.astype(np.float64)}, ("bank-shape", "float64")),
        ({"class_embeddings": np.where(ROWS > 4, np.nan, ROWS)}, ("bank-not-finite",)),
        ({"class_embeddings": ROWS[0]}, ("bank-index",)),
        ({"sentence_embeddings": ROWS}, ("bank-index", "0 sentences")),
        ({"sentence_rows": {"CT": {"Liver": 0}}}, ("bank-index", "1 sentences")),
        (
            {"sentence_embeddings": ROWS[:1, :2], "sentence_rows": {"CT": {"Liver": 0}}},
            ("bank-shape",),
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments, error):
    whole = {"class_embeddings": ROWS, "class_rows": INDEX, "source": "made up", **arguments}
    with raises(ExportError, *error):
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
    with raises(MissingFileError, "bank-missing"):
        load_bank(path)
    save_file({"class_embeddings": ROWS}, path)
    with raises(MissingFileError, "bank-missing"):
        load_bank(path)
    path.with_suffix(".json").write_text('{"rows": {}}', encoding="utf-8")
    with raises(ExportError, "bank-damaged"):
        load_bank(path)
    path.with_suffix(".json").write_text(
        '{"classes": {"CT/anatomy/1": 0, "CT/anatomy/2": 1}}', encoding="utf-8"
    )
    assert load_bank(path).source == "learned with the network"
    save_file({"other": ROWS}, path)
    with raises(ExportError, "bank-damaged"):
        load_bank(path)
    path.write_bytes(b"damaged")
    with raises(ExportError, "bank-damaged"):
        load_bank(path)
