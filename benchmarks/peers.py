r"""How fast and small are the steps of a case, beside the libraries that people use for them?

    python benchmarks/peers.py --output benchmarks/results/peers [--image FILE] [--labels FILE]

Each contestant runs in a process of its own, one after another, on the same arrays of a real scan;
the median of the repetitions counts, after a first run that does not. Peak memory is what the
process took beyond what it held before the step. What computes the same is compared voxel by voxel,
what computes something else says so.

- Sliding window: the demo model's fine stage over the scan at 3 mm, nine organs, text only, by our
  own sweep, MONAI's `sliding_window_inference` and nnU-Net's `nnUNetPredictor`, half an overlap,
  Gaussian weights. All three call the same network: eager PyTorch in fp32, the exported graphs, or,
  over the scan as it is, one that only answers ("no network": what is left is the sweep). Peers are
  used as their users would: sums of all classes over the whole image, then the largest. MONAI puts
  its last windows elsewhere; nnU-Net keeps its sums in float16.
- Resampling: an image to 1.5 mm, a label map to 1.5 mm and back, by nnU-Net and TotalSegmentator
  with their own settings and with linear interpolation, which is ours.
- Components: the largest one of each class, by `cc3d`, scipy and MONAI.
- Surface metrics: NSD at 2 mm of each class, by DeepMind's surface-distance and MONAI.

Needs the extras `cpu` and `export`, and `pip install monai nnunetv2 surface-distance
connected-components-3d` and `pip install --no-deps TotalSegmentator`; what is absent is left out
and named. Runs offline.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import numpy as np
from reporting import circumstances, new_parser, write_report

from medals_rt.common.cores import usable_cores
from medals_rt.io.registry import read_case, read_labels

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"
CHECKPOINT = ROOT / "benchmarks" / "checkpoints" / "demo_fine.pth"
TARGET_MM = 1.5
TOLERANCE_MM = 2.0
SWEPT_MM = 3.0
CLASSES = 9
CHANGED = 0.02
"""Share of voxels that get another voxel's label: a network's answer is not as clean as a truth."""

Array = np.ndarray
Triple = tuple[float, float, float]
Predict = Callable[[Array], Array]


class Case(NamedTuple):
    """What all contestants work on; arrays `(H, W, D)`, spacing in mm."""

    image: Array
    image_spacing_mm: Triple
    labels: Array
    labels_spacing_mm: Triple


# Sliding window -----------------------------------------------------------------------------------


def predictor(name: str) -> Predict:
    """Return one network: from a window `(1, 1, h, w, d)` to probabilities `(N, h, w, d)`."""
    import torch

    from medals_export.checkpoint import load_checkpoint
    from medals_export.eager import EagerNetwork
    from medals_rt.bundle.bundle import Bundle
    from medals_rt.inference.network import Network, PassInput, StageNetwork

    bundle = Bundle.open(ROOT / "engines" / "demo")
    spec = bundle.stage_spec(2)
    if name == "no network":
        rng = np.random.default_rng(0)
        answer = rng.random((CLASSES, *spec.window_hwd), dtype=np.float32)
        return lambda _: answer.copy()
    torch.set_num_threads(usable_cores())
    network: Network
    if name == "PyTorch fp32":
        network = EagerNetwork(spec, load_checkpoint(CHECKPOINT).model.eval(), "fp32", "cpu")
    else:
        network = StageNetwork.open(bundle, 2, runner="openvino", precision="fp32")
    queries = bundle.class_embeddings[:CLASSES]  # those of organs in CT

    def predict(window: Array) -> Array:
        parts = [np.asarray(found) for _, found in network.predict(PassInput(window, queries))]
        return np.concatenate(parts)

    return predict


def swept(case: Case, network: str) -> tuple[Array, tuple[int, int, int]]:
    """Return the image that is swept, at least one window large, and the window's shape.

    A network sees it at `SWEPT_MM`, which makes about as many windows as a case has.
    """
    from medals_rt.bundle.bundle import Bundle
    from medals_rt.planning.sliding_window import pad_far_end, padded_shape
    from medals_rt.preprocessing.resampling import resample_image

    window = Bundle.open(ROOT / "engines" / "demo", verify=False).stage_spec(2).window_hwd
    image = case.image
    if network != "no network":
        shape = target_shape(image.shape, case.image_spacing_mm, SWEPT_MM)
        image = np.asarray(resample_image(image, shape))
    return np.ascontiguousarray(pad_far_end(image, padded_shape(image.shape, window))), window


def sweep(case: Case, network: str) -> Callable[[], Array]:
    """Our own sweep, as `inference.stage` makes it."""
    from medals_rt.inference.aggregation import SlabAggregator, empty_label_map
    from medals_rt.planning.sliding_window import gaussian_weights, plan_windows

    predict, (image, shape) = predictor(network), swept(case, network)
    values = tuple(range(1, CLASSES + 1))

    def run() -> Array:
        windows = plan_windows(image.shape, shape)
        weights = gaussian_weights(shape)
        decided = empty_label_map(image.shape, values, weights, keep_probability=False)
        aggregator = SlabAggregator(windows, values, weights, decided, threshold=0.5)
        for window in windows:
            aggregator.begin(window)
            cut = np.ascontiguousarray(image[window.slices])
            aggregator.add(slice(0, CLASSES), predict(cut[None, None]))
        return aggregator.result().labels_hwd

    return run


def decided(probabilities: Any) -> Array:
    """Take the class of the largest probability, where that is at least a half."""
    best, label = probabilities.max(0)
    labels = (label + 1).to(dtype=label.dtype)
    labels[best < 0.5] = 0
    return labels.numpy().astype(np.uint8)


def sweep_monai(case: Case, network: str) -> Callable[[], Array]:
    """MONAI's inferer; it needs the network's answers as tensors."""
    import torch
    from monai.inferers import sliding_window_inference

    predict, (image, shape) = predictor(network), swept(case, network)

    def run() -> Array:
        with torch.inference_mode():
            found = sliding_window_inference(
                torch.from_numpy(image)[None, None],
                shape,
                1,
                lambda window: torch.from_numpy(predict(window.numpy()))[None],
                overlap=0.5,
                mode="gaussian",
            )
        return decided(found[0])

    return run


def sweep_nnunet(case: Case, network: str) -> Callable[[], Array]:
    """nnU-Net's predictor, given the network and its windows instead of a trained folder."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predict, (image, shape) = predictor(network), swept(case, network)

    class Wrapped(torch.nn.Module):
        def forward(self, window: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(predict(window.numpy()))[None]

    inferer = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    inferer.network = Wrapped()
    inferer.configuration_manager = SimpleNamespace(patch_size=shape)
    inferer.label_manager = SimpleNamespace(num_segmentation_heads=CLASSES)

    def run() -> Array:
        found = inferer.predict_sliding_window_return_logits(torch.from_numpy(image)[None])
        return decided(found)

    return run


# Resampling ---------------------------------------------------------------------------------------


def target_shape(
    shape: tuple[int, ...], spacing_mm: Triple, target_mm: float = TARGET_MM
) -> tuple[int, int, int]:
    """Return the shape at another spacing."""
    h, w, d = (
        max(1, round(size * each / target_mm)) for size, each in zip(shape, spacing_mm, strict=True)
    )
    return h, w, d


def image_ours(case: Case) -> Callable[[], Array]:
    """Trilinear."""
    from medals_rt.preprocessing.resampling import resample_image

    shape = target_shape(case.image.shape, case.image_spacing_mm)
    return lambda: np.asarray(resample_image(case.image, shape))


def image_nnunet(case: Case, order: int) -> Callable[[], Array]:
    """Resample in each axis alike (`force_separate_z=False`, which is its default)."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    shape = target_shape(case.image.shape, case.image_spacing_mm)
    new = (TARGET_MM,) * 3

    def run() -> Array:
        return resample_data_or_seg_to_shape(
            case.image[None], shape, case.image_spacing_mm, new, order=order
        )[0]

    return run


def image_totalsegmentator(case: Case, order: int) -> Callable[[], Array]:
    """Resample by scipy's zoom, whose corners are centers of voxels: another grid than ours."""
    from totalsegmentator.resampling import resample_img

    shape = target_shape(case.image.shape, case.image_spacing_mm)
    zoom = np.array(shape) / np.array(case.image.shape)
    wide = case.image.astype(np.float64)  # what `get_fdata` gives it
    return lambda: resample_img(wide, zoom, order=order, nr_cpus=1)


def labels_ours(case: Case) -> Callable[[], Array]:
    """Resample there and back."""
    from medals_rt.preprocessing.resampling import resample_labels

    shape = target_shape(case.labels.shape, case.labels_spacing_mm)

    def run() -> Array:
        return np.asarray(resample_labels(resample_labels(case.labels, shape), case.labels.shape))

    return run


def labels_nnunet(case: Case) -> Callable[[], Array]:
    """One mask a label, linear, for that is its default."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    shape, spacing = target_shape(case.labels.shape, case.labels_spacing_mm), case.labels_spacing_mm
    new = (TARGET_MM,) * 3
    given = case.labels.astype(np.int16)

    def run() -> Array:
        small = resample_data_or_seg_to_shape(given[None], shape, spacing, new, True, 1, 0)
        return resample_data_or_seg_to_shape(small, given.shape, new, spacing, True, 1, 0)[0]

    return run


def labels_totalsegmentator(case: Case) -> Callable[[], Array]:
    """One mask a label within its box, linear."""
    from totalsegmentator.resampling import resample_one_hot_crop

    shape = target_shape(case.labels.shape, case.labels_spacing_mm)

    def run() -> Array:
        small = resample_one_hot_crop(case.labels, shape, order=1, nr_cpus=usable_cores())
        return resample_one_hot_crop(small, case.labels.shape, order=1, nr_cpus=usable_cores())

    return run


# Components ---------------------------------------------------------------------------------------


def scattered(case: Case) -> Array:
    """Return the labels with some voxels of others among them."""
    rng = np.random.default_rng(0)
    result = case.labels.copy()
    flat = result.reshape(-1)
    count = int(CHANGED * flat.size)
    flat[rng.integers(0, flat.size, count)] = flat[rng.integers(0, flat.size, count)]
    return result


def largest_ours(case: Case) -> Callable[[], Array]:
    """All classes at once."""
    from medals_rt.postprocessing.connected_components import keep_components, measure_components

    labels = scattered(case)

    def run() -> Array:
        components = measure_components(labels)
        order = np.lexsort((-components.sizes, components.labels))
        _, first = np.unique(components.labels[order], return_index=True)
        stays = np.zeros(len(order), np.bool_)
        stays[order[first]] = True
        return np.asarray(keep_components(labels, components, stays))

    return run


def largest_cc3d(case: Case) -> Callable[[], Array]:
    """`cc3d.largest_k` of each class, as its documentation shows."""
    import cc3d

    labels = scattered(case)

    def run() -> Array:
        result = np.zeros_like(labels)
        for label in np.unique(labels)[1:]:
            result[cc3d.largest_k(labels == label, k=1, connectivity=6).astype(np.bool_)] = label
        return result

    return run


def largest_scipy(case: Case) -> Callable[[], Array]:
    """`scipy.ndimage.label` of each class."""
    from scipy import ndimage

    labels = scattered(case)

    def run() -> Array:
        result = np.zeros_like(labels)
        for label in np.unique(labels)[1:]:
            numbers, _ = ndimage.label(labels == label)
            sizes = np.bincount(numbers.reshape(-1))
            result[numbers == np.argmax(sizes[1:]) + 1] = label
        return result

    return run


def largest_monai(case: Case) -> Callable[[], Array]:
    """MONAI's transform."""
    import torch
    from monai.transforms import KeepLargestConnectedComponent

    labels = torch.from_numpy(scattered(case))[None]
    present = np.unique(case.labels)[1:].tolist()
    keep = KeepLargestConnectedComponent(present, is_onehot=False, connectivity=1)
    return lambda: np.asarray(keep(labels)[0]).astype(case.labels.dtype)


# Surface metrics ----------------------------------------------------------------------------------


def moved(case: Case) -> Array:
    """Return the labels one voxel further along H."""
    return np.roll(case.labels, 1, axis=0)


def nsd_ours(case: Case) -> Callable[[], Array]:
    """Each class."""
    from medals_rt.tools.evaluate.metrics import nsd_by_label

    other, labels = moved(case), np.unique(case.labels)[1:].tolist()

    def run() -> Array:
        spacing = (case.labels_spacing_mm,)
        found = nsd_by_label(case.labels, other, labels, spacing, TOLERANCE_MM)
        return np.array([found[label][0] for label in labels])

    return run


def nsd_deepmind(case: Case) -> Callable[[], Array]:
    """Each class."""
    import surface_distance

    other, labels = moved(case), np.unique(case.labels)[1:].tolist()

    def run() -> Array:
        found = []
        for label in labels:
            distances = surface_distance.compute_surface_distances(
                case.labels == label, other == label, case.labels_spacing_mm
            )
            found.append(
                surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM)
            )
        return np.array(found)

    return run


