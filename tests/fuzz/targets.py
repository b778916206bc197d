"""What is attacked: each format's reader, a few valid files of it, and mutations that know it."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from medals_rt.bundle.bundle import Bundle
from medals_rt.bundle.manifest import EmbeddingsRecord, file_sha256, parse_manifest
from medals_rt.bundle.recipes import read_recipe
from medals_rt.io.registry import read_case, read_labels
from medals_rt.pipeline.batch.jobs_file import read_jobs
from medals_rt.prompts.embedding import PromptEmbedder
from medals_rt.prompts.prompt_set import parse_prompts, read_prompts
from tests.dicom import write_series
from tests.fuzz import dicom_peers
from tests.fuzz.mutations import Mutation, inside_gzip, inside_zip
from tests.paths import ROOT

MAX_VOXELS = 1 << 18
"""Given to every reader: what is larger must be refused before memory is taken for it."""

REPOSITORY = ROOT


@dataclass(frozen=True)
class Target:
    """One reader under attack.

    Attributes
    ----------
    name
        For messages.
    ending
        Of the file that is fed.
    seeds
        Makes valid files, given a folder to work in.
    feed
        Reads a file; may raise `MedalsError` and nothing else.
    mutations
        Mutations beside the blind ones.
    """

    name: str
    ending: str
    seeds: Callable[[Path], list[bytes]]
    feed: Callable[[Path], object]
    mutations: Sequence[Mutation] = ()


def _image() -> np.ndarray:
    return (np.random.default_rng(0).random((7, 8, 9)) * 255).astype(np.int16)


def _npz_seeds(_: Path) -> list[bytes]:
    image = _image()
    prompts = {"1": "Liver in abdominal CT", "2": "Spleen in abdominal CT", "instance_label": 0}
    found = []
    for save in (np.savez, np.savez_compressed):
        out = io.BytesIO()
        save(
            out,
            imgs=image.astype(np.uint8),
            spacing=np.array([1.0, 1.0, 2.5]),
            gts=(image > 200).astype(np.uint8),
            text_prompts=np.array(prompts, dtype=object),
        )
        found.append(out.getvalue())
    return found


def _nifti_seeds(folder: Path) -> list[bytes]:
    import nibabel as nib

    affine = np.diag([1.0, -1.5, 2.0, 1.0])
    path = folder / "seed.nii"
    nib.save(nib.Nifti1Image(_image(), affine), path)
    return [path.read_bytes()]


def _nifti_gz_seeds(folder: Path) -> list[bytes]:
    return [gzip.compress(seed, mtime=0) for seed in _nifti_seeds(folder)]


def _nifti_2_seeds(folder: Path) -> list[bytes]:
    import nibabel as nib

    path = folder / "seed2.nii"
    nib.save(nib.Nifti2Image(_image(), np.diag([1.0, -1.5, 2.0, 1.0])), path)
    return [path.read_bytes()]


def _metaimage_seeds(folder: Path) -> list[bytes]:
    import SimpleITK

    found = []
    for packed in (False, True):
        path = folder / "seed.mha"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(_image()), str(path), packed)
        found.append(path.read_bytes())
    return found


def _mgh_seeds(folder: Path) -> list[bytes]:
    import nibabel as nib

    path = folder / "seed.mgh"
    affine = np.diag([1.0, -1.5, 2.0, 1.0])
    nib.save(nib.freesurfer.MGHImage(_image().astype(np.int16), affine), path)
    return [path.read_bytes()]


def _nrrd_seeds(folder: Path) -> list[bytes]:
    import nrrd

    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag([1.0, 1.0, 2.0]),
        "space origin": [0.0, 0.0, 0.0],
    }
    found = []
    for encoding in ("raw", "gzip"):
        path = folder / "seed.nrrd"
        nrrd.write(str(path), _image(), {**header, "encoding": encoding})
        found.append(path.read_bytes())
    return found


def _dicom_seeds(folder: Path) -> list[bytes]:
    series = folder / "series"
    series.mkdir(exist_ok=True)
    write_series(series, _image(), np.diag([1.0, 1.0, 2.0, 1.0]))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(series.iterdir()):
            archive.write(path, path.name)
    return [out.getvalue()]


def _dicom_slice_seeds(folder: Path) -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(_dicom_seeds(folder)[0])) as archive:
        return [archive.read(archive.namelist()[0])]


def _prompts_seeds(_: Path) -> list[bytes]:
    contents = (
        {"1": "Liver in abdominal CT", "2": "Left kidney in abdominal CT", "instance_label": 0},
        {"1": "Lesion of the liver in CT", "instance_label": 1},
    )
    return [json.dumps(content).encode() for content in contents]


def _jobs_seeds(_: Path) -> list[bytes]:
    rows = [{"input": "a.npz", "prompts": "p.json"}, {"input": "b.nii", "output": "c.nii"}]
    return [json.dumps(rows).encode()]


def _jobs_csv_seeds(_: Path) -> list[bytes]:
    return [b"input,prompts,output\na.npz,p.json,x.npz\nb.npz,,\n"]


def _manifest_seeds(_: Path) -> list[bytes]:
    return [(REPOSITORY / "engines" / "demo" / "bundle.json").read_bytes()]


def _bank_seeds(_: Path) -> list[bytes]:
    return [(REPOSITORY / "engines" / "demo" / "embeddings.safetensors").read_bytes()]


def _recipe_seeds(_: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((REPOSITORY / "engines/recipes").glob("*.toml"))]


def _feed_case(path: Path) -> object:
    return read_case(path, max_voxels=MAX_VOXELS)


def _feed_labels(path: Path) -> object:
    return read_labels(path, max_voxels=MAX_VOXELS)


def _feed_manifest(path: Path) -> object:
    """Open a bundle whose manifest is the file and whose other files are missing."""
    parse_manifest(path.read_bytes(), path.name)
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    path.replace(folder / "bundle.json")
    return Bundle.open(folder)


def _feed_bank(path: Path) -> object:
    """Read the embeddings of a bundle whose manifest vouches for the broken file."""
    manifest = parse_manifest(_manifest_seeds(path)[0], "the demo's")
    record = EmbeddingsRecord(
        file=path.name,
        sha256=file_sha256(path),
        bytes=path.stat().st_size,
        dim=manifest.embeddings.dim,
        source="fuzzed",
    )
    bundle = Bundle(path.parent, msgspec.structs.replace(manifest, embeddings=record))
    return PromptEmbedder(bundle).embed(
        parse_prompts({"1": "Liver in abdominal CT", "instance_label": 0})
    )


TARGETS = (
    Target("npz case", ".npz", _npz_seeds, _feed_case, (inside_zip,)),
    Target("npz labels", ".npz", _npz_seeds, _feed_labels, (inside_zip,)),
    Target("nifti", ".nii", _nifti_seeds, _feed_case),
    Target("nifti gz", ".nii.gz", _nifti_gz_seeds, _feed_case, (inside_gzip,)),
    Target("nifti labels", ".nii", _nifti_seeds, _feed_labels),
    Target("nifti 2", ".nii", _nifti_2_seeds, _feed_case),
    Target("metaimage", ".mha", _metaimage_seeds, _feed_case),
    Target("metaimage labels", ".mha", _metaimage_seeds, _feed_labels),
    Target("freesurfer", ".mgh", _mgh_seeds, _feed_case),
    Target("freesurfer labels", ".mgh", _mgh_seeds, _feed_labels),
    Target("nrrd", ".nrrd", _nrrd_seeds, _feed_case),
    Target("nrrd labels", ".nrrd", _nrrd_seeds, _feed_labels),
    Target("dicom zip", ".zip", _dicom_seeds, _feed_case, (inside_zip,)),
    Target("dicom file", ".dcm", _dicom_slice_seeds, _feed_case),
    Target("prompts", ".json", _prompts_seeds, read_prompts),
    Target("jobs", ".json", _jobs_seeds, read_jobs),
    Target("jobs csv", ".csv", _jobs_csv_seeds, read_jobs),
    Target("manifest", ".json", _manifest_seeds, _feed_manifest),
    Target("embeddings", ".safetensors", _bank_seeds, _feed_bank),
    Target("recipe", ".toml", _recipe_seeds, read_recipe),
    Target("dicomweb list", ".json", dicom_peers.list_seeds, dicom_peers.feed_list),
    Target("dicomweb headers", ".json", dicom_peers.header_seeds, dicom_peers.feed_headers),
    Target("dicomweb object", ".bin", dicom_peers.object_seeds, dicom_peers.feed_object),
    Target("node rules", ".toml", dicom_peers.rules_seeds, dicom_peers.feed_rules),
    Target("node object", ".bin", dicom_peers.store_seeds, dicom_peers.feed_store),
)
