"""The paper's sets as its authors published them: the exact pairs, paraphrases and translations of the experiments.

They are in the folder data_files/ of the authors' repository, at a pinned commit, under names with a time stamp:
`<set>_seed_982_ntrain_<n>_ntest_200[_no_translate_prompts]_<timestamp>`, and below rewritten/
`{rewrite,translate_french,translate_spanish}_gpt-4.1_<ultrafeedback's folder>_<timestamp>`. `rmkit prepare released`
copies them to short names; recipes and suites refer to one as `released/NAME`.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rmkit.config.strict_yaml import StrictModel
from rmkit.data.preferences import COLUMNS
from rmkit.data.rewriting.endings import ends_early
from rmkit.data.rows import iter_rows
from rmkit.data.sources.base import Source
from rmkit.data.sources.card import Card, describe, read_card, refuse_to_replace, write_card
from rmkit.errors import RmkitError, Unreachable, first_line
from rmkit.files import replacing, rmkit_cache

REPOSITORY = "princeton-pli/exrm-vs-imrm"
COMMIT = "58357b566814ea51d4e54bae8ace751889a22c14"
WHERE = f"https://github.com/{REPOSITORY}"
URL = f"{WHERE}/archive/{{commit}}.tar.gz"
PREFIX = "released/"
DATA = "data_files"
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # the end of a complete Arrow stream
_TIMEOUT = 60.0
_PIECE = 2**16

_STAMP = r"\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d"
_SAMPLED = rf"_seed_\d+_ntrain_-?\d+_ntest_-?\d+(_no_translate_prompts)?_{_STAMP}"
PATTERNS = {
    **{name: rf"{name}{_SAMPLED}" for name in ("ultrafeedback", "rewardmath", "rewardbench_math", "rewardbench_code")},
    **{
        f"ultrafeedback_{name}": rf"rewritten/{made}_gpt-4\.1_ultrafeedback{_SAMPLED}_{_STAMP}"
        for name, made in (
            ("paraphrased", "rewrite"),
            ("french", "translate_french"),
            ("spanish", "translate_spanish"),
        )
    },
}
"""Short name -> pattern of the folder's path below data_files/."""


class ReleasedOptions(StrictModel):
    """`source` is a clone of the authors' repository; without it the commit `revision` is downloaded once."""

    source: Path | None = None
    revision: str = COMMIT


@dataclass(frozen=True)
class Released(Source):
    """One of the published sets."""

    name: str
    about: str
    where: str = WHERE
    options: type[StrictModel] = ReleasedOptions

    def write(self, options: ReleasedOptions, folder: Path) -> Card:
        import datasets

        data = data_files(options)
        short_name = self.name.removeprefix(PREFIX)
        found = find_folder(data, short_name)
        defect = find_defect(found)
        if defect is not None:
            raise RmkitError(f"{found.relative_to(data)} of the released sets cannot be used: {defect}.", _FETCH)
        shutil.copytree(found, folder)
        for path in (folder, *folder.rglob("*")):  # the clone may be read-only
            path.chmod(path.stat().st_mode | stat.S_IWUSR)
        splits = datasets.load_from_disk(str(folder))
        steps = [{"step": found.name, "rows": {split: len(rows) for split, rows in splits.items()}}]
        revision = options.revision if options.source is None else _head(options.source)
        where = WHERE if options.source is None else str(options.source)
        return describe(splits, self.name, where, revision, options, steps) | _cut(splits)


def _cut(splits: Any) -> Card:
    """`cut`: split -> pairs of a rewritten set with a response that ends in the middle, unlike its original."""
    columns, sides = {"orig_chosen", "orig_rejected"}, ("chosen", "rejected")
    rewritten = {split: rows for split, rows in splits.items() if columns <= set(rows.column_names)}
    return {
        "cut": {
            split: sum(any(ends_early(row[f"orig_{side}"], row[side]) for side in sides) for row in iter_rows(rows))
            for split, rows in rewritten.items()
        }
    }


_FETCH = "Clone the authors' repository completely (with Git LFS, if it uses it), or leave --source out."


def prepare_all(options: ReleasedOptions, output: Path, overwrite: bool = False) -> dict[str, Card | str]:
    """Prepare every complete published set into a folder with its short name; returns its card or why it was left out.

    Existing sets of the same commit or without a card are kept unless `overwrite` is on.

    Raises:
        RmkitError: if there is no repository, no set is complete, or `output` holds other files.
    """
    results: dict[str, Card | str] = {}
    for source in SOURCES:
        name = source.name.removeprefix(PREFIX)
        card = None if overwrite else _card_of_kept(source.name, options, output / name)
        if card is not None:
            results[name] = card
        else:
            refuse_to_replace(output / name, overwrite)
    if len(results) == len(SOURCES):
        return results
    data = data_files(options)
    for source in SOURCES:
        name = source.name.removeprefix(PREFIX)
        if name in results:
            continue
        try:
            with replacing(output / name) as folder:
                card = source.write(options, folder)
                write_card(card, folder)
            results[name] = card
        except RmkitError as error:
            results[name] = error.cause
        except OSError as error:
            raise RmkitError(
                f"{output} cannot be written: {error}.", "Give another --output, or free disk space."
            ) from None
    if all(isinstance(result, str) for result in results.values()):
        raise RmkitError(f"None of the released sets is in {data}.", _FETCH)
    return results


