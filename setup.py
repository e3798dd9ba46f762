"""What pyproject.toml cannot say: a wheel holds experiments/ inside the package, for `jaxrl-align run`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["jaxrl_align*"]), "jaxrl_align.experiments"],
    package_dir={"jaxrl_align.experiments": "experiments"},
)
