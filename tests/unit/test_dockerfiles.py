"""The Dockerfiles keep rules that no build would miss; and each rule catches what it is for."""

from __future__ import annotations

import fnmatch
import os
import re
import subprocess
from pathlib import Path

import pytest

from dockerfiles import RULES, parse

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "images").glob("*/Dockerfile"))
TARGETS = {"platform": ("node", "hub")}
APT = (
    "RUN --mount=type=secret,id=ca,mode=0444 . /run/network/downloads.sh && "
    "apt-get update && apt-get install -y --no-install-recommends {} && "
    "apt-get clean && rm -rf /var/lib/apt/lists/* && find / -perm /6000 -exec chmod a-s {{}} +\n"
)
PIP = (
    "RUN --mount=type=secret,id=ca,mode=0444 --mount=type=secret,id=pip_index_url "
    "--mount=type=cache,target=/root/.cache/pip . /run/network/downloads.sh && "
    "pip install --require-hashes --only-binary :all: -r /lock.txt\n"
)
END = (
    'USER 1000:100\nENTRYPOINT ["/usr/bin/tini", "--"]\nCMD ["run"]\n'
    'HEALTHCHECK --timeout=3s --retries=3 CMD ["/healthy"]\nLABEL '
    + " ".join(
        f'org.opencontainers.image.{name}="x"'
        for name in ("title", "description", "licenses", "version", "revision")
    )
    + "\n"
)
GOOD = "ARG BASE=debian:bookworm-slim\nFROM ${BASE}\n" + APT.format("tini") + PIP + END


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_our_dockerfiles_keep_the_rule(path: Path, rule: str) -> None:
    file = parse(path.read_text())
    assert list(RULES[rule](file, TARGETS.get(path.parent.name, ()))) == []


def test_there_are_the_dockerfiles_that_the_rules_are_for() -> None:
    assert [path.parent.name for path in FILES] == ["notebook", "platform", "postgres"]
    for path in FILES:
        assert len(parse(path.read_text()).of("RUN")) >= 1


@pytest.mark.parametrize("rule", RULES)
def test_a_good_sample_breaks_no_rule(rule: str) -> None:
    assert list(RULES[rule](parse(GOOD), ())) == []


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ("from_our_base_alone", "FROM ${BASE}", "FROM python:3.11"),
        ("from_our_base_alone", "BASE=debian:bookworm-slim", "BASE=debian:latest"),
        ("nothing_by_address", "CMD", "ADD https://example.com/x.tar /\nCMD"),
        ("nothing_by_address", "CMD", "ADD x.tar /\nCMD"),
        ("nothing_by_address", "CMD", "RUN curl -fsSL example.com/x | sh\nCMD"),
        ("nothing_by_address", "CMD", "RUN pip install git+https://example.com/x\nCMD"),
        ("apt_is_tidy", "--no-install-recommends ", ""),
        ("apt_is_tidy", "apt-get update && ", ""),
        ("apt_is_tidy", " && rm -rf /var/lib/apt/lists/*", ""),
        ("apt_is_tidy", "apt-get clean && ", ""),
        ("apt_is_tidy", "apt-get clean", "apt-get clean && apt-get -y upgrade"),
        ("pip_is_locked", "--require-hashes ", ""),
        ("pip_is_locked", "--only-binary :all: ", ""),
        ("pip_is_locked", "--mount=type=cache,target=/root/.cache/pip ", ""),
        ("pip_is_locked", "CMD", "RUN pip install --no-index --no-deps --no-cache-dir x\nCMD"),
        ("pip_is_locked", "CMD", "RUN npm install -g configurable-http-proxy\nCMD"),
        ("downloads_know_the_network", ". /run/network/downloads.sh && ", ""),
        ("downloads_know_the_network", "--mount=type=secret,id=ca,mode=0444 ", ""),
        ("downloads_know_the_network", "--mount=type=secret,id=pip_index_url ", ""),
        ("downloads_know_the_network", "CMD", "RUN --mount=type=bind,target=/x cp /x /y\nCMD"),
        ("no_secret_stays", "CMD", "ENV API_TOKEN=x\nCMD"),
        ("no_secret_stays", "CMD", "ARG PIP_INDEX_URL\nCMD"),
        ("no_secret_stays", "CMD", "ENV https_proxy=x\nCMD"),
        ("no_secret_stays", "CMD", "ENV SSL_CERT_FILE=/run/secrets/ca\nCMD"),
        ("no_secret_stays", "CMD", "ENV A=1 POSTGRES_PASSWORD=x\nCMD"),
        ("no_gpu_by_variable", "CMD", "ENV NVIDIA_VISIBLE_DEVICES=all\nCMD"),
        ("no_gpu_by_variable", "CMD", "ENV CUDA_VERSION=13.0\nCMD"),
        ("no_moving_tag", "CMD", "COPY --from=tools:latest /a /b\nCMD"),
        ("no_moving_tag", "-r /lock.txt", "--upgrade -r /lock.txt"),
        ("ends_well", "USER 1000:100", ""),
        ("ends_well", "USER 1000:100", "USER root"),
        ("ends_well", "USER 1000:100", "USER 1000:100\nUSER 0"),
        ("ends_well", 'CMD ["run"]', "CMD run"),
        ("ends_well", 'CMD ["run"]\n', ""),
        ("ends_well", '"/usr/bin/tini"', '"tini"'),
        ("ends_well", 'ENTRYPOINT ["/usr/bin/tini", "--"]\n', ""),
        ("ends_well", 'HEALTHCHECK --timeout=3s --retries=3 CMD ["/healthy"]\n', ""),
        ("ends_well", 'org.opencontainers.image.licenses="x" ', ""),
        ("ends_well", " -perm /6000 -exec chmod a-s", " -perm /6000 -exec echo"),
        ("ends_well", "CMD", "RUN echo ada >/etc/sudoers.d/x && apt-get install sudo\nCMD"),
    ],
)
def test_a_rule_catches_what_it_is_for(rule: str, good: str, bad: str) -> None:
    assert good in GOOD
    file = parse(GOOD.replace(good, bad, 1))
    assert list(RULES[rule](file, ()))


