"""A model as it is handed over: one folder, checksummed, without pickle.

    model.keras    the Keras model: probabilities
    model.onnx     the same model up to its logit, for scoring on CPU; checked against Keras when written
    rest.onnx      where rows are joined to tables: the model after its first product; and
    first.npz      that product's weights and the embeddings, so that a user's and an item's part are multiplied once
    spec.json      the feature spec: names, order, normalisation and vocabularies of the inputs
    calibration.json  where scores are calibrated: raw output -> chance
    bundle.json    model_version, settings, training window, metrics, code and package versions, checksums of the files above

Reading a bundle imports neither Keras nor TensorFlow (650 MB, 5 s): the scoring actors on CPU do without.
"""

import hashlib
import importlib.metadata
import json
import logging
import shutil
import uuid
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from pydantic import BaseModel

from recsys import __version__
from recsys.errors import BundleError
from recsys.features.spec import FeatureSpec
from recsys.ranking.calibration import Calibration
from recsys.storage import code_digest, digest, load_arrays, write_json

if TYPE_CHECKING:
    import keras


KERAS = "model.keras"
ONNX = "model.onnx"
REST = "rest.onnx"
FIRST = "first.npz"
SPEC = "spec.json"
CALIBRATION = "calibration.json"
ABOUT = "bundle.json"
FILES = (KERAS, ONNX, SPEC)
MEMBERS = {"metadata.json", "config.json", "model.weights.h5"}  # of KERAS

OPSET = 17  # the newest that needs nothing newer than ONNX Runtime 1.13; the graph is MatMul, Gather, Concat and Relu
CHECKED_ROWS = 1024
TOLERANCE = 1e-4  # of one logit between Keras and ONNX Runtime; 1e-7 is usual, a mistaken export is off by far more
PACKAGES = ("keras", "tensorflow", "tf2onnx", "onnxruntime", "numpy", "pyarrow", "ray")


@dataclass(frozen=True)
class Bundle:
    """One model and all that is needed to score with it; made by `save` and `load`."""

    folder: Path
    spec: FeatureSpec
    about: Mapping[str, Any]
    """What bundle.json says: settings, window, metrics, code, packages, files, export."""
    calibration: Calibration | None = None
    """Of the score column; None where the model's own probabilities stand there."""

    @property
    def model_version(self) -> str:
        """Digest of weights, layers, feature spec and calibration: equal versions give equal scores."""
        return self.about["model_version"]

    def session(self) -> onnxruntime.InferenceSession:
        """ONNX Runtime on one thread: inputs `dense`, normalised, and `codes`, where there are any; one output, the logit.

        One thread, because a second would split sums by batch size and change the last bits of a score.

        Raises:
            BundleError: ONNX Runtime does not take the file, as where its weights lie in another one.
        """
        return _session(self.folder / ONNX)

    def split(self) -> tuple[dict[str, np.ndarray], onnxruntime.InferenceSession]:
        """What `network.split` returns, the rest in ONNX Runtime as `session`; of a bundle whose rows are joined to tables.

        Raises:
            BundleError: as `session`, and of FIRST as `keras_model`.
        """
        path = self.folder / FIRST
        _check_archive(path, None)
        try:
            return load_arrays(path), _session(self.folder / REST)
        except (ValueError, OSError) as error:
            raise _not_ours(path, error) from error

    def keras_model(self) -> "keras.Model":
        """The Keras model, which imports Keras and TensorFlow.

        Raises:
            BundleError: the file is none of ours: it carries code, which safe mode refuses, or other files, or more than it weighs.
        """
        import keras

        path = self.folder / KERAS
        _check_archive(path, MEMBERS)
        try:
            return keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # of any kind: whatever stands in the file, it is not run
            raise _not_ours(path, error) from error


