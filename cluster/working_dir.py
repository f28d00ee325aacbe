"""What a job takes along to a cluster, its working directory: code without data, and settings whose paths every node knows."""

import hashlib
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path

import tomlkit

from recsys import config
from recsys.config.paths import local_path, location
from recsys.errors import ConfigError

SETTINGS = "settings.submitted.toml"  # the settings as they travel, at the root of the job's working directory
PATHS = (  # settings that say where something lies
    *("shop.events", "shop.items", "shop.users", "shop.daily"),
    *("pairs.path", "pairs.test", "pairs.score", "pairs.users", "pairs.items"),
    *("rank.candidates", "table.path", "run.work", "champion.path", "report.path", "notify.url_file", "privacy.key_file"),
)
PATH_OPTIONS = {
    "--bundle": local_path,
    "--out": local_path,
    "--plot": local_path,
    "--all-scores": location,
}  # of verbs; how each is read
LEFT_OUT = {"var", ".venv", "venv", ".git", "data", "node_modules"}  # at the root
NEVER = shutil.ignore_patterns(
    "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "*.parquet", "*.csv", "*.arrow", "*.npz", ".env*", "*.pem", "*.key"
)
LARGEST_BYTES = 64 * 2**20  # of what is sent; Ray's own limit is 512 MiB


def settings_text(path: Path, *, remote: bool) -> str:
    """The settings file as it travels: the same keys, with paths that every node understands.

    Args:
        remote: whether the nodes are other machines, for which a relative path means nothing.

    Raises:
        ConfigError: the file cannot be used, or a path is relative and the cluster remote.
    """
    settings = config.load_either(path)
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    for key in PATHS:
        section, name = key.split(".")
        place = getattr(getattr(settings, section, None), name, None)
        if place is not None:
            values.setdefault(section, {})[name] = shared(place, what=f"{path}: {key}", remote=remote)
    for rule in values.get("rules", ()):
        of_list = rule if rule["kind"] in ("items", "pairs") else {}
        for table, name in ((of_list, "only"), (of_list, "never"), (rule.get("audience", {}), "ids")):
            if name in table:
                table[name] = shared(location(table[name]), what=f"{path}: the rule '{rule['name']}'", remote=remote)
    for export in values.get("exports", ()):
        kind, _, place = export["to"].rpartition("parquet:")
        if kind == "" and (export["to"].startswith("parquet:") or "://" not in export["to"]):
            export["to"] = export["to"].removesuffix(place) + shared(location(place), what=f"{path}: exports.to", remote=remote)
        if "password_file" in export:
            file = str(local_path(export["password_file"]))
            export["password_file"] = shared(file, what=f"{path}: exports.password_file", remote=remote)
    return tomlkit.dumps(values)


def shared(place: str, *, what: str, remote: bool) -> str:
    """The place as every node understands it: a URI and an absolute path as they stand, a relative path made absolute.

    Raises:
        ConfigError: it is relative and the nodes are other machines.
    """
    if "://" in place or Path(place).is_absolute():
        return place
    if remote:
        raise ConfigError(
            f"{what}: '{place}' is relative, and other machines have another folder. Use a URI or a shared absolute path."
        )
    return str(Path(place).absolute())


def shared_arguments(arguments: Sequence[str], *, remote: bool) -> tuple[str, ...]:
    """Further arguments of a verb, the paths among them made such that every node understands them.

    Raises:
        ConfigError: as `shared`; or --config or --as-of among them, which are options of the submission.
    """
    made: list[str] = []
    after = ""
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option in ("--config", "--as-of"):
            raise ConfigError(f"{option}: pass it before the `--`, to the submission.")
        if after in PATH_OPTIONS:
            made.append(shared(str(PATH_OPTIONS[after](argument)), what=after, remote=remote))
        elif option in PATH_OPTIONS and equals:
            made.append(f"{option}={shared(str(PATH_OPTIONS[option](value)), what=option, remote=remote)}")
        else:
            made.append(argument)
        after = argument
    return tuple(made)


def copy_code(root: Path, into: Path, settings: str | None) -> str:
    """A digest of the copy of the repository that is made in `into`: code without data, and the settings.

    Raises:
        ConfigError: it is too large to be code.
    """

    def ignore(folder: str, names: list[str]) -> set[str]:
        ignored = NEVER(folder, names)
        return ignored | (LEFT_OUT & set(names) if Path(folder) == root else set())

    total = 0

    def copy(source: str, target: str) -> None:
        nonlocal total
        total += Path(source).stat().st_size
        if total > LARGEST_BYTES:
            raise ConfigError(f"{root}: more than {LARGEST_BYTES >> 20} MiB besides var/ and data/, at {source}. Move data under var/.")
        shutil.copy(source, target)

    shutil.copytree(root, into, ignore=ignore, copy_function=copy, dirs_exist_ok=True, ignore_dangling_symlinks=True)
    if settings is not None:
        (into / SETTINGS).write_text(settings, encoding="utf-8")
    seen = hashlib.sha256()
    for file in sorted(into.rglob("*")):
        if file.is_file():
            content = file.read_bytes()
            seen.update(f"{file.relative_to(into).as_posix()}\0{len(content)}\0".encode() + content)
    return seen.hexdigest()[:16]
