"""Which chunks, blocks and codec make random training windows of a stored volume fastest to read.

    python benchmarks/store_chunks.py STORE [--id NAME]

Rewrites one volume of a store in each layout and reads random windows of 24 slices by 134 to 172 voxels from it, in
one thread, each through a newly opened file as training does. Times are CPU times (the file is in memory then), and
the layouts take turns, so that a busy machine does not favour one. Prints a table: median and 95th percentile of the
time per window, time to write, size.
"""

import argparse
import tempfile
import time
from pathlib import Path

import blosc2
import numpy as np

from pretraining.store.store import Store
from pretraining.store.writer import BLOCK_SHAPE, CHUNK_SLICES, COMPRESSION

WHOLE = 10**6
FILTERS = {"shuffle": blosc2.Filter.SHUFFLE, "bitshuffle": blosc2.Filter.BITSHUFFLE}
CHOSEN = ((CHUNK_SLICES, WHOLE, WHOLE), BLOCK_SHAPE, COMPRESSION["codec"], COMPRESSION["clevel"], "shuffle")
SLABS = (24, WHOLE, WHOLE)
LAYOUTS = [
    CHOSEN,
    (SLABS, (12, 16, 16), blosc2.Codec.ZSTD, 1, "shuffle"),
    (SLABS, (12, 48, 48), blosc2.Codec.ZSTD, 1, "shuffle"),
    (SLABS, (12, 96, 96), blosc2.Codec.ZSTD, 1, "shuffle"),
    (SLABS, (24, 32, 32), blosc2.Codec.ZSTD, 1, "shuffle"),
    (SLABS, (4, 64, 64), blosc2.Codec.ZSTD, 1, "shuffle"),
    ((48, 128, 128), BLOCK_SHAPE, blosc2.Codec.ZSTD, 1, "shuffle"),
    ((1, WHOLE, WHOLE), (1, 64, 64), blosc2.Codec.ZSTD, 1, "shuffle"),
    ((WHOLE, WHOLE, WHOLE), (WHOLE, WHOLE, WHOLE), blosc2.Codec.ZSTD, 1, "shuffle"),
    (SLABS, BLOCK_SHAPE, blosc2.Codec.ZSTD, 1, "bitshuffle"),
    (SLABS, BLOCK_SHAPE, blosc2.Codec.ZSTD, 5, "shuffle"),
    (SLABS, BLOCK_SHAPE, blosc2.Codec.LZ4, 5, "shuffle"),
    (SLABS, BLOCK_SHAPE, blosc2.Codec.LZ4, 5, "bitshuffle"),
]


def write(volume: np.ndarray, path: Path, layout: tuple) -> float:
    """Write the volume in one layout; the seconds it took."""
    chunks, blocks, codec, level, filter_name = layout
    chunks = tuple(min(chunk, edge) for chunk, edge in zip(chunks, volume.shape, strict=True))
    blocks = tuple(min(block, chunk) for block, chunk in zip(blocks, chunks, strict=True))
    compression = {"codec": codec, "clevel": level, "filters": [FILTERS[filter_name]], "nthreads": 1}
    started = time.process_time()
    blosc2.asarray(volume, urlpath=str(path), mode="w", chunks=chunks, blocks=blocks, cparams=compression)
    return time.process_time() - started


def random_window(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, ...]:
    """A window as training draws it: from every 12th slice, in-plane edges of 1.4 to 1.8 x 96 anywhere."""
    first = 12 * rng.integers(max(0, shape[0] - 24) // 12 + 1)
    window = [slice(first, first + 24)]
    for edge in shape[1:]:
        size = min(edge, rng.integers(134, 173))
        start = rng.integers(edge - size + 1)
        window.append(slice(start, start + size))
    return tuple(window)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--id", help="volume to use; default: the largest")
    parser.add_argument("--windows", type=int, default=60)
    arguments = parser.parse_args()
    store = Store.open(arguments.store)
    name = arguments.id or max(store.ids, key=lambda volume_id: np.prod(store.shape(volume_id)))
    volume = store.volume(name)[:]
    print(f"{name}: {' x '.join(map(str, volume.shape))} voxels, {volume.nbytes / 1e6:.1f} MB\n")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.b2nd" for index in range(len(LAYOUTS))]
        writing = [write(volume, path, layout) for path, layout in zip(paths, LAYOUTS, strict=True)]
        reading = [[] for _ in LAYOUTS]
        for _ in range(arguments.windows):
            window = random_window(volume.shape, rng)
            for path, times in zip(paths, reading, strict=True):
                started = time.process_time()
                blosc2.open(str(path), mode="r", dparams={"nthreads": 1})[window]
                times.append(time.process_time() - started)
        print(
            "| chunks | blocks | codec | read, CPU ms | 95% below | write, CPU s | MB |\n|---|---|---|---|---|---|---|"
        )
        for path, layout, written, times in zip(paths, LAYOUTS, writing, reading, strict=True):
            chunks, blocks = (" x ".join("all" if edge == WHOLE else str(edge) for edge in part) for part in layout[:2])
            codec = f"{layout[2].name.lower()} {layout[3]} {layout[4]}"
            median, slow = (1e3 * np.percentile(times, percent) for percent in (50, 95))
            size = path.stat().st_size / 1e6
            print(f"| {chunks} | {blocks} | {codec} | {median:.2f} | {slow:.2f} | {written:.2f} | {size:.1f} |")


if __name__ == "__main__":
    main()