def test_layers_go_from_stable_to_volatile() -> None:
    """What changes with every commit comes after everything that is large."""
    for path in FILES:
        file = parse(path.read_text())
        for stage in file.finals(TARGETS.get(path.parent.name, ())):
            steps = file.lineage(stage)
            kinds = [
                "large" if re.search(r"apt-get install|--require-hashes|--from=packages", s.text)
                else "ours" if "/dist/gpuslice-" in s.text or "REVISION" in s.text
                else ""
                for s in steps
            ]  # fmt: skip
            order = [kind for kind in kinds if kind]
            assert order == sorted(order), path
            assert {"large", "ours"} <= set(order)


# ------------------------------------------------------------------------------- what is copied


def test_what_a_dockerfile_copies_is_there_and_let_in() -> None:
    patterns = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in "#"
    ]
    assert patterns[0] == "*"
    allowed = [pattern.removeprefix("!") for pattern in patterns[1:]]
    assert all(pattern.startswith("!") for pattern in patterns[1:])
    for path in FILES:
        for source in _sources(path.read_text()):
            if source.startswith("build/"):
                assert source in allowed
                continue
            assert (ROOT / source).exists(), source
            assert any(
                fnmatch.fnmatch(source, pattern)
                or source.startswith(f"{pattern}/")
                or pattern.startswith(f"{source}/")
                for pattern in allowed
            ), source


def _sources(text: str) -> list[str]:
    """Every path of the checkout that a Dockerfile names."""
    found = []
    for step in parse(text).of("COPY", "RUN"):
        if step.name == "COPY" and "--from=" not in step.text:
            found += step.text.split()[:-1]
        for mount in re.findall(r"--mount=type=bind,(\S+)", step.text):
            options = dict(part.split("=") for part in mount.split(","))
            if "from" not in options:
                found.append(options["source"])
    return found


def test_programs_of_the_images_may_be_run_and_are_well_formed() -> None:
    programs = [
        path
        for path in (ROOT / "images").glob("*/*")
        if path.is_file() and path.read_bytes().startswith(b"#!")
    ]
    assert len(programs) == 5
    for path in programs:
        assert os.access(path, os.X_OK), path
        if path.read_text().startswith("#!/bin/sh"):
            done = subprocess.run(["sh", "-n", str(path)], capture_output=True, check=False)
            assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------------------- locks


def _versions(name: str) -> dict[str, set[str]]:
    """Several of a package where Pythons differ; images have the lowest that we support."""
    found: dict[str, set[str]] = {}
    lock = (ROOT / "requirements" / f"{name}.txt").read_text()
    for package, version in re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", lock):
        found.setdefault(package, set()).add(version)
    return found


def _disagreements(one: str, other: str) -> dict[str, tuple[set[str], set[str]]]:
    """Packages of which two locks have no version in common."""
    ours, theirs = _versions(one), _versions(other)
    return {
        package: (ours[package], theirs[package])
        for package in ours.keys() & theirs.keys()
        if not ours[package] & theirs[package]
    }


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in (ROOT / "requirements").glob("image-*.txt"))
)
def test_an_image_has_the_versions_that_the_tests_run(name: str) -> None:
    assert len(_versions(name).keys() & _versions("test").keys()) > 4
    assert _disagreements(name, "test") == {}


def test_locks_of_one_image_agree_about_what_they_share() -> None:
    for variant in ("image-cpu", "image-cuda", "torch"):
        assert _versions(variant).keys() & _versions("image-notebook").keys()
        assert _disagreements(variant, "image-notebook") == {}
    assert _disagreements("image-cpu", "torch") == {}


def test_hub_and_notebook_have_one_jupyterhub() -> None:
    [hub], [notebook] = (_versions(f"image-{name}")["jupyterhub"] for name in ("hub", "notebook"))
    assert hub == notebook


def test_torch_and_cupy_share_one_set_of_nvidias_libraries() -> None:
    lock = (ROOT / "requirements" / "image-cuda.txt").read_text()
    names = re.findall(r"(?m)^([\w.-]+)==", lock)
    assert len(names) == len(set(names))
    # cuBLAS as nvidia-cublas and as nvidia-cublas-cu12 would be two of a kind.
    libraries = [name for name in names if name.startswith(("nvidia-", "cupy-", "cucim-", "cuda-"))]
    kinds = [re.sub(r"-?cu(da)?\d+x?$", "", name) for name in libraries]
    assert len(kinds) == len(set(kinds)), libraries
    assert {"nvidia-cublas", "nvidia-cufft", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime"} <= set(
        kinds
    )
    # And all of one major version of CUDA.
    majors = set(re.findall(r"-cu(?:da)?(\d+)x?$", "\n".join(libraries), re.MULTILINE))
    assert majors == {"13"}
    versions = {name: max(found) for name, found in _versions("image-cuda").items()}
    for name in ("cuda-toolkit", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "cuda-bindings"):
        assert versions[name].split(".")[0] == "13"
    # PyPI's build, and the same version as the CPU's.
    [cpu] = _versions("torch")["torch"]
    assert versions["torch"] == cpu.partition("+")[0]
