# Compiled (csrc/bindings/module.cpp); prunefast.ops checks what goes in.
from typing import Any

def __getattr__(name: str) -> Any: ...
