"""The interface of what `--mode=prepare_data` reads."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Record(NamedTuple):
    """A record is one image of an input."""

    name: str  # of the file, for people
    label: int  # its class
    content: bytes  # the encoded image; empty when it could not be read
    error: str = ''  # why not


Records = Callable[[], Iterator[Record]]  # may be sent to a worker


@dataclass(frozen=True, kw_only=True)
class Input:
    """A labelled image data set in whatever form it came. Nothing of it is decoded yet."""

    version: str  # of the data set, for the manifest; changes when the data set does
    class_names: Sequence[str]  # one a label
    channels: int  # 3, or 1 where all images are grey
    splits: Mapping[str, int]  # {name: number of images}
    # (split, start, stop) -> what reads the images number `start` to `stop` - 1, always in the same order
    section: Callable[[str, int, int], Records]
    empty_classes: Sequence[str] = ()  # names that were found without any image and are not among the classes
    # number of files and folders that are no images, by their ending or by what made them
    passed_over: Mapping[str, int] = field(default_factory=dict)


def digest(facts: Any) -> str:
    """Returns a short digest of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
