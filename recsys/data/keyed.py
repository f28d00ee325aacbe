"""User ids as keyed digests: what a night keeps and publishes names nobody to whoever lacks the key.

HMAC (RFC 2104) with SHA-256 of the id as text, cut to 128 bits as the RFC allows (section 5), in hexadecimal: 32 characters, the same
on every machine, for an id that is a number as for one that is its text.
"""

import hmac
from dataclasses import dataclass, field

import pyarrow as pa

from recsys.config import Settings
from recsys.data.types import Column, clean_ids, id_type
from recsys.errors import ConfigError
from recsys.secret import secret

LEAST = 16  # characters of a key
DIGITS = 32


@dataclass(frozen=True)
class Key:
    """The key; it shows itself to nobody."""

    secret: bytes = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """What tells one key from another and says nothing of either."""
        return hmac.digest(self.secret, b"recsys: which key is this?", "sha256").hex()[:12]

    def of(self, user_id: str | int) -> str:
        """The digest of one id."""
        return hmac.digest(self.secret, str(user_id).encode(), "sha256").hex()[:DIGITS]

    def ids(self, column: Column) -> Column:
        """The digests of a column of ids, string or int64, each distinct one made once; null stays."""
        if isinstance(column, pa.ChunkedArray):
            return pa.chunked_array([self.ids(chunk) for chunk in column.chunks], pa.string())
        found = column.dictionary_encode()
        digests = pa.array([None if one is None else self.of(one) for one in found.dictionary.to_pylist()], pa.string())
        return digests.take(found.indices)


def key_of(settings: Settings) -> Key | None:
    """The key that [privacy] names; None where it names none.

    Raises:
        ConfigError: it is not there, or too short to keep anything.
    """
    privacy = settings.privacy
    text = secret(key="privacy.key", variable=privacy.key_env, file=privacy.key_file)
    if text is None:
        return None
    if len(text) < LEAST:
        raise ConfigError(
            f"privacy.key: must have at least {LEAST} characters, as ids are easily guessed, got {len(text)}. Make one, as by "
            "`openssl rand -hex 32`, and keep it: with another key every user is a new one."
        )
    return Key(text.encode())


def user_ids(column: Column, dtype: pa.DataType, key: Key | None) -> Column:
    """A column of user ids in the kept type, as `types.clean_ids`; digests where there is a key.

    Raises:
        pa.ArrowException: bytes that are no UTF-8, or another type.
    """
    if key is None:
        return clean_ids(column, dtype)
    return key.ids(clean_ids(column, id_type(column.type, where="", column="")))
