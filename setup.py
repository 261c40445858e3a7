"""Packaging driven by settings.ini (nbdev 2.x); gives every field that nbdev's pyproject.toml marks dynamic."""
from configparser import ConfigParser
from pathlib import Path

import setuptools

_cfg = ConfigParser(delimiters=["="], interpolation=None)
_cfg.read("settings.ini", encoding="utf-8")
cfg = _cfg["DEFAULT"]
readme = Path("README.md")

END = "_requirements"
NOT_EXTRAS = {"pip", "conda"}   # nbdev's own names for requirements of one packager


def words(key):
    return cfg.get(key, "").split()


def extras():
    "Each key `<name>_requirements` with a value is the extra `<name>`; `requirements` itself is none."
    names = [k.removesuffix(END) for k in cfg if k.endswith(END)]
    return {n: words(n + END) for n in names if n and n not in NOT_EXTRAS and words(n + END)}


def pythons():
    "The supported versions as classifiers name them."
    least = tuple(map(int, cfg["min_python"].split(".")))
    return [v for v in ("3.11", "3.12", "3.13") if tuple(map(int, v.split("."))) >= least]


setuptools.setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    keywords=words("keywords"), author=cfg["author"], author_email=cfg["author_email"],
    license="Apache-2.0", url=cfg["git_url"], project_urls={"Source": cfg["git_url"]},
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Developers", "Natural Language :: English",
                 *(f"Programming Language :: Python :: {v}" for v in pythons())],
    packages=setuptools.find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]), include_package_data=True,
    python_requires=">=" + cfg["min_python"], install_requires=words("requirements"), extras_require=extras(),
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    entry_points={"console_scripts": words("console_scripts"), "daedalus_etl.transforms": words("transforms"),
                  "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
    zip_safe=False)