def nsd_monai(case: Case) -> Callable[[], Array]:
    """Each class, with its sub-voxel surfaces; one class in memory at a time."""
    import torch
    from monai.metrics import compute_surface_dice

    other, labels = moved(case), np.unique(case.labels)[1:].tolist()

    def run() -> Array:
        found = []
        for label in labels:
            first, second = (
                torch.from_numpy(each == label)[None, None] for each in (other, case.labels)
            )
            score = compute_surface_dice(
                first, second, [TOLERANCE_MM], True,
                spacing=case.labels_spacing_mm, use_subvoxels=True,
            )  # fmt: skip
            found.append(float(score[0, 0]))
        return np.array(found)

    return run


# Who takes part -----------------------------------------------------------------------------------


class Contestant(NamedTuple):
    """One way to do a step; `needs` is the module that must be there."""

    make: Callable[[Case], Callable[[], Array]]
    needs: str = "medals_rt"
    same: bool = True
    """Whether it is asked for the same result as the first one of its step."""


NETWORKS = {"no network": False, "PyTorch fp32": True, "OpenVINO fp32": True}
"""And whether answers can be compared: peers put windows elsewhere where they don't fit evenly."""
STEPS: dict[str, dict[str, Contestant]] = {
    **{
        f"sliding window, {network}": {
            "medals-rt": Contestant(lambda case, n=network: sweep(case, n)),
            "MONAI": Contestant(lambda case, n=network: sweep_monai(case, n), "monai", same),
            "nnU-Net": Contestant(lambda case, n=network: sweep_nnunet(case, n), "nnunetv2", same),
        }
        for network, same in NETWORKS.items()
    },
    "image to 1.5 mm": {
        "medals-rt": Contestant(image_ours),
        "nnU-Net, linear": Contestant(lambda case: image_nnunet(case, 1), "nnunetv2"),
        "nnU-Net, cubic (its default)": Contestant(
            lambda case: image_nnunet(case, 3), "nnunetv2", same=False
        ),
        "TotalSegmentator, linear": Contestant(
            lambda case: image_totalsegmentator(case, 1), "totalsegmentator", same=False
        ),
        "TotalSegmentator, cubic (its default)": Contestant(
            lambda case: image_totalsegmentator(case, 3), "totalsegmentator", same=False
        ),
    },
    "labels to 1.5 mm and back": {
        "medals-rt": Contestant(labels_ours),
        "nnU-Net": Contestant(labels_nnunet, "nnunetv2", same=False),
        "TotalSegmentator": Contestant(labels_totalsegmentator, "totalsegmentator", same=False),
    },
    "largest component of each class": {
        "medals-rt": Contestant(largest_ours),
        "cc3d": Contestant(largest_cc3d, "cc3d"),
        "scipy": Contestant(largest_scipy, "scipy"),
        "MONAI": Contestant(largest_monai, "monai"),
    },
    "NSD at 2 mm of each class": {
        "medals-rt": Contestant(nsd_ours),
        "surface-distance": Contestant(nsd_deepmind, "surface_distance"),
        "MONAI": Contestant(nsd_monai, "monai"),
    },
}
PACKAGES = ("monai", "nnunetv2", "TotalSegmentator", "connected-components-3d", "surface-distance")