def _card_of_kept(name: str, options: ReleasedOptions, folder: Path) -> Card | None:
    """The card of an existing set that recipes use unchanged (see `sources.use`); None if there is none."""
    import datasets

    if not (folder / "dataset_dict.json").exists() or find_defect(folder) is not None:
        return None
    card = read_card(folder)
    if card is None:
        return describe(datasets.load_from_disk(str(folder)), name, str(folder), None, options, [])
    same = card.get("name") == name and card.get("options", {}).get("revision") == options.revision
    return card if same else None


def find_folder(data: Path, name: str) -> Path:
    """The folder of a set; the newest if there are several.

    Raises:
        RmkitError: if there is none.
    """
    pattern = re.compile(PATTERNS[name])
    folders = [*data.glob("*/"), *data.glob("rewritten/*/")]
    found = [folder for folder in folders if pattern.fullmatch(folder.relative_to(data).as_posix())]
    if not found:
        raise RmkitError(f"There is no folder of {name} in {data}.", _FETCH)
    return max(found, key=lambda folder: folder.name[-19:])  # the time stamp


def find_defect(folder: Path) -> str | None:
    """The defect of a save_to_disk folder of pairs; None if it is complete."""
    import datasets

    try:
        splits = datasets.load_from_disk(str(folder))
    except Exception as error:  # the readers raise anything on missing or damaged files
        return first_line(error).rstrip(".")
    if not isinstance(splits, datasets.DatasetDict):
        return "it has no splits"
    for split, rows in splits.items():
        missing = [column for column in COLUMNS if column not in rows.column_names]
        if missing:
            return f"{split} has no column {missing[0]}"
        for file in sorted((folder / split).glob("*.arrow")):
            with file.open("rb") as stream:
                stream.seek(-len(_END_OF_STREAM), 2)
                if stream.read() != _END_OF_STREAM:  # truncated between two batches, which reads as a shorter set
                    return f"{split}/{file.name} is truncated"
    return None


def data_files(options: ReleasedOptions) -> Path:
    """The folder data_files/ of a clone, or of the downloaded commit.

    Raises:
        RmkitError: if there is none, or it cannot be downloaded.
    """
    if options.source is not None:
        for candidate in (options.source / DATA, options.source):
            if candidate.is_dir() and any(candidate.glob("*_seed_*/")):
                return candidate
        raise RmkitError(
            f"{options.source} is not a clone of {REPOSITORY}: it has no {DATA}/ with released sets.", _FETCH
        )
    from filelock import FileLock

    if not re.fullmatch(r"[0-9a-f]{40}", options.revision):
        raise RmkitError(f"The revision {options.revision} is not a commit.", "Give all 40 digits of the commit.")
    folder = rmkit_cache() / "released" / options.revision
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{options.revision}.lock"):
        if not folder.exists():
            with replacing(folder) as temporary:
                archive = temporary.parent / "archive.tar.gz"
                fetch(URL.format(commit=options.revision), archive)
                unpack(archive, options.revision, temporary)
    return folder / DATA


def fetch(url: str, file: Path) -> None:
    """Download a URL into a file, with a progress bar.

    Raises:
        RmkitError: if the download fails or is incomplete.
    """
    import requests
    from tqdm.auto import tqdm

    remedy = f"clone {WHERE} on a machine with a network, and give the clone with --source CLONE."
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise Unreachable(f"{url} is not downloaded while HF_HUB_OFFLINE is set.", f"Unset it, or {remedy}")
    try:
        with requests.get(url, stream=True, timeout=_TIMEOUT) as answer:
            answer.raise_for_status()
            size = int(answer.headers.get("Content-Length", 0)) or None
            with (
                file.open("wb") as stream,
                tqdm(total=size, unit="B", unit_scale=True, desc="released sets") as bar,
            ):
                for piece in answer.iter_content(_PIECE):
                    stream.write(piece)
                    bar.update(len(piece))
    except requests.RequestException as error:
        raise Unreachable(
            f"{url} cannot be downloaded: {type(error).__name__}.", f"Check the network, or {remedy}"
        ) from None


def _head(clone: Path) -> str | None:
    """The commit of a clone; None for a plain folder (which may be inside another repository)."""
    if not (clone / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(clone), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def unpack(archive: Path, revision: str, folder: Path) -> None:
    """Extract the sets of an archive of the repository, after checking that it is complete and of that commit.

    Raises:
        RmkitError: if it is not.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            commit = tar.pax_headers.get("comment")  # written by git archive
            if commit != revision:
                raise RmkitError(f"The archive is of the commit {commit}, not {revision}.", "Try again.")
            for member in tar:
                _, _, inside = member.name.partition("/")
                if inside == DATA or inside.startswith(f"{DATA}/"):
                    member.name = inside
                    tar.extract(member, folder, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise RmkitError(f"The archive of the released sets is damaged: {error}.", "Try again.") from None
    if not (folder / DATA).is_dir():
        raise RmkitError(f"The archive of {revision} has no {DATA}/.", "Give another --revision.")


SOURCES: Sequence[Released] = [Released(f"{PREFIX}{name}", f"the paper's own {name}") for name in PATTERNS]


def released_options(given: dict[str, Any]) -> ReleasedOptions:
    """The options of `rmkit prepare released`.

    Raises:
        RmkitError: for unknown ones.
    """
    from rmkit.config.strict_yaml import validate

    return validate(ReleasedOptions, given, "prepare released")
