"""What nnU-Net does with trained models: several folds, parts, ensembles with a stock U-Net, postprocessing."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_cads.training.base_trainer import TrainingCannotStart
from nnunetv2_cads.training.discovery import nnunetv2_cads_trainers
from nnunetv2_cads.training.nnunet_checkpoint import read_nnunet_checkpoint

OURS, STOCK = "OneStepTrainerCADS", "OneStepStockTrainer"
CPU = ("-device", "cpu")


@pytest.fixture(scope="module")
def nnunet(nnunet_project):
    """Calls nnU-Net's commands with the user's trainers and no encoder file."""

    def call(command, *arguments, **changes):
        trainers = {"nnUNet_extTrainer": str(nnunet_project.trainer_folder)}
        return nnunet_project.call(command, *arguments, **trainers, **changes)

    return call


@pytest.fixture(scope="module")
def models(nnunet_project, nnunet) -> dict[str, Path]:
    """Model folders by trainer: two folds of PVT-UNet, one of the stock U-Net, with validation probabilities."""
    encoder = {"nnUNet_cads_encoder": str(nnunet_project.encoder_file)}
    nnunet("nnUNetv2_train", 1, "3d_fullres", 1, "-tr", OURS, *CPU, **encoder)
    for trainer in (OURS, STOCK):
        nnunet("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", trainer, "--npz", *CPU, **encoder)
    return {name: nnunet_project.results / f"{name}__nnUNetPlans__3d_fullres" for name in (OURS, STOCK)}


@pytest.fixture
def images(nnunet_project, tmp_path) -> Path:
    """A folder with two images."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(2):
        shutil.copy(nnunet_project.root / "raw" / "Dataset001_Blobs" / "imagesTr" / f"case_{i}_0000.nii.gz", folder)
    return folder


