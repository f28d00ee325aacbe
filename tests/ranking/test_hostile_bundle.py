"""Bundles that someone made to harm who loads them: every checksum is right, as who writes the files writes those too."""

import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.errors import BundleError
from recsys.ranking import bundle
from recsys.storage import digest
from tests.ranking.test_bundle import CALIBRATION, save


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bundle.Bundle:
    return save(tmp_path_factory.mktemp("bundles") / "first", calibration=CALIBRATION)


@pytest.fixture
def copy(saved: bundle.Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved.folder, tmp_path / "copy"))


def forge(folder: Path) -> None:
    """Write the checksums of the files as they are now."""
    about = json.loads((folder / bundle.ABOUT).read_text())
    about.pop("digest")
    about["files"] = {name: bundle._checksum(folder / name) for name in about["files"]}
    (folder / bundle.ABOUT).write_text(json.dumps(about | {"digest": digest(about)}))


def rewrite(
    path: Path, change: Callable[[dict[str, Any]], None], more: Mapping[str, bytes] = {}, *, compression: int = zipfile.ZIP_STORED
) -> None:
    """A .keras file with another configuration, and further members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    change(config)
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (members | dict(more)).items():
            archive.writestr(name, content)


def refused(folder: Path) -> str:
    forge(folder)
    loaded = bundle.load(folder)
    with pytest.raises(BundleError, match=r"model\.keras: must be a file that jobs\.train wrote, got .*\. Train again") as error:
        loaded.keras_model()
    return str(error.value)


def test_what_is_forged_is_loaded_where_it_harms_nobody(copy: Path) -> None:
    rewrite(copy / bundle.KERAS, lambda _: None)
    forge(copy)
    assert bundle.load(copy).keras_model().count_params() > 0


def test_a_layer_that_carries_code_is_not_run(copy: Path, tmp_path: Path) -> None:
    import keras

    touched = tmp_path / "touched"
    lines = f"__import__('pathlib').Path({str(touched)!r}).touch() or x"
    layers = [keras.Input((3,)), keras.layers.Lambda(eval(f"lambda x: {lines}"))]  # the harm
    hostile = keras.Sequential(layers)
    assert touched.exists()
    touched.unlink()
    hostile.save(copy / bundle.KERAS)
    assert "Lambda" in refused(copy) or "lambda" in refused(copy)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("builtins", "eval"), ("subprocess", "run"), ("keras.utils", "get_file")]
)
def test_a_layer_of_another_module_is_not_called(module: str, name: str, copy: Path, tmp_path: Path) -> None:
    touched = tmp_path / "touched"

    def change(config: dict[str, Any]) -> None:
        layer: dict[str, Any] = {"module": module, "class_name": name, "config": f"touch {touched}", "registered_name": None}
        config["config"]["layers"][-1] = {**layer, "inbound_nodes": [], "name": "probability"}

    rewrite(copy / bundle.KERAS, change)
    refused(copy)
    assert not touched.exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "assets/vocabulary.txt"])
def test_a_member_that_is_none_of_ours_is_refused(name: str, copy: Path) -> None:
    rewrite(copy / bundle.KERAS, lambda _: None, {name: b"text"})
    assert f"a member {name!r}" in refused(copy)


def test_what_is_larger_inside_than_outside_is_refused(copy: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["padding"] = " " * 2**24

    rewrite(copy / bundle.KERAS, change, compression=zipfile.ZIP_DEFLATED)
    assert "bytes in a file of" in refused(copy)
    path = copy / bundle.FIRST
    np.savez_compressed(path, kernel=np.zeros(2**22))
    with pytest.raises(BundleError, match=r"first\.npz: must be .* bytes in a file of"):
        bundle.load(copy).split()


def test_weights_that_are_objects_are_not_unpickled(copy: Path) -> None:
    np.savez(copy / bundle.FIRST, kernel=np.array([{"a": 1}], object))
    with pytest.raises(BundleError, match=r"first\.npz: must be a file that jobs\.train wrote, got Object arrays cannot be loaded"):
        bundle.load(copy).split()


@pytest.mark.parametrize("place", ["/etc/hostname", "../secret", "secret"])
def test_weights_in_another_file_are_not_read(place: str, copy: Path) -> None:
    (copy.parent / "secret").write_bytes(bytes(4096))
    model = onnx.load(str(copy / bundle.ONNX))
    for tensor in model.graph.initializer:
        if tensor.raw_data:
            onnx.external_data_helper.set_external_data(tensor, location=place)
            tensor.ClearField("raw_data")
    (copy / bundle.ONNX).write_bytes(model.SerializeToString())
    forge(copy)
    with pytest.raises(BundleError, match=r"model\.onnx: must be a file that jobs\.train wrote"):
        bundle.load(copy).session()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["dense", "mean", "codes", "kind", "columns"]), inner),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def played(saved: bundle.Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(saved.folder, tmp_path_factory.mktemp("played") / "bundle"))


@given(name=st.sampled_from([bundle.SPEC, bundle.CALIBRATION]), value=JSON)
def test_whatever_a_description_says_it_is_loaded_or_refused(name: str, value: Any, played: Path) -> None:
    path = played / name
    before = path.read_bytes()
    path.write_text(json.dumps(value))
    forge(played)
    try:
        bundle.load(played)
    except BundleError as error:
        assert "must be a file that jobs.train wrote" in str(error)  # noqa: PT017 # or it is loaded
    finally:
        path.write_bytes(before)


@given(name=st.sampled_from([bundle.KERAS, bundle.ONNX]), place=st.floats(0, 1), noise=st.binary(min_size=1, max_size=64))
def test_damaged_bytes_behind_a_right_checksum_are_one_sentence(name: str, place: float, noise: bytes, played: Path) -> None:
    path = played / name
    before = path.read_bytes()
    at = int(place * len(before))
    path.write_bytes(before[:at] + noise + before[at + len(noise) :])
    forge(played)
    loaded = bundle.load(played)
    try:
        loaded.session() if name == bundle.ONNX else loaded.keras_model()
    except BundleError as error:
        assert "must be a file that jobs.train wrote" in str(error)  # noqa: PT017 # or it is still a model
    finally:
        path.write_bytes(before)
