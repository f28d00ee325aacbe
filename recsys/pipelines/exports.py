"""The lists handed on, at the end of a run, to all places that `[[exports]]` names."""

from collections.abc import Mapping, Sequence

from recsys.config import Export, PairsSettings, Settings
from recsys.engine.lease import leased
from recsys.engine.progress import log
from recsys.errors import ConfigError, LeaseError, Mistakes, PublishError, one_line
from recsys.publishing.export import check_place, export
from recsys.secret import secret


def check_exports(exports: Sequence[Export]) -> None:
    """Nothing, where all addresses are such and their passwords there.

    Raises:
        ConfigError: a sentence for each that is not; or one is named twice.
    """
    mistakes = Mistakes()
    for one in exports:
        mistakes.look(check_place, one.to)
        mistakes.look(_password, one)
    mistakes.end()
    places = [place_of(one) for one in exports]
    if twice := sorted({place for place in places if places.count(place) > 1}):
        raise ConfigError(f"exports: {twice[0]} is named twice. Remove one, or give it another name.")


def hand_on(path: str, exports: Sequence[Export], *, full: bool = False, storage_options: Mapping[str, str]) -> dict[str, str]:
    """Each place and what failed there; "" where it holds the table's newest night now.

    One that fails keeps what it held, whole, and gets all it missed from the next run. The caller holds the table's lease, so that no
    other run hands on a newer night meanwhile.

    Args:
        path: of the table.
        full: as of `export`.
    """
    found: dict[str, str] = {}
    for one in exports:
        place = place_of(one)
        try:
            done = export(path, one.to, as_of=None, name=one.name, full=full, password=_password(one), storage_options=storage_options)
        except Exception as error:  # noqa: BLE001 # of any kind: the others get theirs, and the night stands
            found[place] = one_line(error)
            log.warning("exports: %s", found[place])
        else:
            found[place] = ""
            log.info("exports: in %s: %s", place, done.sentence)
    return found


def place_of(one: Export) -> str:
    """What to call it: its address without properties, and the name where it is another than the default."""
    named = "" if one.name == Export.model_fields["name"].default else f" as {one.name}"
    return one.to.partition("?")[0] + named


def hand_on_standing(settings: Settings | PairsSettings, *, what: str) -> dict[str, str]:
    """As `hand_on`, under a lease of its own; where another run has it, nothing, as that one hands on at its end."""
    door = settings.pairs if isinstance(settings, PairsSettings) else settings.shop
    path, options = settings.table.path, door.storage_options
    if not settings.exports:
        return {}
    try:
        with leased(path, options, what=what):
            return hand_on(path, settings.exports, storage_options=options)
    except LeaseError as error:
        log.info("exports: left to the run that works on the table: %s", one_line(error))
        return {}


def refuse_failed(handed: Mapping[str, str], *, done: str) -> None:
    """Nothing, where all places took the lists.

    Args:
        done: what stands all the same.

    Raises:
        PublishError: a sentence for each that did not.
    """
    if failed := [f"{done}, but {place} still holds what was before: {said}" for place, said in handed.items() if said]:
        raise PublishError(*failed)


def _password(one: Export) -> str | None:
    return secret(key="exports.password", variable=one.password_env, file=one.password_file)
