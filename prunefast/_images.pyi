# Compiled (csrc/bindings/images.cpp); prunefast.data checks what goes in.
from typing import Any

def __getattr__(name: str) -> Any: ...
