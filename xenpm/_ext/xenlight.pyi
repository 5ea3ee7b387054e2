from collections.abc import Iterable
from types import TracebackType
from typing import Any, final

__all__ = [
    "P9_PAIRS",
    "P9_TYPES",
    "VIF_MTU",
    "VIRTIO",
    "Xenlight",
    "check_rate",
    "parse_disk",
    "parse_pci",
    "parse_rdm",
    "read_settings",
]

VIF_MTU: bool
P9_PAIRS: bool
P9_TYPES: bool
VIRTIO: bool

@final
class Xenlight:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __enter__(self) -> Xenlight: ...
    def __exit__(
        self,
        *exc_info: type[BaseException] | BaseException | TracebackType | None,
    ) -> None: ...
    @property
    def closed(self) -> bool: ...
    def close(self) -> None: ...
    def domain_configuration(self, domid: int) -> str: ...
    def assignable_pci(self) -> list[str]: ...

def read_settings(
    text: str,
    strings: Iterable[str] = (),
    numbers: Iterable[str] = (),
    lists: Iterable[str] = (),
) -> tuple[dict[str, Any], list[str]]: ...
def parse_pci(
    spec: str,
    *,
    msitranslate: bool = False,
    power_mgmt: bool = False,
    permissive: bool = False,
    seize: bool = False,
    rdm_policy: int = -1,
) -> str: ...
def parse_disk(spec: str) -> str: ...
def parse_rdm(spec: str) -> int | None: ...
def check_rate(rate: str) -> None: ...
