"""The paper: pure functions in its symbols, on torch alone. Start with `direct_align`, then `srpo`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from srpo_core.algorithm.srpo import Method, srpo

METHODS: Final[Mapping[str, Method]] = MappingProxyType({"srpo": srpo})
