"""Packaging of hybridrl. What a run needs beside the light core is in requirements/, because exact pins and
packages without their dependencies cannot be said here; `make setup` installs both.
"""

import re
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"

# Plain C that ctypes loads. Optional: without a compiler weights are moved by torch, more slowly.
NATIVE = Extension(
    "hybridrl.reshard.kernels._native",
    sources=["hybridrl/reshard/kernels/native.c"],
    # Contracted or reordered arithmetic would not be that of the reference
    extra_compile_args=["-O3", "-ffp-contract=off", "-fno-trapping-math", "-fno-strict-aliasing", "-pthread"],
    extra_link_args=["-pthread"],
    optional=True,
)

setup(
    name="hybridrl",
    version=re.search(r'__version__ = "(.+)"', (HERE / "hybridrl/__init__.py").read_text())[1],
    description="Reinforcement learning of language models: Megatron-core trainers, colocated SGLang engines",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_namespace_packages(include=["hybridrl", "hybridrl.*"]),
    package_data={
        "hybridrl": ["**/*.json", "**/*.yaml", "**/*.txt", "**/*.jinja", "**/*.in", "**/*.css", "**/*.js"]
    },
    ext_modules=[NATIVE],
    install_requires=[
        "anyio>=4.4",
        "lapx>=0.9",
        "numpy>=1.26",
        "nvidia-ml-py>=12.535",
        "psutil>=5.9",
        "pydantic>=2.9",
        "pyyaml>=6",
        "rich>=13",
        "typer>=0.15",
    ],
    # The sinks of observe.sinks, as each says itself
    extras_require={"mlflow": ["mlflow>=3"], "tensorboard": ["tensorboard>=2.18"], "wandb": ["wandb>=0.26"]},
    entry_points={"console_scripts": ["hybridrl = hybridrl.cli:main"]},
    zip_safe=False,
)
