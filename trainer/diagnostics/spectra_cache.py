"""Spectra of matrices that are compared again and again: a job's base model and a stage's first weights.

Invariants: figures are the same with and without it (what it holds is what would be computed again); it never holds more than its
bound, and what has no room is computed anew; a file that was written again is another file. Only as many vectors are held as the
options can ask for. Safe for threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from trainer.diagnostics.options import DriftOptions
from trainer.diagnostics.row_blocks import RowBlocks
from trainer.diagnostics.spectra import Spectrum

CACHE_BYTES = 256 << 20
Key = tuple[str, int, int, str]
"""File, its time of writing, its size, the matrix's name in it."""
Method = Callable[[RowBlocks], Spectrum]


class SpectraCache:
    def __init__(self, max_bytes: int = CACHE_BYTES):
        self._max_bytes = max_bytes
        self._held: dict[tuple[Key, str, int], Spectrum] = {}
        self._lock = threading.Lock()
        self.bytes = 0
        self.hits = 0

    def spectrum(self, key: Key, blocks: RowBlocks, method: Method, options: DriftOptions) -> Spectrum:
        """The matrix's spectrum by ``method``, with the leading vectors that ``options`` can ask for."""
        width = options.k if options.k is not None else options.max_k
        place = (key, method.__name__, width)
        with self._lock:
            held = self._held.get(place)
            self.hits += held is not None
        if held is None:
            found = method(blocks)
            held = replace(found, vectors=found.vectors[:, :width].clone())
            self._keep(place, held)
        return held

    def retain(self, paths: Collection[Path]) -> None:
        """Forget every file that does not lie at or under one of ``paths``: room for those that come back."""
        wanted = [Path(path) for path in paths]
        with self._lock:
            for place in [place for place in self._held if not any(Path(place[0][0]).is_relative_to(path) for path in wanted)]:
                self.bytes -= _size(self._held.pop(place))

    def _keep(self, place: tuple[Key, str, int], spectrum: Spectrum) -> None:
        # the first to come stay: in a round over all matrices, dropping the oldest would drop each before it is asked for again
        with self._lock:
            if place not in self._held and self.bytes + _size(spectrum) <= self._max_bytes:
                self._held[place] = spectrum
                self.bytes += _size(spectrum)


def file_key(file: Path, name: str) -> Key:
    facts = file.stat()
    return str(file), facts.st_mtime_ns, facts.st_size, name


def _size(spectrum: Spectrum) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (spectrum.values, spectrum.vectors))
