import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recsys import config
from recsys.errors import BundleError
from recsys.features.spec import FeatureSpec
from recsys.ranking import bundle, network
from recsys.ranking.calibration import Calibration

SPEC = FeatureSpec(("a", "b", "c"), (0.0, 1.0, 2.0), (1.0, 2.0, 0.5), ("brand",), {"brand": ("x", "y", "z")})


CALIBRATION = Calibration("isotonic", knots=(-1.0, 0.1, 2.0), chances=(0.05, 0.1, 1 / 3))


def save(folder: Path, *, seed: int = 0, spec: FeatureSpec = SPEC, calibration: Calibration | None = None) -> bundle.Bundle:
    built = network.build(spec, config.Model(hidden=(6, 5)), seed=seed)
    about = {"settings": {"k": 10}, "window": {"as_of": "2017-12-01"}, "metrics": {"val_auc": 0.75}}
    return bundle.save(folder, built, spec, calibration=calibration, **about)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    return save(tmp_path_factory.mktemp("bundles") / "first")


@pytest.fixture
def copy(saved: bundle.Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved.folder, tmp_path / "copy"))


def test_a_bundle_says_what_it_was_made_of(saved: bundle.Bundle):
    loaded = bundle.load(saved.folder)
    assert loaded == saved
    assert loaded.spec == SPEC
    assert loaded.about["settings"] == {"k": 10}
    assert loaded.about["window"] == {"as_of": "2017-12-01"}
    assert loaded.about["metrics"] == {"val_auc": 0.75}
    assert loaded.about["export"]["max_abs_difference"] < 1e-5
    assert set(loaded.about["packages"]) >= {"keras", "tensorflow", "onnxruntime"}
    assert sorted(path.name for path in saved.folder.iterdir()) == ["bundle.json", "model.keras", "model.onnx", "spec.json"]


def test_the_version_is_that_of_weights_and_spec_and_not_of_the_files(saved: bundle.Bundle, tmp_path: Path):
    again = save(tmp_path / "again")
    renamed = save(tmp_path / "renamed", spec=FeatureSpec(("a", "b", "d"), SPEC.mean, SPEC.scale, SPEC.codes, SPEC.vocabularies))
    assert again.about["files"] != saved.about["files"]  # a .keras file holds its time of writing
    assert again.model_version == saved.model_version
    assert len({saved.model_version, renamed.model_version, save(tmp_path / "other", seed=1).model_version}) == 3


def test_a_calibration_is_kept_and_is_part_of_the_version(saved: bundle.Bundle, tmp_path: Path):
    first = save(tmp_path / "first", calibration=CALIBRATION)
    other = save(tmp_path / "other", calibration=Calibration("platt", slope=0.5))
    assert bundle.load(first.folder).calibration == CALIBRATION
    assert saved.calibration is None
    assert len({saved.model_version, first.model_version, other.model_version}) == 3
    assert save(tmp_path / "again", calibration=CALIBRATION).model_version == first.model_version


def test_a_calibration_that_is_missing_or_of_another_bundle_is_refused(tmp_path: Path):
    first = save(tmp_path / "first", calibration=CALIBRATION)
    other = save(tmp_path / "other", calibration=Calibration("platt", slope=0.5))
    shutil.copy(other.folder / bundle.CALIBRATION, first.folder / bundle.CALIBRATION)
    with pytest.raises(BundleError, match=r"calibration.json: damaged or from another bundle"):
        bundle.load(first.folder)
    (first.folder / bundle.CALIBRATION).unlink()
    with pytest.raises(BundleError, match=r"calibration.json is missing"):
        bundle.load(first.folder)


def test_a_bundle_replaces_the_one_before_and_leaves_nothing_beside_it(tmp_path: Path):
    first, second = save(tmp_path / "model"), save(tmp_path / "model", seed=1)
    assert bundle.load(tmp_path / "model").model_version == second.model_version != first.model_version
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", bundle.FILES)
def test_one_flipped_bit_is_refused(copy: Path, name: str):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name}: damaged or from another bundle"):
        bundle.load(copy)


@pytest.mark.parametrize("name", [*bundle.FILES, bundle.ABOUT])
def test_a_missing_file_is_refused(copy: Path, name: str):
    (copy / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing"):
        bundle.load(copy)


@pytest.mark.parametrize("name", bundle.FILES)
def test_a_file_of_another_bundle_is_refused(copy: Path, tmp_path: Path, name: str):
    spec = FeatureSpec(SPEC.dense, (9.0, 1.0, 2.0), SPEC.scale, SPEC.codes, SPEC.vocabularies)
    other = save(tmp_path / "other", seed=1, spec=spec)
    shutil.copy(other.folder / name, copy / name)
    with pytest.raises(BundleError, match=rf"{name}: damaged or from another bundle"):
        bundle.load(copy)


def test_a_changed_description_is_refused(copy: Path):
    about = json.loads((copy / bundle.ABOUT).read_text())
    (copy / bundle.ABOUT).write_text(json.dumps({**about, "model_version": "0" * 16}))
    with pytest.raises(BundleError, match="was changed after it was written"):
        bundle.load(copy)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"digest": 1, "files": {}}'])
def test_a_description_that_cannot_be_read_is_refused(copy: Path, text: str):
    (copy / bundle.ABOUT).write_text(text)
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.load(copy)


def test_a_model_that_scores_otherwise_in_onnx_is_not_written(tmp_path: Path):
    built = network.build(SPEC, config.Model(hidden=(6, 5)), seed=0)
    built.set_weights([weights * float("nan") for weights in built.get_weights()])
    with pytest.raises(BundleError, match=r"must be within 0.0001 of Keras's, got nan"):
        bundle.save(tmp_path / "model", built, SPEC, settings={}, window={}, metrics={})
    assert list(tmp_path.iterdir()) == []


def test_loading_and_opening_a_bundle_imports_neither_keras_nor_tensorflow(saved: bundle.Bundle):
    code = (
        "import sys; from recsys.ranking import bundle, scorer; scorer.Scorer(bundle.load(sys.argv[1])); "
        "sys.exit(' '.join({'keras', 'tensorflow', 'ray'} & set(sys.modules)) or 0)"
    )
    root = Path(bundle.__file__).parents[2]
    command = [sys.executable, "-c", code, str(saved.folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