def save(
    folder: str | Path,
    model: "keras.Model",
    spec: FeatureSpec,
    *,
    settings: Mapping[str, Any],
    window: Mapping[str, Any],
    metrics: Mapping[str, Any],
    calibration: Calibration | None = None,
    decided: Mapping[str, Any] = MappingProxyType({}),
) -> Bundle:
    """The bundle, written whole or not at all; what stood at `folder` is replaced.

    Not for a Train worker: there TF_USE_LEGACY_KERAS=1 turns the exporter's `tf.keras` into another Keras.

    Args:
        model: from `model.build(spec, …)`, trained.
        settings: of the run, as plain values.
        window: the dates it was trained on, as plain values.
        metrics: of the fit, as plain values.
        calibration: of the score column; absent, the model's own probabilities.
        decided: by the shop's past beside the settings, as plain values.

    Raises:
        BundleError: the exported model scores differently from Keras.
    """
    folder = Path(folder).absolute()

    def fill(temporary: Path) -> None:
        difference = _write_models(temporary, model, spec)
        write_json(temporary / SPEC, spec.to_json())
        if calibration is not None:
            write_json(temporary / CALIBRATION, calibration.to_json())
        about = {
            "model_version": _model_version(model, spec, calibration),
            "settings": settings,
            "decided": dict(decided),
            "window": window,
            "metrics": metrics,
            "export": {"opset": OPSET, "checked_rows": CHECKED_ROWS, "max_abs_difference": difference},
            "code": {"version": __version__, "digest": code_digest()},
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "files": {path.name: _checksum(path) for path in sorted(temporary.iterdir())},
        }
        about = json.loads(json.dumps(about))  # as it will be read back, so that the digest below is the same then
        write_json(temporary / ABOUT, {**about, "digest": digest(about)})

    _place(folder, fill)
    return load(folder)