# Measuring ----------------------------------------------------------------------------------------


def read(options: argparse.Namespace) -> Case:
    """Read the scan and the label map, which need not be of one patient."""
    volume = read_case(options.image).volume
    labels = read_labels(options.labels)
    image = np.asarray(volume.image_dhw, np.float32).transpose(1, 2, 0)
    low, high = np.percentile(image, (0.5, 99.5))
    image = np.clip((image - low) / (high - low), 0, 1) * 255
    if labels.source is None:
        raise SystemExit(f"{options.labels} has no spacing; give a NIfTI or NRRD file")
    return Case(
        np.ascontiguousarray(image, np.float32),
        volume.spacing_hwd_mm,
        np.ascontiguousarray(np.asarray(labels.labels_dhw).transpose(1, 2, 0)),
        labels.source.spacing_hwd_mm,
    )


def memory_gb(field: str) -> float:
    """Read this process' resident memory: VmRSS now, VmHWM the most so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e9
    raise OSError(f"/proc/self/status has no {field}")


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Run one contestant."""
    step, name = options.worker
    run = STEPS[step][name].make(read(options))
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts from now
    before = memory_gb("VmRSS")
    seconds = []
    for _ in range(options.repetitions + 1):
        start = time.perf_counter()
        found = run()
        seconds.append(round(time.perf_counter() - start, 4))
    np.save(options.found, found)
    return {"seconds": seconds[1:], "peak_gb": round(memory_gb("VmHWM") - before, 3)}


