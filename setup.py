"""Packaging of nnunetv2-cads. The reasons for each dependency are in docs/design_notes.md."""

from setuptools import find_packages, setup

if __name__ == "__main__":  # nnU-Net may import every file it finds below a folder
    setup(
        name="nnunetv2-cads",
        version="0.1.0",
        description="CADS cross-modal self-supervised pre-training and PVT-UNet for nnU-Net v2",
        long_description=open("README.md", encoding="utf-8").read(),
        long_description_content_type="text/markdown",
        license="Apache-2.0",
        python_requires=">=3.10",
        packages=find_packages(include=["nnunetv2_cads*", "pretraining*"]),
        install_requires=[
            "torch>=2.6",
            "nnunetv2>=2.8.1",
            "SimpleITK>=2.2.1",
            "numpy>=1.26",
            "scipy>=1.11",
            "blosc2>=3.0",
            "matplotlib>=3.7",
            "tqdm>=4.65",
        ],
        extras_require={"dev": ["pytest>=8", "hypothesis>=6.100", "ruff>=0.6", "build>=1.2"]},
        entry_points={
            "console_scripts": [
                "cads_preprocess=pretraining.cli:preprocess",
                "cads_pretrain=pretraining.cli:pretrain",
                "cads_export=pretraining.cli:export",
                "cads_demo=nnunetv2_cads.demo.cli:main",
            ]
        },
    )