def read(path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def test_folds_parts_step_size_and_mirroring_however_prediction_is_started(models, images, nnunet, tmp_path):
    common = ("-i", images, "-f", 0, 1, "-step_size", 0.8, "--disable_tta", *CPU, "-npp", 1, "-nps", 1)
    for part in range(2):
        of = ("-d", 1, "-c", "3d_fullres", "-tr", OURS, "-num_parts", 2, "-part_id", part)
        nnunet("nnUNetv2_predict", *common, *of, "-o", tmp_path / "parts")
        assert len(list((tmp_path / "parts").glob("*.nii.gz"))) == part + 1
    nnunet("nnUNetv2_predict_from_modelfolder", *common, "-m", models[OURS], "-o", tmp_path / "folder")

    predictor = nnUNetPredictor(0.8, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_extTrainer", str(models[OURS].parents[2] / "my_trainers"))
        predictor.initialize_from_trained_model_folder(str(models[OURS]), (0, 1))
    assert len(predictor.list_of_parameters) == 2
    for i in range(2):
        image, properties = SimpleITKIO().read_images([str(images / f"case_{i}_0000.nii.gz")])
        expected = predictor.predict_single_npy_array(image, properties)
        for folder in ("parts", "folder"):
            np.testing.assert_array_equal(read(tmp_path / folder / f"case_{i}.nii.gz"), expected)


def test_best_configuration_ensemble_postprocessing_and_evaluation(models, images, nnunet, nnunet_project, tmp_path):
    arguments = (1, "-p", "nnUNetPlans", "-c", "3d_fullres", "-tr", OURS, STOCK, "-f", 0, "-np", 1)
    nnunet("nnUNetv2_find_best_configuration", *arguments)
    information = json.loads((nnunet_project.results / "inference_information.json").read_text())
    names = [model.name for model in models.values()]
    assert set(information["all_results"]) == {*names, f"ensemble___{names[0]}___{names[1]}___0"}
    best = information["best_model_or_ensemble"]

    predictions = [tmp_path / name for name in models]
    for output in predictions:
        of = ("-d", 1, "-c", "3d_fullres", "-tr", output.name, "-f", 0, "--save_probabilities", "--disable_tta")
        nnunet("nnUNetv2_predict", "-i", images, "-o", output, *of, *CPU, "-npp", 0, "-nps", 0)
    nnunet("nnUNetv2_ensemble", "-i", *predictions, "-o", tmp_path / "ensemble", "-np", 1)
    plans, dataset = models[OURS] / "plans.json", models[OURS] / "dataset.json"
    processing = ("-pp_pkl_file", best["postprocessing_file"], "-plans_json", plans, "-dataset_json", dataset, "-np", 1)
    final = tmp_path / "final"
    nnunet("nnUNetv2_apply_postprocessing", "-i", tmp_path / "ensemble", "-o", final, *processing)
    (tmp_path / "truth").mkdir()
    for i in range(2):
        name = f"case_{i}.nii.gz"
        shutil.copy(nnunet_project.root / "raw" / "Dataset001_Blobs" / "labelsTr" / name, tmp_path / "truth")
        a, b = (np.load(folder / f"case_{i}.npz")["probabilities"] for folder in predictions)
        np.testing.assert_array_equal(read(tmp_path / "ensemble" / name), ((a + b) / 2).argmax(0))
    nnunet("nnUNetv2_evaluate_folder", tmp_path / "truth", final, "-djfile", dataset, "-pfile", plans, "-np", 1)
    assert len(json.loads((final / "summary.json").read_text())["metric_per_case"]) == 2


def test_validation_with_the_best_checkpoint(models, nnunet):
    summary = models[OURS] / "fold_1" / "validation" / "summary.json"
    summary.unlink()
    nnunet("nnUNetv2_train", 1, "3d_fullres", 1, "-tr", OURS, "--val", "--val_best", *CPU)
    assert summary.exists()


def test_a_training_without_checkpoints_still_validates(models, nnunet, nnunet_project):
    arguments = (1, "3d_fullres", 2, "-tr", OURS, "--disable_checkpointing", *CPU)
    nnunet("nnUNetv2_train", *arguments, nnUNet_cads_encoder=str(nnunet_project.encoder_file))
    fold = models[OURS] / "fold_2"
    assert (fold / "validation" / "summary.json").exists()
    assert not list(fold.glob("*.pth"))


def test_a_checkpoint_of_another_trainer_is_named_in_a_sentence(models, nnunet):
    fold = models[OURS] / "fold_3"
    fold.mkdir()
    shutil.copy(models[STOCK] / "fold_0" / "checkpoint_final.pth", fold)
    for flag in ("--c", "--val"):
        with pytest.raises(
            TrainingCannotStart, match=f"fold_3.* written by {STOCK}, does not fit {OURS} .*-tr {STOCK}"
        ):
            nnunet("nnUNetv2_train", 1, "3d_fullres", 3, "-tr", OURS, flag, *CPU)


def test_a_checkpoint_of_another_variant_goes_on_with_a_warning(models, nnunet, nnunet_project):
    longer = "nnUNetTrainerCADS_scratch_demo_quick"
    fold = nnunet_project.results / f"{longer}__nnUNetPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    shutil.copy(models[OURS] / "fold_0" / "checkpoint_final.pth", fold)
    discovery = {"nnUNet_extTrainer": str(Path(nnunetv2_cads_trainers.__file__).parent)}
    said = nnunet_project.call("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", longer, "--val", *CPU, **discovery)
    assert f"was written by {OURS}; from now on {longer}'s epochs and learning rates apply" in said
    said = nnunet("nnUNetv2_train", 1, "3d_fullres", 0, "-tr", OURS, "--val", *CPU)
    assert "was written by" not in said


def test_pretrained_weights_are_a_whole_network_of_ours(models, nnunet):
    ours = models[OURS] / "fold_0" / "checkpoint_final.pth"
    arguments = (1, "3d_fullres", 5, "-tr", OURS, "--disable_checkpointing", *CPU, "-pretrained_weights")
    said = nnunet("nnUNetv2_train", *arguments, ours)
    assert "encoder.patch_embed1.proj.0.weight shape" in said
    assert "come from a checkpoint; no encoder file is read" in said and "Mean Validation Dice" in said
    with pytest.raises(AssertionError, match="do not seem to be compatible with your network"):
        nnunet("nnUNetv2_train", *arguments, models[STOCK] / "fold_0" / "checkpoint_final.pth")


def cut_off(path: Path) -> None:
    """As a killed job leaves it."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def turn_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change(**parts):
    """Changes parts of a checkpoint."""
    return lambda path: torch.save({**torch.load(path, weights_only=False), **parts}, path)


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (cut_off, "is not a checkpoint of plain tensors, or is damaged"),
        (turn_a_bit, "is damaged: a checksum"),
        (change(network_weights=[1]), "is not a checkpoint of nnU-Net"),
        (change(optimizer_state=None), "is not a checkpoint of nnU-Net"),
        (lambda path: torch.save(3, path), "is not a checkpoint of nnU-Net"),
    ],
)
def test_a_damaged_checkpoint_is_named_in_a_sentence(damage, part, models, nnunet):
    fold = models[OURS] / "fold_4"
    fold.mkdir(exist_ok=True)
    shutil.copy(models[OURS] / "fold_0" / "checkpoint_final.pth", fold / "checkpoint_latest.pth")
    damage(fold / "checkpoint_latest.pth")
    with pytest.raises(TrainingCannotStart, match=rf"fold_4.checkpoint_latest\.pth: {part}.* checkpoint_best\.pth$"):
        nnunet("nnUNetv2_train", 1, "3d_fullres", 4, "-tr", OURS, "--c", *CPU)


class RunsCode:
    """What a hostile checkpoint has in place of a number."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize(
    ("name", "flags"),
    [("latest", ["--c"]), ("final", ["--c"]), ("final", ["--val"]), ("best", ["--val", "--val_best"])],
)
def test_a_checkpoint_that_would_run_code_is_refused_before_it_is_unpickled(name, flags, models, nnunet, tmp_path):
    fold, owned = models[OURS] / "fold_4", tmp_path / "owned"
    shutil.rmtree(fold, ignore_errors=True)
    fold.mkdir()
    for kind in {"final", name} if name == "best" else {name}:
        shutil.copy(models[OURS] / "fold_0" / "checkpoint_final.pth", fold / f"checkpoint_{kind}.pth")
    hostile = fold / f"checkpoint_{name}.pth"
    change(_best_ema=RunsCode(owned))(hostile)
    with pytest.raises(TrainingCannotStart, match=rf"{hostile.name}: holds Python objects \(\S+\), which can run code"):
        nnunet("nnUNetv2_train", 1, "3d_fullres", 4, "-tr", OURS, *flags, *CPU)
    assert not owned.exists()
    torch.load(hostile, weights_only=False)  # so the file is what it says
    assert owned.exists()
    shutil.rmtree(fold)


def test_numbers_of_both_numpys_are_taken(models, tmp_path):
    file = models[OURS] / "fold_0" / "checkpoint_final.pth"
    found = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    assert {name.replace("._core.", ".core.") for name in found} == {"numpy.dtype", "numpy.core.multiarray.scalar"}
    assert read_nnunet_checkpoint(str(file)).trainer_name == OURS
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(old, "w") as copy:
        for member in archive.namelist():
            content = archive.read(member)
            copy.writestr(member, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_nnunet_checkpoint(str(old)).trainer_name == OURS


def test_a_checkpoint_that_is_missing_is_named_in_a_sentence(models, nnunet):
    best = models[OURS] / "fold_1" / "checkpoint_best.pth"
    aside = best.rename(best.with_suffix(".aside"))
    with pytest.raises(TrainingCannotStart, match=r"checkpoint_best\.pth: there is no such file; .* leave out --val_b"):
        nnunet("nnUNetv2_train", 1, "3d_fullres", 1, "-tr", OURS, "--val", "--val_best", *CPU)
    aside.rename(best)


def test_what_does_not_exist_ends_with_nnunets_own_words(models, nnunet, images, tmp_path):
    with pytest.raises(Exception, match="3d_nothing"):
        nnunet("nnUNetv2_train", 1, "3d_nothing", 0, "-tr", OURS, *CPU)
    with pytest.raises(FileNotFoundError, match="fold_4"):
        arguments = ("-d", 1, "-c", "3d_fullres", "-tr", OURS, "-f", 4, *CPU)
        nnunet("nnUNetv2_predict", "-i", images, "-o", tmp_path / "out", *arguments)
    with pytest.raises(RuntimeError, match="training is not finished"):
        nnunet("nnUNetv2_train", 1, "3d_fullres", 4, "-tr", OURS, "--val", *CPU)
