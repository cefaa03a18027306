"""Settings that a constructor has used cannot change later: the change would have no effect."""

import functools
import inspect
from typing import Any, ClassVar


class FixedSettings:
    """Refuses to set again what a constructor of this project has taken and used.

    Attributes:
        live: settings that are read each time, and may change.
    """

    live: ClassVar[frozenset[str]] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        cls: Any = type(self)
        if name in _settings(cls) and (name in self.__dict__ or self.__dict__.get("_made", False)):
            kind = cls.__name__
            raise ValueError(
                f"{name} cannot change once {kind} is made, because it was used there: make another {kind}"
                f" (dataclasses.replace or copy its arguments), got {name}={value!r}"
            )
        super().__setattr__(name, value)

    def _finish(self) -> None:
        """For the end of a constructor that does not keep all its arguments: these are refused as well."""
        self.__dict__["_made"] = True

    def _settle(self, **values: Any) -> None:
        """Set what the constructor makes of its arguments."""
        self.__dict__.update(values)


@functools.cache
def _settings(cls: Any) -> frozenset[str]:
    ours = [base for base in cls.__mro__ if base.__module__.partition(".")[0] in ("metarl",)]
    names = [inspect.signature(vars(base)["__init__"]).parameters for base in ours if "__init__" in vars(base)]
    return frozenset().union(*names) - getattr(cls, "live", frozenset())
