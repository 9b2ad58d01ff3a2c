"""`cads_preprocess --anonymise`: a store that can be given to others without the names of files.

Volumes are named by a keyed hash. The key, and the names of scans that failed, are in the folder ``private`` of the
store, which only its owner can read: needed to add to the store and to deal with failures, and to be kept back when the
store is given away. The hash has a key since without one, whoever suspects a name could hash it and compare.
"""

import dataclasses
import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path

from pretraining.ct.scan import Scan, name_bytes
from pretraining.store.store import PRIVATE
from pretraining.system.errors import UserError

_KEY = "key"
_KEY_LENGTH = 64
_HASH_LENGTH = 16
_SECONDS_TO_WRITE = 10


class Pseudonyms:
    """The names that a store uses in place of the files' own.

    Args:
        store: folder of the store, which exists.

    Raises:
        UserError: the store holds volumes, but the key that they were named with is gone; or it cannot be read.
    """

    def __init__(self, store: Path) -> None:
        folder = store / PRIVATE
        path = folder / _KEY
        if not path.exists() and any((store / "volumes").glob("*.json")):
            raise UserError(f"{path}: missing, and nothing can be added without it; restore it or choose another STORE")
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._key = _read_or_make(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read or written ({error.strerror}); choose another STORE") from None

    def of(self, scan: Scan) -> Scan:
        """The scan with a hash as its id and source; `Scan.name` stays, for messages."""
        return dataclasses.replace(
            scan, volume_id="ct-" + self._hash(scan.volume_id.casefold()), stored_name=self._hash(scan.name)
        )

    def _hash(self, text: str) -> str:
        return hmac.new(self._key, name_bytes(text), hashlib.sha256).hexdigest()[:_HASH_LENGTH]


def _read_or_make(path: Path) -> bytes:
    """The key; of parts that start at once, one makes it for all."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(_KEY_LENGTH // 2))
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        pass
    end = time.monotonic() + _SECONDS_TO_WRITE
    while len(key := path.read_bytes()) != _KEY_LENGTH:
        if time.monotonic() > end:
            raise UserError(f"{path}: damaged; remove it if the store holds no volumes yet, else restore it")
        time.sleep(0.1)
    return key