def compared(step: str, expected: Array, found: Array) -> str:
    """Say how far a result is from ours."""
    if step.startswith("NSD"):
        return f"largest difference {np.nanmax(np.abs(expected - found)):.1e}"
    if step.startswith("image"):
        return f"largest difference {np.abs(expected - found).max():.1e} of 255"
    return f"{np.count_nonzero(expected != found):,} of {found.size:,} voxels differ"


def measure(step: str, folder: Path) -> list[dict[str, Any]]:
    """Run all contestants of a step, each in its own process."""
    rows: list[dict[str, Any]] = []
    results: dict[str, Array] = {}
    for name, contestant in STEPS[step].items():
        if find_spec(contestant.needs) is None:
            print(f"{step}: {name} is left out: {contestant.needs} is not installed")
            continue
        found = folder / "found.npy"
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", step, name]
        done = subprocess.run([*command, "--found", str(found)], check=True, stdout=subprocess.PIPE)
        row = msgspec.json.decode(done.stdout.splitlines()[-1])
        results[name] = np.load(found)
        median = statistics.median(row["seconds"])
        row |= {"step": step, "who": name, "median_seconds": median}
        row["times_ours"] = round(median / rows[0]["median_seconds"], 2) if rows else 1.0
        if rows and contestant.same:
            row["agreement"] = compared(step, results["medals-rt"], results[name])
        elif rows:
            row["agreement"] = "not the same task"
        rows.append(row)
        print(step, name, row, flush=True)
    return rows


