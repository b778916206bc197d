r"""Does an address alone become a bundle of the released size, in what time and memory?

    PYTHONPATH=. python benchmarks/released_export.py --output benchmarks/results/released_export

Checkpoints of both stages and a text encoder with made-up weights, with the released names, keys
and shapes, lie with BioLORD's configuration and a vocabulary on a hub on the loopback; then
`medals-rt export --from hf:...` is run as a user would, twice: the second time nothing is fetched.
Needs the extras `export` and `hub`, 10 GB of memory and 10 GB of disk.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import torch
from reporting import today, write_report
from transformers import AutoModel, MPNetConfig, MPNetTokenizer

from medals_export.model import MedalS, ModelConfig
from medals_export.text_encoder import KnowledgeEncoder
from medals_rt.bundle.bundle import Bundle
from medals_rt.common.environment import library_versions, machine_facts
from medals_rt.prompts.classes import all_classes, canonical_sentence
from tests.fakes.hub import REPOSITORY, FakeHub, serving

STAGES = {
    "crop_size_224_224_128_spacing_1.5_1.5_3.0_step_358600": (224, 224, 128),
    "crop_size_192_192_192_spacing_1.0_1.0_1.0_step_341300": (192, 192, 192),
}
VOCABULARY = 30527
MARKS = ("<s>", "<pad>", "</s>", "<unk>", "[PAD]", "[UNK]", "[CLS]", "[SEP]")


def write_network(path: Path, window_hwd: tuple[int, int, int]) -> None:
    """Write a checkpoint as the release stores it: prefixed keys, blocks of weights twice."""
    state = {}
    for key, tensor in MedalS(ModelConfig.released(window_hwd)).state_dict().items():
        state[f"module.{key}"] = tensor
        twin = key.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")
        if twin != key and ".convs." in key:
            state[f"module.{twin}"] = tensor
    torch.save({"model_state_dict": state, "epoch": 1}, path)


def write_text_side(folder: Path) -> None:
    """Write the text encoder, and BioLORD's configuration with a vocabulary of known words."""
    config = MPNetConfig(vocab_size=VOCABULARY)
    config.architectures = ["MPNetModel"]
    config.save_pretrained(folder / "BioLORD-2023-C")
    sentences = " ".join(canonical_sentence(key) for key in all_classes()).lower()
    words = dict.fromkeys((*MARKS, *re.findall(r"\w+|[^\w\s]", sentences)))
    fillers = (f"filler{number}" for number in range(VOCABULARY - len(words) - 1))
    vocabulary = (*words, *fillers, "<mask>")
    MPNetTokenizer(vocab={word: row for row, word in enumerate(vocabulary)}).save_pretrained(
        folder / "BioLORD-2023-C"
    )
    model = KnowledgeEncoder(AutoModel.from_config(config), config.hidden_size)
    state = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    torch.save({"model_state_dict": state}, folder / "text_encoder.pth")


def timed_export(address: str, endpoint: str, folder: Path) -> dict[str, float]:
    """Run the command in a process of its own."""
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "MEDALS_RT_CACHE": str(folder / "cache"),
        "NO_PROXY": "127.0.0.1",
    }
    command = ["export", "--from", address, "--precision", "fp32", "--weights", "fp16"]
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "medals_rt", *command, "--overwrite", "--out", folder / "bundle"],
        env=environment,
        check=True,
    )
    seconds = time.perf_counter() - started
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"seconds": round(seconds, 1), "largest_memory_gb": round(peak_kib * 1024 / 1e9, 2)}


def main() -> None:
    """Make the files, serve them, export them twice, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="without ending")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        release = folder / "release"
        release.mkdir()
        for name, window_hwd in STAGES.items():
            write_network(release / f"nano_UNet_CVPR2025_{name}.pth", window_hwd)
        write_text_side(release)
        (release / "LICENSE").write_text("made up", encoding="utf-8")
        files = {
            path.relative_to(release).as_posix(): path.read_bytes()
            for path in release.rglob("*")
            if path.is_file()
        }
        downloaded_gb = sum(map(len, files.values())) / 1e9
        with serving(FakeHub(files)) as hub:
            hub_answer = f"{hub.endpoint}/api/models/{REPOSITORY}/revision/main"
            # a real hub has hashed its files before it is asked
            urllib.request.urlopen(hub_answer).read()  # noqa: S310 - on the loopback
            runs = [timed_export(hub.address, hub.endpoint, folder) for _ in range(2)]
        bundle = Bundle.open(folder / "bundle")
        bundle_gb = sum(each.bytes for each in bundle.manifest.files()) / 1e9
    rows = [
        (what, f"{run['seconds']:.0f}", f"{run['largest_memory_gb']:.1f}")
        for what, run in zip(("download and export", "export again"), runs, strict=True)
    ]
    facts = machine_facts()
    lines = [
        "# An address to a bundle of the released size",
        "",
        f"{today()}, {facts['processor']}, {facts['cores']} cores, load {os.getloadavg()[2]:.0f}.",
        f"Made-up weights: {downloaded_gb:.2f} GB on a hub on the loopback,",
        f"{len(bundle.classes)} classes, a bundle of {bundle_gb:.2f} GB (fp16 constants).",
        "",
        "| | s | largest memory, GB |",
        "|---|---:|---:|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    record = {
        "machine": facts,
        "versions": library_versions(),
        "downloaded_gb": downloaded_gb,
        "bundle_gb": bundle_gb,
        "runs": runs,
    }
    write_report(options.output, record, "\n".join(lines))


if __name__ == "__main__":
    main()