def load(folder: str | Path) -> Bundle:
    """The bundle in a folder, every file checked against its checksum; imports neither Keras nor TensorFlow.

    Raises:
        BundleError: no bundle there, a file is missing, damaged or from another bundle.
    """
    folder = Path(folder).absolute()
    if not (folder / ABOUT).is_file():
        raise BundleError(f"{folder}: no model bundle: {ABOUT} is missing. Pass the folder that jobs.train wrote.")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        stated = about.pop("digest")
        expected = {name: about["files"][name] for name in FILES} | about["files"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{folder / ABOUT}: cannot be read as a bundle's description. Run jobs.train again.") from error
    if digest(about) != stated:
        raise BundleError(f"{folder / ABOUT}: was changed after it was written. Run jobs.train again.")
    for name, checksum in expected.items():
        if not (folder / name).is_file():
            raise BundleError(f"{folder}: {name} is missing. Copy the bundle again, or run jobs.train again.")
        if (seen := _checksum(folder / name)) != checksum:
            raise BundleError(
                f"{folder / name}: damaged or from another bundle: SHA-256 must be {checksum[:12]}…, got {seen[:12]}…. "
                "Copy the bundle again, or run jobs.train again."
            )
    try:
        spec = FeatureSpec.from_json(json.loads((folder / SPEC).read_text(encoding="utf-8")))
        calibration = None
        if CALIBRATION in about["files"]:
            calibration = Calibration.from_json(json.loads((folder / CALIBRATION).read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _not_ours(folder / SPEC, error) from error
    return Bundle(folder=folder, spec=spec, about=about, calibration=calibration)


def copy(bundle: Bundle, folder: str | Path) -> Bundle:
    """The same bundle at a further place, whole or not at all; what stood there is replaced."""
    folder = Path(folder).absolute()
    _place(folder, lambda temporary: shutil.copytree(bundle.folder, temporary, dirs_exist_ok=True))
    return load(folder)


def check_settings(bundle: Bundle, settings: BaseModel, shaping: Mapping[str, Sequence[str] | None]) -> None:
    """Refuse a bundle that was trained under other settings than these where they shape its inputs.

    Args:
        shaping: section -> its keys that do; None: all of them.

    Raises:
        BundleError: one differs, or the other door trained the bundle.
    """
    now, then = settings.model_dump(mode="json"), bundle.about["settings"]
    for section, keys in shaping.items():
        if section not in then:
            raise BundleError(
                f"{bundle.folder}: was trained by the {'shop' if 'shop' in then else 'pairs'} door, without [{section}]: features of a "
                "shop and feature rows are not the same. Train a bundle with these settings."
            )
        for key in keys or now[section]:
            if now[section][key] != then[section].get(key):
                raise BundleError(
                    f"{bundle.folder}: was trained with {section}.{key} = {then[section].get(key)!r}, the settings say "
                    f"{now[section][key]!r}. Train again, or score with the settings of the bundle."
                )


def _place(folder: Path, fill: Callable[[Path], object]) -> None:
    """The folder as `fill` makes it: made beside its place under another name, then renamed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        fill(temporary)
        replaced = temporary.with_name(f"{temporary.name}.old")
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_models(folder: Path, model: "keras.Model", spec: FeatureSpec) -> float:
    """All model files; how far apart the logits of Keras and of ONNX Runtime are at most, on random rows.

    Raises:
        BundleError: by more than TOLERANCE.
    """
    from recsys.ranking.network import logits, split

    rng = np.random.default_rng(0)
    feed: dict[str, np.ndarray] = {"dense": rng.normal(scale=2.0, size=(CHECKED_ROWS, len(spec.dense))).astype(np.float32)}
    if spec.codes:
        feed["codes"] = rng.integers(0, spec.sizes(), (CHECKED_ROWS, len(spec.codes)), dtype=np.int32)
    # the converter logs every optimiser pass
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # Keras's own: np.object in tf2onnx_lib.py, __array__(copy=) in core.py; both go with a Keras for NumPy 2
        warnings.filterwarnings("ignore", message=r"In the future `np\.object`", category=FutureWarning)
        warnings.filterwarnings("ignore", message="__array__ implementation doesn't accept a copy", category=DeprecationWarning)
        model.save(folder / KERAS)
        differences = [_export(logits(model), list(feed.values()), folder / ONNX)]
        if spec.has_side_tables:
            arrays, rest = split(model, spec)
            np.savez(folder / FIRST, allow_pickle=False, **arrays)
            product = rng.normal(size=(CHECKED_ROWS, len(arrays["bias"]))).astype(np.float32)
            differences.append(_export(rest, [product], folder / REST))
    difference = float(np.max(differences))  # NaN stays NaN
    if not difference <= TOLERANCE:
        raise BundleError(
            f"{folder.parent}: the exported model's logits must be within {TOLERANCE} of Keras's, got {difference:.2g}. "
            "Was the training loss finite? If it was, this is a fault of the exporter: report it with these versions."
        )
    return difference


def _export(model: "keras.Model", inputs: list[np.ndarray], path: Path) -> float:
    """The model written for ONNX Runtime; how far apart its outputs are at most from Keras's."""
    expected = np.asarray(model(inputs, training=False))
    model.export(str(path), format="onnx", opset_version=OPSET, verbose=False)
    session = _session(path)
    names = [one.name for one in session.get_inputs()]
    seen = session.run(None, dict(zip(names, inputs, strict=True)))[0]
    return float(np.max(np.abs(np.asarray(seen) - expected)))


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own, a class for each kind of failure, and only Exception in common
        raise _not_ours(path, error) from error


def _check_archive(path: Path, members: set[str] | None) -> None:
    """Nothing, where a zip file holds no more bytes than it weighs, as ours are not compressed, and only these members.

    Raises:
        BundleError: else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _not_ours(path, error) from error
    size = sum(one.file_size for one in found)
    if size > path.stat().st_size:
        raise _not_ours(path, f"{size:,} bytes in a file of {path.stat().st_size:,}")
    if members is not None and (more := {one.filename for one in found} - members):
        raise _not_ours(path, f"a member {min(more)!r}")


def _not_ours(path: Path, seen: object) -> BundleError:
    said = " ".join(str(seen).split())[:200]
    return BundleError(
        f"{path}: must be a file that jobs.train wrote, got {said or type(seen).__name__}. Train again; do not use this one."
    )


def _model_version(model: "keras.Model", spec: FeatureSpec, calibration: Calibration | None) -> str:
    """Digest of the weights' bytes, layers, feature spec and calibration; not of a file, whose bytes hold times and names."""
    weights = hashlib.sha256()
    for variable in model.weights:
        values = np.ascontiguousarray(variable.numpy())
        weights.update(f"{values.dtype.str}{values.shape}".encode())
        weights.update(values.tobytes())
    layers = [[type(layer).__name__, getattr(getattr(layer, "activation", None), "__name__", None)] for layer in model.layers]
    identity = {"weights": weights.hexdigest(), "layers": layers, "spec": spec.to_json()}
    return digest(identity | ({} if calibration is None else {"calibration": calibration.to_json()}))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
