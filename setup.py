"""Packaging of nnunetv2-cads. The reasons for each dependency are in docs/design_notes.md."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
STARTUP_FILE = "nnunetv2_cads.pth"
STARTUP_LINE = 'import os; exec("try:\\n    import nnunetv2_cads.startup\\nexcept Exception:\\n    pass")\n'
"""Python runs a line of a .pth file that begins with ``import``; it must not fail where the package has gone."""


class BuildPyWithStartupFile(build_py):
    """Writes the start-up file to the root of site-packages, where Python reads it; pip removes it with the rest.

    docs/how_the_trainer_is_found.md says what it is for. An editable install builds nothing, but packs whatever lies
    in the wheel's root, which setuptools hands to its commands as the place to install to.
    """

    def run(self) -> None:
        super().run()
        wheel_root = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        Path(wheel_root, STARTUP_FILE).write_text(STARTUP_LINE, encoding="ascii")


if __name__ == "__main__":  # nnU-Net may import every file it finds below a folder
    package = (ROOT / "nnunetv2_cads" / "__init__.py").read_text(encoding="utf-8")
    setup(
        name="nnunetv2-cads",
        version=re.search('__version__ = "(.+)"', package)[1],
        description="CADS cross-modal self-supervised pre-training and PVT-UNet for nnU-Net v2",
        long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
        long_description_content_type="text/markdown",
        license_expression="Apache-2.0",
        python_requires=">=3.10",
        packages=find_packages(include=["nnunetv2_cads*", "pretraining*"]),
        package_data={"nnunetv2_cads.doctor": ["known_step.json"]},
        cmdclass={"build_py": BuildPyWithStartupFile},
        install_requires=[
            "torch>=2.6",
            "nnunetv2>=2.8.1",
            "SimpleITK>=2.2.1",
            "nibabel>=5.3",
            "numpy>=1.26",
            "scipy>=1.11",
            "blosc2>=3.0",
            "safetensors>=0.4.3",
            "matplotlib>=3.7",
            "tqdm>=4.65",
            "batchgenerators>=0.25",
            "scikit-learn>=1.3",
            "pydicom>=3.0",
            "filelock>=3.30",
        ],
        extras_require={
            "dev": [
                "pytest>=8",
                "pytest-xdist>=3.7",
                "hypothesis>=6.100",
                "ruff>=0.6",
                "setuptools>=77",
                "batchgeneratorsv2>=0.3",
                "scikit-image>=0.24",
                "timm>=1.0",
            ],
            "benchmarks": ["itk>=5.4", "scikit-image>=0.24"],
        },
        entry_points={
            "console_scripts": [
                "cads_preprocess=pretraining.preprocess:main",
                "cads_pretrain=pretraining.train:main",
                "cads_export=pretraining.export:main",
                "cads_probe=pretraining.probe:main",
                "cads_tasks=nnunetv2_cads.tasks.cli:main",
                "cads_plan_and_preprocess=nnunetv2_cads.experiment_planning.plan_and_preprocess:main",
                "cads_compare=nnunetv2_cads.comparison.cli:main",
                "cads_doctor=nnunetv2_cads.doctor.cli:main",
                "cads_demo=nnunetv2_cads.demo.cli:main",
            ]
        },
    )