def markdown(report: dict[str, Any]) -> str:
    """Write the rows as a table."""
    versions = ", ".join(f"{name} {each}" for name, each in report["peers"].items())
    lines = [
        (
            f"{report['machine']['processor']}, {report['threads']} threads, "
            f"{report['date']}; median of {report['repetitions']}. Image {report['image']}, "
            f"labels {report['labels']}."
        ),
        f"{versions}.",
        "",
        "| step | who | s | times ours | peak, GB | against ours |",
        "|---|---|---:|---:|---:|---|",
    ]
    lines += [
        f"| {row['step']} | {row['who']} | {row['median_seconds']:.3g} | {row['times_ours']:.2f} "
        f"| {row['peak_gb']:.2f} | {row.get('agreement', '')} |"
        for row in report["rows"]
    ]
    return "\n".join(lines) + "\n"


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those packages that are there."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Run every step and write the report."""
    parser = new_parser(__doc__)
    parser.add_argument("--image", type=Path, default=DATA / "ctchest4_image.nrrd")
    parser.add_argument("--labels", type=Path, default=DATA / "ctchest4_label.seg.nrrd")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--found", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        answer = os.dup(1)  # what libraries print goes to standard error
        os.dup2(2, 1)
        os.write(answer, msgspec.json.encode(work(options)) + b"\n")
        return
    case = read(options)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for step in options.steps for row in measure(step, Path(folder))]
    report = {
        **circumstances(),
        "peers": installed(PACKAGES),
        "threads": usable_cores(),
        "repetitions": options.repetitions,
        "image": "x".join(map(str, case.image.shape)),
        "labels": "x".join(map(str, case.labels.shape))
        + f" with {len(np.unique(case.labels)) - 1} classes",
        "rows": rows,
    }
    write_report(options.output, report, markdown(report))


if __name__ == "__main__":
    main()
