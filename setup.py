"""The package and what it needs. Versions known to work together are in constraints.txt."""

from pathlib import Path
from shutil import rmtree

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

DATA = {
    "dali": ["nvidia-dali-cuda130>=2.4; platform_system == 'Linux'"],  # data.kind dali
    "latents": ["diffusers>=0.31"],  # encoding images into latents
    "lora": ["diffusers>=0.35", "peft>=0.18", "accelerate>=1"],  # model.generator.lora
    "parquet": ["pyarrow>=15"],  # packing parquet files
    "text": ["diffusers>=0.35", "transformers>=5"],  # embedding prompts
    "webdataset": ["webdataset>=1.0"],  # only what the data benchmark compares with; data.kind webdataset needs none
}

PARALLEL = {
    "deepspeed": ["deepspeed>=0.19"],  # parallel.plan deepspeed
    "megatron": ["megatron-core>=0.16"],  # parallel.plan megatron; without the transformer-engine package
    "fp8": ["torchao>=0.17"],  # parallel.precision fp8
}



class WithConfigs(build_py):
    """Copies configs/ into a wheel, as afm_scale/configs. A checkout, also with -e, is read where it is."""

    def run(self) -> None:
        if not self.editable_mode:  # an earlier build may have left modules that are gone
            rmtree(Path(self.build_lib) / "afm_scale", ignore_errors=True)
        super().run()
        for file in [] if self.editable_mode else self._configs():
            copy = Path(self.build_lib) / "afm_scale" / file
            self.mkpath(str(copy.parent))
            self.copy_file(str(file), str(copy))

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *map(str, self._configs())]

    def _configs(self) -> list[Path]:
        return sorted(Path("configs").rglob("*.yaml"))


setup(
    name="afm_scale",
    version="0.1.0",
    description="Distributed pretraining of one- and few-step image generators: adversarial flow models at scale",
    license="Apache-2.0",
    packages=find_packages(include=["afm_scale", "afm_scale.*"]),
    package_data={"afm_scale.evaluation.watching": ["page/*"], "afm_scale.models.large": ["scripts/*"]},
    cmdclass={"build_py": WithConfigs},
    entry_points={"console_scripts": ["afm_scale = afm_scale.commands.ending:main"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.11",
        "numpy>=1.26",
        "PyYAML>=6",
        "safetensors>=0.5",
        "scikit-learn>=1.5",
        "Pillow>=10",
        "matplotlib>=3.8",
        "tensorboard>=2.16",
        "tqdm>=4.66",
        "rich>=13",
    ],
    extras_require={
        # Triton comes with torch where there is a GPU; the tests run its kernels in its interpreter.
        "test": [
            "pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.5", "ruff>=0.6",
            "setuptools>=77", "wheel>=0.43", "triton>=3.6; platform_system == 'Linux'",
        ],
        "wandb": ["wandb>=0.17"],
        # Inception features. It asks for torchvision, which the one network used here does without and which is tied to
        # one version of torch: pip install --no-deps -c constraints.txt torch-fidelity
        "evaluation": ["torch-fidelity>=0.4"],
        **DATA,
        **PARALLEL,
        "data": [requirement for requirements in DATA.values() for requirement in requirements],
        "parallel": [requirement for requirements in PARALLEL.values() for requirement in requirements],
    },
)
