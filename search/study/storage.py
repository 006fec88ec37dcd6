"""Where a study is kept: the run's own journal, or one of Optuna's storages that many machines reach."""

import abc
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, RDBStorage

from leanfront.search.run.disk import Note as Note
from leanfront.search.run.run_folder import RunError
from leanfront.search.storage_url import StorageURL
from leanfront.search.study.journal import open_journal
from leanfront.search.study.optuna_adapter import cached

PATIENCE_SECONDS = 900.0
"""A server may be away for so long, to be restarted, before a search gives up."""
_PAUSE_SECONDS = 1.0
_NO_MATTER_OF_TIME = ("password", "does not exist", "pg_hba.conf")
"""What is in the messages of a server that answers, and refuses."""
_SECONDS_TO_CONNECT = 10


class StorageLost(RuntimeError):
    """A storage was away for too long."""


def open_storage(
    url: StorageURL | None, journal: Path, note: Note = lambda text: None, wait: bool = False
) -> BaseStorage:
    """Open (and set up, if need be) a storage; ``note`` hears when its server is away.

    ``wait``: wait for the server as patiently here as later; without, say at once that it is not there.

    Raises:
        RunError: it cannot be reached, or what reaches it is not installed.
        StorageLost: with ``wait``, it could not be reached for too long.
    """
    if url is None:
        return open_journal(journal, note)
    shown = url.text

    def connect() -> BaseStorage:
        return _proxy(url) if url.scheme == "grpc" else _database(url)

    try:
        storage = _patiently(connect, shown, note)() if wait else connect()
    except ImportError as error:
        raise RunError(
            f"{shown} needs a package that is not installed ({error.name}):"
            f" pip install 'leanfront[{'grpc' if url.scheme == 'grpc' else 'postgres'}]'"
        ) from error
    except StorageLost:
        raise
    except Exception as error:
        raise RunError(
            f"cannot open the storage {shown}: {_reason(error)}; is its server running?"
        ) from error
    return PatientStorage(storage, shown, note)  # type: ignore[abstract]  # see below


def _database(url: StorageURL) -> BaseStorage:
    """Optuna makes its tables where there are none. The password is in no address, so in no message."""
    import psycopg  # noqa: F401 (a missing driver is said by its name)

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it warns of lost connections by the page
    text = url.text.replace("postgresql://", "postgresql+psycopg://", 1)
    return cached(
        RDBStorage(
            text.replace("{", "{{").replace("}", "}}"),  # Optuna fills templates
            engine_kwargs={
                "pool_pre_ping": True,
                "connect_args": {"connect_timeout": _SECONDS_TO_CONNECT, **url.secrets},
            },
        )
    )


def _proxy(url: StorageURL) -> BaseStorage:
    import grpc  # noqa: F401 (a missing package is said by its name)

    host, port = url.host_and_port
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        proxy = GrpcStorageProxy(host=host, port=port)
    proxy.wait_server_ready(timeout=_SECONDS_TO_CONNECT)
    return proxy


class PatientStorage(BaseStorage):
    """Another storage, each of its operations tried again while its server is away."""

    def __init__(self, storage: BaseStorage, shown: str, note: Note) -> None:
        self._storage = storage
        self._shown = shown
        self._note = note


def _delegated(name: str) -> Callable[..., Any]:
    def operation(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return _patiently(getattr(self._storage, name), self._shown, self._note)(*args, **kwargs)

    return operation


for _name in vars(BaseStorage):
    if not _name.startswith("_"):
        setattr(PatientStorage, _name, _delegated(_name))
abc.update_abstractmethods(PatientStorage)  # type: ignore[type-abstract]


def _patiently(operation: Callable[..., Any], shown: str, note: Note) -> Callable[..., Any]:
    """All operations may be repeated: at worst a trial is made that nobody works on, and taken back later, or
    one that is done is there twice."""

    def again(*args: Any, **kwargs: Any) -> Any:
        began: float | None = None
        while True:
            try:
                result = operation(*args, **kwargs)
            except UpdateFinishedTrialError:
                if began is not None and operation.__name__ == "set_trial_state_values":
                    return True  # the answer of the first attempt was lost, not the attempt
                raise
            except Exception as error:
                if not _is_away(error):
                    raise
                if began is None:
                    began = time.monotonic()
                    note(f"the storage {shown} does not answer ({_reason(error)}); trying again")
                elif time.monotonic() - began > PATIENCE_SECONDS:
                    raise StorageLost(
                        f"the storage {shown} did not answer for {PATIENCE_SECONDS / 60:.0f} minutes"
                    ) from error
                time.sleep(_PAUSE_SECONDS)
            else:
                if began is not None:
                    note(f"the storage {shown} answers again")
                return result

    return again


def _is_away(error: Exception) -> bool:
    """Whether an error says that a server cannot be reached or ended the connection, nothing worse."""
    if isinstance(error, ConnectionError):
        return True
    if isinstance(error, StorageInternalError):
        return error.__cause__ is not None and _is_away_database(error.__cause__)
    if type(error).__module__.startswith("grpc"):
        import grpc

        # unknown: the proxy lives, but the database behind it does not answer
        away = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN)
        return isinstance(error, grpc.RpcError) and getattr(error, "code", lambda: None)() in away
    return _is_away_database(error)


def _is_away_database(error: BaseException) -> bool:
    from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, PendingRollbackError

    if isinstance(error, PendingRollbackError):
        return True  # Optuna went on with a connection that had just been lost; the session is a new one now
    if isinstance(error, OperationalError | InterfaceError):
        return not any(words in str(error.orig) for words in _NO_MATTER_OF_TIME)
    return isinstance(error, DBAPIError) and error.connection_invalidated


def _reason(error: BaseException) -> str:
    """The innermost message in one line, without SQL."""
    while isinstance(inner := getattr(error, "orig", None) or error.__cause__, BaseException) and str(inner):
        error = inner
    details = getattr(error, "details", None)  # of gRPC, whose message is a page
    message = str(details()) if callable(details) else str(error)
    return " ".join(message.split())[:300] or type(error).__name__
