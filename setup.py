"The package's metadata lives in settings.ini; this file hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import Extension, find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(here/"settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
lines = lambda key: [o.strip() for o in cfg.get(key, "").splitlines() if o.strip()]
extras = {key.removesuffix("_requirements"): lines(key) for key in cfg if key.endswith("_requirements")}

# Where a C compiler and libjpeg-turbo's headers are at hand, parts of JPEGs are decoded natively; elsewhere the package works without.
region = Extension("visionlab._region", ["csrc/region.c"], libraries=["jpeg"], extra_compile_args=["-O2"], optional=True)

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], keywords=cfg["keywords"].split(),
    author=cfg["author"], license=cfg["license"], license_files=["LICENSE", "NOTICE"],
    long_description=(here/"README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    classifiers=lines("classifiers"), python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["visionlab", "visionlab.*"]), package_data={"visionlab": ["sample/*", "py.typed", "*.pyi", "*/*.pyi"]}, zip_safe=False, ext_modules=[region],
    install_requires=lines("requirements"), extras_require=extras,
    entry_points={"console_scripts": lines("console_scripts")},
)
