"""Reads Dockerfiles, and the rules that ours keep: each rule tells what breaks it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SECRET_WORDS = re.compile(
    r"passw|secret|token|api_?key|credential|index_url|registry", re.IGNORECASE
)
#: A file that is named in a variable is no secret.
_PLACES = re.compile(r"_FILE$")


@dataclass(frozen=True)
class Step:
    """One instruction, its continued lines joined and its comments left out."""

    name: str
    text: str
    stage: int


@dataclass(frozen=True)
class Dockerfile:
    steps: tuple[Step, ...]

    def of(self, *names: str) -> list[Step]:
        return [step for step in self.steps if step.name in names]

    @property
    def stages(self) -> list[str]:
        """Their names, in order."""
        found = []
        for step in self.of("FROM"):
            words = step.text.split()
            found.append(words[-1] if len(words) > 2 else "")
        return found

    def finals(self, targets: tuple[str, ...]) -> list[int]:
        """The stages that become images: those that are named, or else the last."""
        names = self.stages
        return [names.index(name) for name in targets] or [len(names) - 1]

    def lineage(self, stage: int) -> list[Step]:
        """The steps of a stage and of those that it is made from, the first ones first."""
        own = [step for step in self.steps if step.stage == stage and step.name != "FROM"]
        source = self.of("FROM")[stage].text.split()[0]
        # One is as good as the other for rules about the end.
        names = self.stages[:stage]
        parents = [
            number
            for number, name in enumerate(names)
            if name and re.fullmatch(re.sub(r"\$\{\w+\}", ".*", source), name)
        ]
        return (self.lineage(parents[0]) if parents else []) + own


def parse(text: str) -> Dockerfile:
    """All instructions of a Dockerfile."""
    steps: list[Step] = []
    stage = -1
    joined = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        joined += line.strip()
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            continue
        name, _, rest = joined.partition(" ")
        joined = ""
        stage += name == "FROM"
        steps.append(Step(name, re.sub(r"\s+", " ", rest.strip()), stage))
    return Dockerfile(tuple(steps))


# ----------------------------------------------------------------------------------------- rules

Rule = Callable[[Dockerfile, tuple[str, ...]], Iterator[str]]


def from_our_base_alone(file: Dockerfile, _: tuple[str, ...]) -> Iterator[str]:
    """Every stage is of the one base, of nothing, or of another stage."""
    before: list[str] = []
    for step, name in zip(file.of("FROM"), file.stages, strict=True):
        source = step.text.split()[0]
        pattern = re.sub(r"\$\{\w+\}", ".*", source)
        known = source in ("${BASE}", "scratch") or any(re.fullmatch(pattern, n) for n in before)
        if not known:
            yield f"FROM {source}"
        before.append(name)
    if "BASE=debian:bookworm-slim" not in [step.text for step in file.of("ARG")]:
        yield "no ARG BASE=debian:bookworm-slim"


def nothing_by_address(file: Dockerfile, _: tuple[str, ...]) -> Iterator[str]:
    """What comes from outside comes by a package manager that checks it."""
    for step in file.of("ADD"):
        yield f"ADD {step.text}"
    for step in file.of("RUN", "COPY", "ARG", "ENV"):
        if "://" in step.text.replace("http://127.0.0.1", ""):
            yield f"an address: {step.text}"
        if step.name == "RUN" and re.search(r"(^|[&|;] )(curl|wget|git) ", step.text):
            yield f"a download: {step.text}"


def apt_is_tidy(file: Dockerfile, _: tuple[str, ...]) -> Iterator[str]:
    """Lists are fetched, used and removed in one layer; nothing comes that nobody asked for."""
    for step in file.of("RUN"):
        if not re.search(r"\bapt(-get)? ", step.text):
            continue
        for needed in (
            "apt-get update && apt-get install -y --no-install-recommends ",
            "apt-get clean",
            "rm -rf /var/lib/apt/lists/*",
        ):
            if needed not in step.text:
                yield f"no {needed!r}: {step.text}"
        if re.search(r"(^|&& )apt |\bsudo\b|upgrade", step.text):
            yield f"apt: {step.text}"


def pip_is_locked(file: Dockerfile, _: tuple[str, ...]) -> Iterator[str]:
    """Packages of others by hash, our own by file; and no cache in a layer."""
    for step in file.of("RUN"):
        for command in re.findall(r"pip(?: --python \S+)? install ([^;&]*)", step.text):
            ours = (
                "--no-index" in command and "--no-deps" in command and "--network=none" in step.text
            )
            theirs = "--require-hashes" in command and "--only-binary :all:" in command
            if not (ours or theirs):
                yield f"pip install {command}"
            if (
                "--no-cache-dir" not in command
                and "type=cache,target=/root/.cache/pip" not in step.text
            ):
                yield f"keeps what it downloads: {command}"
        if re.search(r"\b(npm|npx) |\byarn (add|install)\b|uv pip", step.text):
            yield f"not by the lock: {step.text}"


def downloads_know_the_network(file: Dockerfile, _: tuple[str, ...]) -> Iterator[str]:
    """Whatever downloads can be handed the certificates and mirrors of a closed network."""
    for step in file.of("RUN"):
        downloads = "apt-get " in step.text or "--require-hashes" in step.text
        if downloads and ". /run/network/downloads.sh && " not in step.text:
            yield f"does not read downloads.sh: {step.text}"
        if downloads and "--mount=type=secret,id=ca,mode=0444" not in step.text:
            yield f"has no certificates: {step.text}"
        if "--require-hashes" in step.text and "id=pip_index_url" not in step.text:
            yield f"has no index: {step.text}"
        if not downloads and "--mount" in step.text and "--network=none" not in step.text:
            yield f"needs no network and has it: {step.text}"


def no_secret_stays(file: Dockerfile, _: tuple[str, ...]) -> Iterator[str]:
    """No secret in a variable, and no certificate or proxy of the machine that builds."""
    for step in file.of("ENV", "ARG", "LABEL"):
        for name in re.findall(r"([\w.]+)=?", step.text):
            if name.isupper() and SECRET_WORDS.search(name) and not _PLACES.search(name):
                yield f"{step.name} {name}"
            if step.name != "LABEL" and re.search(r"proxy|_CERT|CERTS?$|SSL", name, re.IGNORECASE):
                yield f"{step.name} {name}"


def no_gpu_by_variable(file: Dockerfile, _: tuple[str, ...]) -> Iterator[str]:
    for step in file.of("ENV", "ARG", "LABEL"):
        if re.search(r"NVIDIA_VISIBLE_DEVICES=(?!void\b)|CUDA_VERSION|NVIDIA_REQUIRE", step.text):
            yield step.text


def no_moving_tag(file: Dockerfile, _: tuple[str, ...]) -> Iterator[str]:
    for step in file.steps:
        if re.search(r":latest\b|@latest\b|--upgrade\b|--pre\b", step.text):
            yield step.text


def ends_well(file: Dockerfile, targets: tuple[str, ...]) -> Iterator[str]:
    """Each image says who it runs as, what it starts, how it is seen to be well, and what it is."""
    for stage in file.finals(targets):
        steps = file.lineage(stage)
        named = {step.name: step.text for step in steps}
        name = file.stages[stage]
        user = named.get("USER", "nobody said")
        if user in ("nobody said", "0", "0:0") or (user.startswith("root") and name != "node"):
            yield f"{name}: USER {user}"
        for each in ("ENTRYPOINT", "CMD"):
            text = named.get(each)
            if text is None and (each == "ENTRYPOINT" or "tini" in named.get("ENTRYPOINT", "")):
                yield f"{name}: no {each}"
            elif text is not None and not _is_list(text):
                yield f"{name}: {each} {text}"
        entry = named.get("ENTRYPOINT", "[]")
        if _is_list(entry) and not str((json.loads(entry) or [""])[0]).startswith("/"):
            yield f"{name}: whose PATH? {entry}"
        if not re.search(r"--timeout=\d+s .*--retries=\d+ CMD \[", named.get("HEALTHCHECK", "")):
            yield f"{name}: no HEALTHCHECK"
        for label in ("title", "description", "licenses", "version", "revision"):
            if f"org.opencontainers.image.{label}=" not in named.get("LABEL", ""):
                yield f"{name}: no label {label}"
        if not any("-perm /6000 -exec chmod a-s" in step.text for step in steps):
            yield f"{name}: what raises rights is not made harmless"
        if any(re.search(r"\bsudo\b", step.text) for step in steps):
            yield f"{name}: sudo"


def _is_list(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        from_our_base_alone,
        nothing_by_address,
        apt_is_tidy,
        pip_is_locked,
        downloads_know_the_network,
        no_secret_stays,
        no_gpu_by_variable,
        no_moving_tag,
        ends_well,
    )
}
