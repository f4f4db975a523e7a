"""Which sources made a file: kept with it, so that a mended source never goes on with what the old one made."""

import hashlib
from pathlib import Path


def source_digest(*sources: Path) -> str:
    """SHA-256, in hex, of the names and contents of the files, and of those directly in the folders."""
    digest = hashlib.sha256()
    for source in sources:
        files = sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else [source]
        for path in files:
            content = path.read_bytes()
            digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
