"""Settings that a constructor uses cannot change later: the change would have no effect."""

import functools
import inspect
from typing import Any, ClassVar


class FixedSettings:
    """A base class that refuses new values for the arguments of a constructor of this project.

    Attributes:
        live: settings that are read at every use, so they may change.
    """

    live: ClassVar[frozenset[str]] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        cls: Any = type(self)
        if name in _settings(cls) and (name in self.__dict__ or self.__dict__.get("_made", False)):
            kind = cls.__name__
            raise ValueError(
                f"{name} cannot change after the {kind} is made, because the constructor used it: make another {kind}"
                f" (with dataclasses.replace, or the same arguments), got {name}={value!r}"
            )
        super().__setattr__(name, value)

    def _fix_settings(self) -> None:
        """Refuse new values for all arguments from now on, also for those that are not attributes."""
        self.__dict__["_made"] = True

    def _set_fixed(self, **values: Any) -> None:
        """Set attributes that the constructor makes from the arguments of the same names."""
        self.__dict__.update(values)


@functools.cache
def _settings(cls: Any) -> frozenset[str]:
    ours = [base for base in cls.__mro__ if base.__module__.partition(".")[0] in ("metarl",)]
    names = [inspect.signature(vars(base)["__init__"]).parameters for base in ours if "__init__" in vars(base)]
    return frozenset().union(*names) - getattr(cls, "live", frozenset())
